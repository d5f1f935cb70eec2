"""Tests of rows of tokens."""

import numpy as np
import pytest

from haikd.models import sequences

# Padding, a document of 2 positions and one of 3.
MASK = np.array([[False, True, True, True, True, True]])
SEGMENTS = np.array([[0, 1, 1, 2, 2, 2]])
POSITIONS = np.array([[0, 0, 1, 0, 1, 2]])
TOKENS = np.zeros((1, 6), int)
ROW = dict(tokens=TOKENS, segments=SEGMENTS, positions=POSITIONS)


def allowed(inputs, mask, **options):
  """Returns a row of text a query, with an x for each allowed key."""
  rules = sequences.read(inputs, mask).allowed(**options)
  array = np.broadcast_to(rules.block((0, 6), (0, 6)), (1, 1, 6, 6))
  return [''.join('.x'[int(attends)] for attends in row) for row in array[0, 0]]


@pytest.mark.parametrize('inputs, options, expected', [
    (TOKENS, dict(causal=True),
     ['......', '.x....', '.xx...', '.xxx..', '.xxxx.', '.xxxxx']),
    (TOKENS, dict(causal=False), ['.xxxxx'] * 6),
    (TOKENS, dict(causal=True, window=2),
     ['......', '.x....', '.xx...', '..xx..', '...xx.', '....xx']),
    (ROW, dict(causal=True),
     ['......', '.x....', '.xx...', '...x..', '...xx.', '...xxx']),
    (ROW, dict(causal=False),
     ['......', '.xx...', '.xx...', '...xxx', '...xxx', '...xxx']),
    (ROW, dict(causal=True, window=2),
     ['......', '.x....', '.xx...', '...x..', '...xx.', '....xx']),
])
def test_a_query_attends_to_allowed_keys(inputs, options, expected):
  assert allowed(inputs, MASK, **options) == expected


@pytest.mark.parametrize('mask, expected', [
    (None, [0, 1, 2, 3, 4, 5]),
    (MASK, [0, 0, 1, 2, 3, 4]),
    (MASK[:, ::-1], [0, 1, 2, 3, 4, 4]),
    (np.array([True]), [0, 1, 2, 3, 4, 5]),
])
def test_real_positions_are_counted(mask, expected):
  positions = sequences.read(TOKENS, mask).positions
  np.testing.assert_array_equal(positions[0], expected)


def test_columns_are_passed_on():
  sequence = sequences.read(ROW | dict(types=TOKENS), MASK)
  np.testing.assert_array_equal(sequence.positions, POSITIONS)
  np.testing.assert_array_equal(sequence.segments, SEGMENTS)
  np.testing.assert_array_equal(sequence.types, TOKENS)
  assert sequences.read(TOKENS, MASK).segments is None


@pytest.mark.parametrize('inputs, error, text', [
    (dict(tokens=TOKENS, ids=TOKENS), ValueError,
     r"^inputs must be tokens, or a dict of .*; got \['ids', 'tokens'\]"),
    (dict(types=TOKENS), ValueError,
     r"^inputs must be tokens, or a dict of .*; got \['types'\]"),
    (dict(tokens=TOKENS, segments=SEGMENTS), ValueError,
     '^inputs must have positions if they have segments'),
    (ROW | dict(types=TOKENS[:, 1:]), ValueError, '^types must have the shape '
     r'of tokens; got types.shape=\(1, 5\), tokens.shape=\(1, 6\)'),
    (ROW | dict(types=TOKENS * 0.5), TypeError,
     '^types must be integers; got types.dtype=float64'),
])
def test_invalid_inputs_are_refused(inputs, error, text):
  with pytest.raises(error, match=text):
    sequences.read(inputs, MASK)
