"""Masked sums, and lazy values computed from masked inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd.core import base
from haikd.core import masking


@pytest.fixture(params=['eager', 'jit'])
def variant(request):
  return jax.jit if request.param == 'jit' else lambda function: function


def test_expand_adds_trailing_axes():
  assert masking.expand(jnp.ones((2, 3), bool), 4).shape == (2, 3, 1, 1)
  assert masking.expand(jnp.ones((2, 3), bool), 2).shape == (2, 3)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.int32])
def test_clean_zeros_what_is_masked_and_keeps_the_dtype(dtype):
  cleaned = masking.clean(
      jnp.array([[1, 2], [3, 4]], dtype), jnp.array([True, False]))
  assert cleaned.dtype == dtype
  np.testing.assert_array_equal(cleaned, [[1, 2], [0, 0]])


def test_clean_keeps_nan_from_value_and_gradient(variant):
  array = jnp.array([4.0, jnp.nan, -1.0, jnp.inf])
  mask = jnp.array([True, False, False, False])

  @variant
  @jax.value_and_grad
  def root(array):
    return jnp.sum(jnp.sqrt(masking.clean(array, mask) + 1.0))

  value, grad = root(array)
  # sqrt(5) and three times sqrt(1); the derivative is 1/(2 sqrt(5)).
  np.testing.assert_allclose(value, 5**0.5 + 3, rtol=1e-6)
  np.testing.assert_allclose(grad, [0.5 / 5**0.5, 0, 0, 0], rtol=1e-6)


def test_materialise_zeros_padding_of_the_same_positions():
  hidden = jnp.array([[[1.0], [jnp.nan]]])
  logits = masking.materialise(
      base.LinearLogits(hidden, jnp.array([[2.0, 3.0]])),
      jnp.array([[True, False]]))
  np.testing.assert_array_equal(logits, [[[2.0, 3.0], [0.0, 0.0]]])


def test_materialise_keeps_examples_with_any_position_that_counts():
  # `hidden` has one position per example and the mask has three. The one is
  # padding only if all three are.
  hidden = jnp.array([[[5.0]], [[jnp.nan]]])
  mask = jnp.array([[True, False, False], [False, False, False]])
  logits = masking.materialise(
      base.LinearLogits(hidden, jnp.array([[2.0]])), mask)
  np.testing.assert_array_equal(logits, [[[10.0]], [[0.0]]])


def test_masked_mean_counts_every_trailing_value(variant):
  # Rows 0 and 2 of [[0, 1], [2, 3], [4, 5]]: 1 + 9 = 10 of 4 values.
  loss = variant(haikd.masked_mean)(
      jnp.arange(6.0).reshape(3, 2), jnp.array([True, False, True]))
  assert isinstance(loss, haikd.LossSum)
  assert (loss.total, loss.count, loss.mean()) == (10.0, 4.0, 2.5)


def test_masked_mean_of_nothing_is_zero():
  loss = haikd.masked_mean(jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool))
  assert (loss.total, loss.count, loss.mean()) == (0.0, 0.0, 0.0)


def test_masked_mean_sums_and_counts_in_float32():
  # A bfloat16 sum of ones stops at 256.
  loss = haikd.masked_mean(jnp.ones(999, jnp.bfloat16), jnp.ones(999, bool))
  assert loss.total.dtype == loss.count.dtype == jnp.float32
  assert (loss.total, loss.count) == (999.0, 999.0)


def test_masked_mean_of_integers():
  loss = haikd.masked_mean(jnp.array([1, 2, 3]), jnp.array([True, True, False]))
  assert loss.total.dtype == jnp.float32
  assert (loss.total, loss.count) == (3.0, 2.0)


def test_mask_must_be_boolean():
  with pytest.raises(TypeError, match='mask must be boolean.*int32'):
    haikd.masked_mean(jnp.ones(2), jnp.ones(2, jnp.int32))


@pytest.mark.parametrize('shape', [(3,), (2, 2), (2, 3, 1)])
def test_mask_must_have_the_leading_axes(shape):
  with pytest.raises(ValueError, match='mask must have the leading axes of '
                     r'values; got mask\.shape=.*values\.shape=\(2, 3\)'):
    haikd.masked_mean(jnp.ones((2, 3)), jnp.ones(shape, bool))
