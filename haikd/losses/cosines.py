"""Angles between vectors, safe where a vector is 0."""

import functools

import jax
from jax import custom_derivatives
import jax.numpy as jnp


def directions(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns vectors of length 1.

  Args:
    vectors: `[..., D]` floating.

  Returns:
    An array like `vectors`, and bool `[...]`, whether a vector is not 0. A
    vector that is 0 stays 0, and so does its gradient.
  """
  scale, nonzero = _inverse_length(vectors)
  return vectors * scale, nonzero[..., 0]


def lengths(vectors: jax.Array) -> jax.Array:
  """Returns the length of each vector, `[...]` for `[..., D]`.

  A vector that is 0 has no gradient.
  """
  scale, nonzero = _inverse_length(vectors)
  return jnp.where(nonzero, 1.0 / scale, 0.0)[..., 0]


@jax.custom_jvp
def distance(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Returns 1 - cos of the angle between vectors.

  It is computed as half the squared difference of the unit vectors, which is
  the same number but never rounded below 0.

  Args:
    student: `[..., D]` floating.
    teacher: like `student`.

  Returns:
    `[...]`, from 0 to 2. Where either vector is 0, the distance and its
    gradient are 0.
  """
  distances, both = _compare(student, teacher)
  return jnp.where(both, distances, 0.0)


# With the unit vectors s^ and t^, the derivative with respect to s is
# (cos s^ - t^) / |s|. It takes one pass; differentiating the formula would take
# several.
@functools.partial(distance.defjvp, symbolic_zeros=True)
def _distance_jvp(primals, tangents):
  (first, second), (by_first, by_second) = primals, tangents
  first_scale, first_nonzero = _inverse_length(first)
  second_scale, second_nonzero = _inverse_length(second)
  both = first_nonzero & second_nonzero
  units = first * first_scale, second * second_scale
  distances = 0.5 * jnp.sum(
      jnp.square(units[0] - units[1]), axis=-1, keepdims=True)
  cosine = 1.0 - distances
  result = jnp.zeros_like(distances[..., 0])
  for unit, other, scale, tangent in (
      (*units, first_scale, by_first), (*units[::-1], second_scale, by_second)):
    if not isinstance(tangent, custom_derivatives.SymbolicZero):
      slope = jnp.where(both, scale, 0.0) * (cosine * unit - other)
      result += jnp.sum(slope * tangent, axis=-1)
  return jnp.where(both, distances, 0.0)[..., 0], result


def similarity(first: jax.Array, second: jax.Array) -> jax.Array:
  """Returns the cosine of the angle between vectors.

  Args:
    first: `[..., D]` floating.
    second: like `first`.

  Returns:
    `[...]`, from -1 to 1, exactly 1 for equal vectors; 0 where either is 0.
  """
  distances, both = _compare(first, second)
  return jnp.where(both, 1.0 - distances, 0.0)


def _compare(first, second):
  first, first_nonzero = directions(first)
  second, second_nonzero = directions(second)
  distances = 0.5 * jnp.sum(jnp.square(first - second), axis=-1)
  return distances, first_nonzero & second_nonzero


def _inverse_length(vectors):
  """Returns 1 / length, and whether a vector is not 0, both `[..., 1]`."""
  squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
  nonzero = squares > 0.0
  # The root has no derivative at 0.
  return 1.0 / jnp.sqrt(jnp.where(nonzero, squares, 1.0)), nonzero
