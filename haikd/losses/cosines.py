"""Directions of vectors, safe where a vector has none."""

import jax
import jax.numpy as jnp


def directions(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns vectors of length 1.

  Args:
    vectors: `[..., D]` floating.

  Returns:
    An array like `vectors`, and bool `[...]`, whether a vector has a length at
    all; one that has none stays 0, and so does its gradient.
  """
  squares = jnp.sum(jnp.square(vectors), axis=-1)
  points = squares > 0.0
  # The root has no derivative at 0.
  length = jnp.sqrt(jnp.where(points, squares, 1.0))
  return vectors / length[..., None], points


def distance(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Returns 1 - cos of the angle between vectors.

  Computed as half the squared difference of the unit vectors, the same number
  without its rounding below 0.

  Args:
    student: `[..., D]` floating.
    teacher: like `student`.

  Returns:
    `[...]`, from 0 to 2; 0, as is its gradient, where either vector is 0.
  """
  distances, both = _compare(student, teacher)
  return jnp.where(both, distances, 0.0)


def similarity(first: jax.Array, second: jax.Array) -> jax.Array:
  """Returns the cosine of the angle between vectors.

  Args:
    first: `[..., D]` floating.
    second: like `first`.

  Returns:
    `[...]`, from -1 to 1, exactly 1 for equal ones; 0 where either vector is 0.
  """
  distances, both = _compare(first, second)
  return jnp.where(both, 1.0 - distances, 0.0)


def _compare(first, second):
  first, first_points = directions(first)
  second, second_points = directions(second)
  distances = 0.5 * jnp.sum(jnp.square(first - second), axis=-1)
  return distances, first_points & second_points
