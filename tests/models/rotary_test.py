"""Tests of rotary."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd.core import checks
from haikd.models import rope_scaling
from haikd.models import rotary
from haikd.models import sequences

DYNAMIC = dict(kind='dynamic', factor=2.0, original_length=2)
YARN = dict(kind='yarn', factor=2.0, original_length=200 * math.pi,
            beta_fast=100.0, beta_slow=1.0)
LLAMA3 = dict(kind='llama3', factor=8.0, low_freq_factor=1.0,
              high_freq_factor=3.0, original_length=8 * math.pi)
LONGROPE = dict(kind='longrope', factor=9.0, short_factor=(1.0, 2.0),
                long_factor=(2.0, 4.0), original_length=3)


def turns(scaling, length=4, head_size=4, base=100.0, **columns):
  """Returns the radians that features turn a position, and their growth."""
  tokens = np.zeros((1, length), int)
  rows = sequences.read(dict(tokens=tokens, **columns), None)
  cosine, sine = rotary.angles(rows, head_size, base, scaling)
  # No feature turns by more than a radian a position, so that the angle at
  # position 1 is unique.
  at_one = np.asarray(rows.positions[0]) == 1
  growth = np.hypot(cosine, sine)[0]
  assert np.ptp(growth) < 1e-6
  return np.arctan2(sine, cosine)[0, at_one], growth[0, 0]


@pytest.mark.parametrize('scaling, base, frequencies', [
    # 100^-0 and 100^-(2/4).
    (None, 100.0, (1, 0.1)),
    (dict(kind='linear', factor=4.0), 100.0, (0.25, 0.025)),
    # Feature 0 has 4 turns, above 3: unchanged. Feature 1 has 0.4, below 1: an
    # eighth.
    (LLAMA3, 100.0, (1, 0.0125)),
    # Feature 1 has 2 turns, half way from 1 to 3: the mean of 1/2 and 1/16.
    (LLAMA3, 4.0, (1, 0.28125)),
])
def test_frequencies_equal_values_by_hand(scaling, base, frequencies):
  actual, growth = turns(scaling, base=base)
  np.testing.assert_allclose(actual[0], frequencies, rtol=1e-6)
  assert growth == pytest.approx(1)


@pytest.mark.parametrize('length, frequencies', [
    (2, (1, 0.1)),
    # 2 (4 / 2) - 1 = 3, which makes the base 100 x 3^(4/2) = 900.
    (4, (1, 1 / 30)),
])
def test_dynamic_depends_on_the_length(length, frequencies):
  actual, _ = turns(DYNAMIC, length)
  np.testing.assert_allclose(actual[0], frequencies, rtol=1e-6)


@pytest.mark.parametrize('more, slowed', [
    # Feature 0 has 100 turns and feature 4 would have 1.
    (dict(), (0, 1 / 4, 2 / 4, 3 / 4)),
    # Feature 0.5 has 56.23 turns; 0.5 is rounded down.
    (dict(beta_fast=100 / 10**0.25), (0, 1 / 4, 2 / 4, 3 / 4)),
    (dict(beta_fast=100 / 10**0.25, truncate=False), (0, 1 / 7, 3 / 7, 5 / 7)),
    # Feature 3.5 has 1.778 turns; 3.5 is rounded up.
    (dict(beta_slow=10**0.25), (0, 1 / 4, 2 / 4, 3 / 4)),
    (dict(beta_slow=10**0.25, truncate=False), (0, 2 / 7, 4 / 7, 6 / 7)),
])
def test_yarn_slows_down_slow_features(more, slowed):
  actual, growth = turns(YARN | more, head_size=8)
  expected = 10**(-np.arange(4) / 2) * (1 - np.array(slowed) / 2)
  np.testing.assert_allclose(actual[0], expected, rtol=1e-5)
  assert growth == pytest.approx(1 + 0.1 * math.log(2))


@pytest.mark.parametrize('length, frequencies', [
    (3, (1, 0.1 / 2)), (4, (1 / 2, 0.1 / 4))])
def test_longrope_has_factors_for_each_length(length, frequencies):
  actual, growth = turns(LONGROPE, length)
  np.testing.assert_allclose(actual[0], frequencies, rtol=1e-6)
  assert growth == pytest.approx(math.sqrt(1 + 2))  # ln 9 is 2 ln 3.


@pytest.mark.parametrize('scaling', (YARN, LONGROPE))
def test_a_given_attention_factor_is_used(scaling):
  _, growth = turns(scaling | dict(attention_factor=1.5),
                    head_size=8 if scaling is YARN else 4)
  assert growth == pytest.approx(1.5)


@pytest.mark.parametrize('scaling, short, long', [
    (DYNAMIC, 0.1, 1 / 30), (LONGROPE, 0.05, 0.025)])
def test_the_length_is_that_of_each_document(scaling, short, long):
  """Documents of 2, 4 and 2 positions in one row."""
  actual, _ = turns(
      scaling, 8,
      positions=jnp.array([[0, 1, 0, 1, 2, 3, 0, 1]]),
      segments=jnp.array([[1, 1, 2, 2, 2, 2, 3, 3]]))
  np.testing.assert_allclose(actual[:, 1], [short, long, short], rtol=1e-6)


def test_padding_does_not_lengthen_a_document():
  mask = np.array([[False, True, True, False, False]])
  rows = sequences.read(np.zeros((1, 5), int), mask)
  cosine, sine = rotary.angles(rows, 4, 100.0, DYNAMIC)
  np.testing.assert_allclose(
      np.arctan2(sine, cosine)[0, 2], [1, 0.1], rtol=1e-6)


@pytest.mark.parametrize('scaling, text', [
    ('yarn', '^rope_scaling must be None or a dict whose kind is one of .*; '
     "got 'yarn'"),
    (dict(kind='ntk'), '^rope_scaling must be None or a dict whose kind is one '
     'of linear, dynamic, yarn, llama3'),
    (dict(kind='linear'), '^rope_scaling.factor must be a number of at least '
     "1; got None, kind='linear'"),
    (dict(kind='linear', factor=0.5),
     '^rope_scaling.factor must be a number of at least 1; got 0.5'),
    (dict(kind='linear', factor=2.0, beta_fast=3.0),
     "^rope_scaling.beta_fast must be a number of kind 'linear'; got 3.0"),
    (DYNAMIC | dict(original_length=None),
     '^rope_scaling.original_length must be a number of at least 2; got None'),
    (YARN | dict(truncate=1), '^rope_scaling.truncate must be a bool; got 1'),
    (YARN | dict(beta_fast=0.5), '^rope_scaling.beta_slow must be less than '
     'rope_scaling.beta_fast; got beta_slow=1.0, beta_fast=0.5'),
    (LLAMA3 | dict(high_freq_factor=1.0), '^rope_scaling.low_freq_factor must '
     'be less than rope_scaling.high_freq_factor'),
    (LONGROPE | dict(attention_factor=0),
     '^rope_scaling.attention_factor must be a number above 0; got 0'),
    (LONGROPE | dict(long_factor=(1.0,)), '^rope_scaling.long_factor must be '
     r'2 numbers above 0, .*; got \(1.0,\)'),
])
def test_invalid_scalings_are_refused(scaling, text):
  with pytest.raises(checks.ConfigError, match=text):
    rope_scaling.check(scaling, 4)


def test_dynamic_scaling_needs_two_pairs_of_features():
  text = '^head_size must be at least 4 with rope_scaling .*; got 2'
  with pytest.raises(checks.ConfigError, match=text):
    rope_scaling.check(DYNAMIC, 2)


def test_rotations_are_those_of_each_position():
  rows = sequences.read(
      dict(
          tokens=np.zeros((1, 5), int),
          segments=np.array([[0, 0, 0, 1, 1]]),
          positions=np.array([[0, 1, 2, 0, 1]])), None)
  cosine, sine = rotary.angles(rows, 4, 100.0)
  # 100^-0 and 100^-(2/4) radians a position.
  turned = np.outer([0, 1, 2, 0, 1], [1, 0.1])
  np.testing.assert_allclose(cosine[0], np.cos(turned), rtol=1e-6)
  np.testing.assert_allclose(sine[0], np.sin(turned), rtol=1e-6)


@pytest.mark.parametrize('columns', [('tokens',), ('tokens', 'positions')])
def test_only_given_positions_may_lie_beyond_the_row(columns):
  """What is counted here needs no second branch in the program."""

  def run(array):
    rows = sequences.read(dict.fromkeys(columns, array), None)
    return rotary.angles(rows, 4, 100.0)

  program = str(jax.make_jaxpr(run)(np.zeros((1, 3), int)))
  assert ('cond[' in program) == ('positions' in columns)


@pytest.mark.parametrize('positions', [(1, 2, 3), (-1, 0, 1), (0, 1, 9000)])
def test_positions_beyond_the_row_have_their_rotation(positions):
  rows = sequences.read(
      dict(
          tokens=np.zeros((1, 3), int),
          positions=np.array([positions])), None)
  for part, function in zip(rotary.angles(rows, 4, 100.0), (np.cos, np.sin)):
    turned = np.outer(positions, [1, 0.1])
    # float32 resolves 9000 radians to 1e-3.
    np.testing.assert_allclose(part[0], function(turned), atol=1e-3)
