"""Tests of the losses on attention maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import losses


@pytest.fixture(params=['eager', 'jit'])
def variant(request):
  return jax.jit if request.param == 'jit' else lambda function: function


def random_maps(seed, shape=(2, 3, 4, 4)):
  rows = np.random.default_rng(seed).exponential(size=shape)
  return jnp.asarray(rows / rows.sum(-1, keepdims=True), jnp.float32)


def cosine_distances(student, teacher, mask):
  """Sums over valid queries and heads, one by one, in float64."""
  total = 0.0
  for b, h, n in np.ndindex(student.shape[:3]):
    if mask[b, n]:
      s, t = (np.asarray(x[b, h, n], np.float64)[mask[b]]
              for x in (student, teacher))
      total += 1 - s @ t / np.sqrt((s @ s) * (t @ t))
  return total


def test_is_the_cosine_distance_of_rows_over_valid_keys(variant):
  student, teacher = random_maps(0), random_maps(1)
  mask = np.array([[1, 1, 1, 0], [0, 1, 0, 1]], bool)
  loss = variant(lambda s, t, m: losses.attention_transfer(s, t, mask=m))
  total, count = loss(student, teacher, jnp.asarray(mask))
  np.testing.assert_allclose(
      total, cosine_distances(student, teacher, mask), rtol=1e-5)
  assert count == 5 * 3  # Valid queries times heads.


def test_by_hand():
  # (1, 0) and (1/2, 1/2) are 45 degrees apart: 1 - 1/sqrt(2) = 0.2928932.
  # (0, 1) and (1, 0) share no key: 1.
  student = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]])
  teacher = jnp.array([[[[0.5, 0.5], [1.0, 0.0]]]])
  result = losses.attention_transfer(student, teacher, mask=jnp.ones(1, bool))
  np.testing.assert_allclose(result, [1.2928932, 2], rtol=1e-6)


def test_scaling_a_map_changes_nothing():
  student, teacher = random_maps(0), random_maps(1)
  mask = jnp.ones((2, 4), bool)
  expected = losses.attention_transfer(student, teacher, mask=mask)
  for factor in (3.0, 1e-6, 1e6):
    got = losses.attention_transfer(student * factor, teacher, mask=mask)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
  same = losses.attention_transfer(student, student * 7.0, mask=mask)
  assert 0 <= same.total < 1e-10


@pytest.mark.parametrize('left', [0, 2])
def test_padded_queries_and_keys_change_nothing(left):
  student, teacher = random_maps(0), random_maps(1)
  mask = np.ones((2, 4), bool)
  expected = losses.attention_transfer(student, teacher, mask=mask)
  width = ((0, 0), (0, 0), (left, 3), (left, 3))
  padded = (
      jnp.pad(maps, width, constant_values=0.7) for maps in (student, teacher))
  got = losses.attention_transfer(
      *padded, mask=np.pad(mask, ((0, 0), (left, 3))))
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_mask_of_examples_counts_every_query():
  maps = random_maps(0)
  result = losses.attention_transfer(
      maps, maps[::-1], mask=jnp.array([True, False]))
  expected = cosine_distances(maps[:1], maps[1:], np.ones((1, 4), bool))
  np.testing.assert_allclose(result, [expected, 12], rtol=1e-5)


def test_causal_maps_padded_on_the_left_have_rows_without_a_key(variant):
  # Queries 0 and 1 are padding, and no valid key precedes them.
  causal = jnp.tril(jnp.ones((4, 4)))
  student, teacher = random_maps(0) * causal, random_maps(1) * causal
  mask = jnp.array([[False, False, True, True]] * 2)

  @variant
  def loss(student):
    result = losses.attention_transfer(student, teacher, mask=mask)
    return result.total, result.count

  (total, count), grad = jax.value_and_grad(loss, has_aux=True)(student)
  np.testing.assert_allclose(
      total, cosine_distances(student, teacher, np.asarray(mask)), rtol=1e-5)
  assert count == 2 * 2 * 3
  assert np.isfinite(grad).all() and not grad[:, :, :2].any()


@pytest.mark.parametrize('side', ['student', 'teacher', 'both'])
def test_query_that_attends_to_no_valid_key_adds_nothing(variant, side):
  maps = dict(student=random_maps(0), teacher=random_maps(1))
  mask = np.ones((2, 4), bool)
  rest = np.delete(np.arange(4), 1)
  expected = sum(
      1 - float(s @ t) / float(jnp.sqrt((s @ s) * (t @ t)))
      for s, t in zip(maps['student'][:, :, rest].reshape(-1, 4),
                      maps['teacher'][:, :, rest].reshape(-1, 4)))
  for name in maps:
    if side in (name, 'both'):
      maps[name] = maps[name].at[:, :, 1].set(0.0)

  @variant
  def loss(student, teacher):
    result = losses.attention_transfer(student, teacher, mask=mask)
    return result.total, result.count

  (total, count), grads = jax.value_and_grad(
      loss, (0, 1), has_aux=True)(*maps.values())
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  assert count == 2 * 4 * 3  # The count depends on the mask only.
  for grad in grads:
    assert np.isfinite(grad).all() and not grad[:, :, 1].any()


def test_gradient_descends_to_the_teacher():
  # d(1 - cos)/ds = (s cos/|s| - t/|t|)/|s|. At 45 degrees, for s = (1, 0) and
  # t = (1, 1), this is (1/sqrt 2 - 1/sqrt 2, -1/sqrt 2).
  student = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]])
  teacher = jnp.array([[[[0.5, 0.5], [0.0, 1.0]]]])
  grad = jax.grad(lambda s: losses.attention_transfer(
      s, teacher, mask=jnp.ones(1, bool)).total)(
          student)
  np.testing.assert_allclose(
      grad, [[[[0.0, -0.5**0.5], [0.0, 0.0]]]], atol=1e-6)


@pytest.mark.parametrize('shape', [(2, 3, 4, 5), (2, 4, 4), (2, 1, 3, 4, 4)])
def test_maps_must_be_square(shape):
  with pytest.raises(ValueError, match=r'\[B, H, N, N\].*student\.shape='):
    losses.attention_transfer(
        jnp.ones(shape), jnp.ones(shape), mask=jnp.ones(2, bool))
