"""Tests of the losses on embeddings, and of angles in general."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import losses

T = 0.5


def random(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize('loss',
                         [losses.embedding_cosine, losses.feature_cosine])
def test_cosine_distance_by_hand(loss):
  # Angles of 0, 60, 90 and 180 degrees; the fifth does not count.
  student = jnp.array([[[2.0, 0], [1, 0], [1, 1], [0, 3], [5, 5]]])
  teacher = jnp.array([[[7.0, 0], [1, 3**0.5], [-1, 1], [0, -1], [0, 1]]])
  mask = jnp.array([[True] * 4 + [False]])
  result = loss(student, teacher, mask=mask)
  np.testing.assert_allclose(result, (0 + 0.5 + 1 + 2, 4), rtol=1e-6)


@pytest.mark.parametrize('loss',
                         [losses.embedding_cosine, losses.feature_cosine])
def test_gradient_of_cosine_turns_and_does_not_stretch(loss):
  # d(-cos)/ds of s = (2, 0), t = (0, 1): -(t - cos s/|s|)/|s| = (0, -1/2). A
  # vector of zeros gets none.
  student = jnp.array([[2.0, 0], [0, 0]])
  teacher = jnp.array([[0.0, 1], [1, 1]])
  grad = jax.grad(
      lambda s: loss(s, teacher, mask=jnp.ones(2, bool)).total)(student)
  np.testing.assert_allclose(grad, [[0, -0.5], [0, 0]], atol=1e-7)


def test_matching_is_the_mean_of_squares():
  student, teacher = random(4, 2, 5), random(4, 2, 5, seed=1)
  mask = jnp.array([[True, False]] * 3 + [[False, False]])
  result = losses.embedding_matching(student, teacher, mask=mask)
  errors = (np.asarray(student - teacher)[:3, 0])**2
  np.testing.assert_allclose(result.mean(), errors.mean(), rtol=1e-6)
  assert result.count == 15


def similarity_distribution(student, teacher, mask, temperature):
  """Returns the loss's sum and count, computed by query in float64."""
  divergences = []
  sides = [np.asarray(x, np.float64)[np.asarray(mask)]
           for x in (student, teacher)]
  for i in range(mask.sum()):
    logs = []
    for vectors in sides:
      unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
      scores = np.exp(np.delete(unit @ unit[i], i) / temperature)
      logs.append(np.log(scores / scores.sum()))
    log_q, log_p = logs
    divergences.append((np.exp(log_p) * (log_p - log_q)).sum())
  return sum(divergences), len(divergences)


@pytest.mark.parametrize('shape, width', (((6,), 5), ((6,), 9), ((4, 2), 3)))
@pytest.mark.parametrize('temperature', (0.05, 1.0))
def test_similarities_are_those_of_all_other_texts(shape, width, temperature):
  student, teacher = random(*shape, 5), random(*shape, width, seed=1)
  mask = jnp.arange(np.prod(shape)).reshape(shape) % 4 != 1
  result = losses.similarity_distribution(
      student, teacher, mask=mask, temperature=temperature)
  expected = similarity_distribution(student, teacher, mask, temperature)
  np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_mask_of_examples_masks_all_their_texts():
  student, teacher = random(3, 2, 5), random(3, 2, 4, seed=1)
  mask = jnp.array([True, False, True])
  result = losses.similarity_distribution(student, teacher, mask=mask)
  both = jnp.stack([mask, mask], axis=1)
  np.testing.assert_array_equal(
      result,
      losses.similarity_distribution(student, teacher, mask=both))


def test_three_texts_by_hand():
  # Queries a, b and c. The teacher: a.b = 1, a.c = b.c = 0; the student:
  # a.c = 1, a.b = b.c = 0. At temperature 1, with p = e / (e + 1), a has p, 1-p
  # against 1-p, p: (2p - 1) ln(p / (1 - p)) = 2p - 1; b has p, 1-p against
  # 1/2, 1/2, and c has 1/2, 1/2 against p, 1-p.
  x, y = jnp.array([1.0, 0]), jnp.array([0.0, 1])
  result = losses.similarity_distribution(
      jnp.stack([x, y, x]), jnp.stack([x, x, y]), mask=jnp.ones(3, bool),
      temperature=1.0)
  p = np.e / (np.e + 1)
  b = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
  c = -np.log(2) - (np.log(p) + np.log(1 - p)) / 2
  np.testing.assert_allclose(result, (2 * p - 1 + b + c, 3), rtol=1e-5)


def test_turning_all_vectors_changes_nothing():
  teacher = random(5, 4)
  rotation, _ = np.linalg.qr(random(4, 4, seed=2))
  result = losses.similarity_distribution(
      3 * teacher @ rotation, teacher, mask=jnp.ones(5, bool))
  np.testing.assert_allclose(result, (0, 5), atol=1e-6)


@pytest.mark.parametrize('kept', (0, 1))
def test_one_text_has_no_relations(kept):
  mask = jnp.arange(3) < kept

  def total(student):
    result = losses.similarity_distribution(
        student, random(3, 4, seed=1), mask=mask)
    assert result.count == 0
    return result.total

  value, grad = jax.value_and_grad(total)(random(3, 4))
  assert value == 0 and not np.any(grad)


def test_gradient_agrees_with_finite_differences():
  student, teacher = random(5, 3), random(5, 4, seed=1)
  mask = jnp.array([True, True, False, True, True])
  loss = lambda student: losses.similarity_distribution(
      student, teacher, mask=mask, temperature=T).total
  grad, step = np.asarray(jax.grad(loss)(student)), 1e-5
  for place in np.ndindex(grad.shape):
    nudge = np.zeros(grad.shape)
    nudge[place] = step
    ends = [similarity_distribution(
        np.asarray(student, np.float64) + sign * nudge, teacher, mask, T)[0]
            for sign in (-1, 1)]
    np.testing.assert_allclose(
        grad[place], (ends[1] - ends[0]) / (2 * step), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('temperature', (0, -1.0))
def test_temperature_must_be_positive(temperature):
  with pytest.raises(ValueError, match='^temperature must be positive; got'):
    losses.similarity_distribution(
        random(3, 4), random(3, 4), mask=jnp.ones(3, bool),
        temperature=temperature)


def test_only_the_width_may_differ():
  with pytest.raises(ValueError, match='shape, except for the last axis; got '
                     r'student\.shape=\(3, 4\), teacher\.shape=\(2, 4\)'):
    losses.similarity_distribution(
        random(3, 4), random(2, 4), mask=jnp.ones((), bool))
  with pytest.raises(ValueError, match='same shape; got'):
    losses.embedding_cosine(random(3, 4), random(3, 5), mask=jnp.ones(3, bool))
