"""The hierarchical context loss against loops in NumPy, float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import losses

STEP = 1e-5


def mean_over(values, mask, side):
  """Averages places that count in `side` parts of each axis, by area."""
  height, width, _ = values.shape
  parts = (min(side, height), min(side, width))
  squares, count = 0.0, 0
  for i in range(parts[0]):
    for j in range(parts[1]):
      total, weight = np.zeros(values.shape[-1]), 0.0
      for y in range(height):
        for x in range(width):
          area = 1.0
          for place, size, number, part in (
              (y, height, i, parts[0]), (x, width, j, parts[1])):
            area *= max(0.0, min(place + 1, (number + 1) * size / part) - max(
                place, number * size / part))
          if area > 1e-9 and mask[y, x]:
            total, weight = total + area * values[y, x], weight + area
      if weight:
        squares, count = squares + ((total / weight)**2).sum(), count + 1
  return squares / max(count * values.shape[-1], 1)


def in_numpy(student, teacher, mask, levels):
  """Returns the total and the count."""
  total = 0.0
  for s, t, m in zip(student, teacher, mask):
    height, width, _ = s.shape
    parts = [(1.0, mean_over(s - t, m, max(height, width)))]
    for level in levels:
      if level < max(height, width):
        parts.append((parts[-1][0] / 2, mean_over(s - t, m, level)))
    total += sum(w * x for w, x in parts) / sum(w for w, _ in parts)
  return total, mask.reshape(len(mask), -1).any(1).sum()


@pytest.mark.parametrize('places', (False, True))
def test_hierarchical_context_is_that_of_numpy(places):
  rng = np.random.RandomState(0)
  levels = (4, 2, 1) if places else (3, 1)
  student, teacher = rng.randn(2, 3, 5, 3, 2)
  mask = rng.rand(3, 5, 3) < 0.6 if places else np.ones((3, 5, 3), bool)
  mask[1] = False
  call = functools.partial(losses.hierarchical_context, levels=levels,
                           mask=jnp.asarray(mask if places else mask[:, 0, 0]))
  (total, count), gradient = jax.jit(jax.value_and_grad(
      lambda s: call(s, jnp.float32(teacher)), has_aux=True))(
          jnp.float32(student))
  expected = in_numpy(student, teacher, mask, levels)
  np.testing.assert_allclose((total, count), expected, rtol=1e-5)
  slopes = np.zeros_like(student)
  for index in np.ndindex(*student.shape):
    ends = []
    for step in (STEP, -STEP):
      moved = student.copy()
      moved[index] += step
      ends.append(in_numpy(moved, teacher, mask, levels)[0])
    slopes[index] = (ends[0] - ends[1]) / (2 * STEP)
  np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-7)


def test_a_shift_of_all_places_is_seen_at_every_level():
  # Errors of 1 everywhere are 1 at each level. Of a chessboard of 1 and -1,
  # whose means are 0, only the first weight of 1 + 1/2 + 1/4 + 1/8 is left.
  zeros, mask = jnp.zeros((1, 8, 8, 1)), jnp.ones(1, bool)
  board = (-1.0)**np.add.outer(range(8), range(8))[None, ..., None]
  assert losses.hierarchical_context(
      zeros, zeros + 1, mask=mask).total == pytest.approx(1)
  assert losses.hierarchical_context(
      zeros, jnp.float32(board), mask=mask).total == pytest.approx(8 / 15)


@pytest.mark.parametrize('shape, levels, match', (
    ((2, 3, 4), (4, 2, 1), r'must be maps, \[B, h, w, D\]; got'),
    ((2, 3, 3, 4), (2, 4), r'levels must fall, to 1 or more; got \(2, 4\)'),
    ((2, 3, 3, 4), (2, 0), 'levels must fall')))
def test_what_has_no_levels_is_refused(shape, levels, match):
  with pytest.raises(ValueError, match=match):
    losses.hierarchical_context(jnp.ones(shape), jnp.ones(shape),
                                mask=jnp.ones(2, bool), levels=levels)
