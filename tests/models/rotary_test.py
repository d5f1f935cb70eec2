"""Tests of rotary."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from haikd.core import checks
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
  """Returns how much features turn a position, and how much they grow."""
  tokens = np.zeros((1, length), int)
  rows = sequences.read('test', dict(tokens=tokens, **columns), None)
  cosine, sine = rotary.angles(rows, head_size, base, scaling)
  # Nothing turns by more than a radian, so that position 1 tells.
  places = np.asarray(rows.positions[0]) == 1
  grown = np.hypot(cosine, sine)[0]
  assert np.ptp(grown) < 1e-6
  return np.arctan2(sine, cosine)[0, places], grown[0, 0]


@pytest.mark.parametrize('scaling, base, frequencies', [
    # 100^-0 and 100^-(2/4).
    (None, 100.0, (1, 0.1)),
    (dict(kind='linear', factor=4.0), 100.0, (0.25, 0.025)),
    # Four turns at first, over 3: as it was. 0.4, below 1: an eighth.
    (LLAMA3, 100.0, (1, 0.0125)),
    # Two turns are half way from 1 to 3: half of 0.5, and half of a sixteenth.
    (LLAMA3, 4.0, (1, 0.28125)),
])
def test_frequencies_equal_values_by_hand(scaling, base, frequencies):
  found, growth = turns(scaling, base=base)
  np.testing.assert_allclose(found[0], frequencies, rtol=1e-6)
  assert growth == pytest.approx(1)


@pytest.mark.parametrize('length, frequencies', [
    (2, (1, 0.1)),
    # 2 (4 / 2) - 1 = 3 makes the base 3^(4/2) times as large, which is 900.
    (4, (1, 1 / 30)),
])
def test_dynamic_goes_by_the_length(length, frequencies):
  found, _ = turns(DYNAMIC, length)
  np.testing.assert_allclose(found[0], frequencies, rtol=1e-6)


@pytest.mark.parametrize('more, slowed', [
    # Feature 0 has 100 turns and feature 4 would have 1.
    (dict(), (0, 1 / 4, 2 / 4, 3 / 4)),
    # Feature 0.5 has 56.23 turns, and is rounded down.
    (dict(beta_fast=100 / 10**0.25), (0, 1 / 4, 2 / 4, 3 / 4)),
    (dict(beta_fast=100 / 10**0.25, truncate=False), (0, 1 / 7, 3 / 7, 5 / 7)),
    # Feature 3.5 has 1.778 turns, and is rounded up.
    (dict(beta_slow=10**0.25), (0, 1 / 4, 2 / 4, 3 / 4)),
    (dict(beta_slow=10**0.25, truncate=False), (0, 2 / 7, 4 / 7, 6 / 7)),
])
def test_yarn_slows_down_slow_features(more, slowed):
  found, growth = turns(YARN | more, head_size=8)
  expected = 10**(-np.arange(4) / 2) * (1 - np.array(slowed) / 2)
  np.testing.assert_allclose(found[0], expected, rtol=1e-5)
  assert growth == pytest.approx(1 + 0.1 * math.log(2))


@pytest.mark.parametrize('length, frequencies', [
    (3, (1, 0.1 / 2)), (4, (1 / 2, 0.1 / 4))])
def test_longrope_has_factors_for_each_length(length, frequencies):
  found, growth = turns(LONGROPE, length)
  np.testing.assert_allclose(found[0], frequencies, rtol=1e-6)
  assert growth == pytest.approx(math.sqrt(1 + 2))  # ln 9 is 2 ln 3.


@pytest.mark.parametrize('scaling', (YARN, LONGROPE))
def test_a_given_attention_factor_is_taken(scaling):
  _, growth = turns(scaling | dict(attention_factor=1.5),
                    head_size=8 if scaling is YARN else 4)
  assert growth == pytest.approx(1.5)


@pytest.mark.parametrize('scaling, short, long', [
    (DYNAMIC, 0.1, 1 / 30), (LONGROPE, 0.05, 0.025)])
def test_the_length_is_that_of_each_document(scaling, short, long):
  """One of 4 positions between two of 2, and padding after them."""
  found, _ = turns(
      scaling, 8,
      positions=jnp.array([[0, 1, 0, 1, 2, 3, 0, 1]]),
      segments=jnp.array([[1, 1, 2, 2, 2, 2, 3, 3]]))
  np.testing.assert_allclose(found[:, 1], [short, long, short], rtol=1e-6)


def test_padding_does_not_lengthen_a_document():
  mask = np.array([[False, True, True, False, False]])
  rows = sequences.read('test', np.zeros((1, 5), int), mask)
  cosine, sine = rotary.angles(rows, 4, 100.0, DYNAMIC)
  np.testing.assert_allclose(
      np.arctan2(sine, cosine)[0, 2], [1, 0.1], rtol=1e-6)


@pytest.mark.parametrize('scaling, text', [
    ('yarn', "None or a dict whose kind is one of .*; got rope_scaling='yarn'"),
    (dict(kind='ntk'), 'whose kind is one of linear, dynamic, yarn, llama3'),
    (dict(kind='linear'), 'factor of rope_scaling must be a number of at least '
     "1; got factor=None, kind='linear'"),
    (dict(kind='linear', factor=0.5), 'at least 1; got factor=0.5'),
    (dict(kind='linear', factor=2.0, beta_fast=3.0),
     "kind 'linear' must have known numbers; got beta_fast=3.0"),
    (DYNAMIC | dict(original_length=None), 'got original_length=None'),
    (YARN | dict(truncate=1), 'truncate of rope_scaling must be a bool; got '
     'truncate=1'),
    (YARN | dict(beta_fast=0.5), 'beta_slow of rope_scaling must be less than '
     'beta_fast; got beta_slow=1.0, beta_fast=0.5'),
    (LLAMA3 | dict(high_freq_factor=1.0),
     'low_freq_factor of rope_scaling must be less than high_freq_factor'),
    (LONGROPE | dict(attention_factor=0), 'must be a number above 0; got '
     'attention_factor=0'),
    (LONGROPE | dict(long_factor=(1.0,)), 'long_factor of rope_scaling must be '
     r'2 numbers above 0, .* got long_factor=\(1.0,\)'),
])
def test_scalings_that_cannot_be_are_refused(scaling, text):
  with pytest.raises(checks.ConfigError, match=text):
    rotary.check_scaling('models.test', scaling, 4)


def test_dynamic_scaling_needs_two_pairs_of_features():
  text = 'head_size must be 4 or more .* got head_size=2'
  with pytest.raises(checks.ConfigError, match=text):
    rotary.check_scaling('models.test', DYNAMIC, 2)


def test_rotations_are_those_of_each_place():
  rows = sequences.read(
      'test', dict(tokens=np.zeros((1, 5), int),
                   segments=np.array([[0, 0, 0, 1, 1]]),
                   positions=np.array([[0, 1, 2, 0, 1]])), None)
  cosine, sine = rotary.angles(rows, 4, 100.0)
  # 100^-0 and 100^-(2/4) radians a place.
  turned = np.outer([0, 1, 2, 0, 1], [1, 0.1])
  np.testing.assert_allclose(cosine[0], np.cos(turned), rtol=1e-6)
  np.testing.assert_allclose(sine[0], np.sin(turned), rtol=1e-6)


@pytest.mark.parametrize('positions', [(1, 2, 3), (-1, 0, 1), (0, 1, 9000)])
def test_places_beyond_the_row_have_their_own_rotation(positions):
  rows = sequences.read(
      'test', dict(tokens=np.zeros((1, 3), int),
                   positions=np.array([positions])), None)
  for found, function in zip(rotary.angles(rows, 4, 100.0), (np.cos, np.sin)):
    turned = np.outer(positions, [1, 0.1])
    # Of 9000 radians float32 knows 1e-3.
    np.testing.assert_allclose(found[0], function(turned), atol=1e-3)
