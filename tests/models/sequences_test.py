"""Tests of rows of tokens."""

import numpy as np
import pytest

from haikd.models import sequences

# Padding, a document of 2 and one of 3.
MASK = np.array([[False, True, True, True, True, True]])
SEGMENTS = np.array([[0, 1, 1, 2, 2, 2]])
POSITIONS = np.array([[0, 0, 1, 0, 1, 2]])
TOKENS = np.zeros((1, 6), int)
ROW = dict(tokens=TOKENS, segments=SEGMENTS, positions=POSITIONS)


def allowed(inputs, mask, **options):
  found = sequences.read('test', inputs, mask).allowed(**options)
  found = np.broadcast_to(found.block((0, 6), (0, 6)), (1, 1, 6, 6))
  return [''.join('.x'[int(sees)] for sees in row) for row in found[0, 0]]


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
def test_a_query_looks_where_it_may(inputs, options, expected):
  assert allowed(inputs, MASK, **options) == expected


@pytest.mark.parametrize('mask, expected', [
    (None, [0, 1, 2, 3, 4, 5]),
    (MASK, [0, 0, 1, 2, 3, 4]),
    (MASK[:, ::-1], [0, 1, 2, 3, 4, 4]),
    (np.array([True]), [0, 1, 2, 3, 4, 5]),
])
def test_places_are_counted_over_real_positions(mask, expected):
  found = sequences.read('test', TOKENS, mask).positions
  np.testing.assert_array_equal(found[0], expected)


def test_columns_are_passed_on():
  found = sequences.read('test', ROW | dict(types=TOKENS), MASK)
  np.testing.assert_array_equal(found.positions, POSITIONS)
  np.testing.assert_array_equal(found.segments, SEGMENTS)
  np.testing.assert_array_equal(found.types, TOKENS)
  assert sequences.read('test', TOKENS, MASK).segments is None


@pytest.mark.parametrize('inputs, error, text', [
    (dict(tokens=TOKENS, ids=TOKENS), ValueError,
     r"test: inputs must be tokens, or a dict of .*; got \['ids', 'tokens'\]"),
    (dict(types=TOKENS), ValueError, r"got \['types'\]"),
    (dict(tokens=TOKENS, segments=SEGMENTS), ValueError,
     'inputs must have positions beside segments'),
    (ROW | dict(types=TOKENS[:, 1:]), ValueError,
     r'inputs must all be of the shape of tokens; got shapes .*\(1, 5\)'),
    (ROW | dict(types=TOKENS * 0.5), TypeError, 'must be integers'),
])
def test_inputs_that_cannot_be_are_refused(inputs, error, text):
  with pytest.raises(error, match=text):
    sequences.read('test', inputs, MASK)
