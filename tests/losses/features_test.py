"""Tests of the losses on hidden states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import losses


@pytest.mark.parametrize('shape', [(4, 5), (4, 3, 5), (4, 3, 2, 5)])
def test_without_padding_it_is_the_mean_of_squares(shape):
  rng = np.random.default_rng(0)
  student, teacher = (
      jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
  result = losses.feature_matching(student, teacher, mask=jnp.ones(4, bool))
  np.testing.assert_allclose(
      result.mean(), jnp.mean((student - teacher)**2), rtol=1e-6)
  assert result.count == np.prod(shape)


def test_counts_valid_positions_times_features():
  # Differences of 1 and 3 at the two valid positions, over 4 features each:
  # 4 * 1 + 4 * 9 = 40 of 8 values.
  student = jnp.zeros((1, 3, 4))
  teacher = jnp.array([1.0, 2.0, 3.0])[None, :, None] * jnp.ones((1, 3, 4))
  mask = jnp.array([[True, False, True]])
  result = losses.feature_matching(student, teacher, mask=mask)
  assert (result.total, result.count) == (40.0, 8.0)


def test_mask_over_a_grid_of_positions():
  mask = jnp.array([[[True, False], [True, True]]])
  result = losses.feature_matching(
      jnp.zeros((1, 2, 2, 5)), jnp.full((1, 2, 2, 5), 2.0), mask=mask)
  assert (result.total, result.count) == (60.0, 15.0)


def test_gradient_is_twice_the_difference():
  teacher = jnp.array([[1.0, -2.0]])
  grad = jax.grad(lambda s: losses.feature_matching(
      s, teacher, mask=jnp.ones(1, bool)).total)(jnp.zeros((1, 2)))
  np.testing.assert_array_equal(grad, [[-2.0, 4.0]])


@pytest.mark.parametrize('parts', [1, 2, 4])
def test_sums_of_ragged_parts_are_the_sums_of_the_whole(parts):
  # Lengths 8, 1, 4, 4: a mean of means would weigh the single position like the
  # eight.
  mask = jnp.arange(8) < jnp.array([8, 1, 4, 4])[:, None]
  rng = np.random.default_rng(0)
  student, teacher = (
      jnp.asarray(rng.normal(size=(4, 8, 3)), jnp.float32) for _ in range(2))

  def mean(student):
    sums = [
        losses.feature_matching(s, t, mask=m)
        for s, t, m in zip(*(jnp.split(x, parts)
                             for x in (student, teacher, mask)))
    ]
    return sum(sums[1:], start=sums[0]).mean()

  value, grad = jax.value_and_grad(mean)(student)
  error = np.asarray(student - teacher)[np.asarray(mask)]
  np.testing.assert_allclose(value, np.mean(error**2), rtol=1e-6)
  np.testing.assert_allclose(
      grad[np.asarray(mask)], 2 * error / (17 * 3), rtol=1e-5)
