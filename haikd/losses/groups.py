"""What losses on groups of examples or positions share."""

from collections.abc import Callable
import math

import jax
from jax import lax
import jax.numpy as jnp

from haikd.core import base

# What is computed for pairs is computed at once up to this many numbers, and
# otherwise piece by piece, again in the backward pass.
MOST_AT_ONCE = 2**24


def examples(mask: jax.Array) -> jax.Array:
  """Returns which examples have a position that counts: bool, `[B]`."""
  return mask.reshape(mask.shape[0], -1).any(axis=-1)


def pairs(real: jax.Array) -> jax.Array:
  """Returns which pairs are of two examples that count: bool, `[B, B]`."""
  return real[:, None] & real & ~jnp.eye(real.size, dtype=bool)


def flat(features: jax.Array) -> jax.Array:
  """Returns one row an example."""
  return features.reshape(features.shape[0], -1)


def products(first: jax.Array, second: jax.Array) -> jax.Array:
  """Returns the products of rows, which differences must not round away."""
  return jnp.matmul(first, second.T, precision=lax.Precision.HIGHEST)


def for_each(function: Callable, *rows: jax.Array) -> jax.Array:
  """Returns `function(index, *rows)` for each index of the rows, stacked."""
  indices = jnp.arange(len(rows[0]))
  call = lambda index: function(index, *rows)
  width = max(x.shape[0] + x.shape[1] for x in rows)
  if len(indices)**2 * width <= MOST_AT_ONCE:
    return jax.vmap(call)(indices)
  return lax.map(jax.checkpoint(call), indices)


def mean_of_groups(values: jax.Array, keep: jax.Array, real: jax.Array, *,
                   size: int, distinct: bool = True) -> base.LossSum:
  """Sums over groups of examples.

  Args:
    values: of the groups, or sums over them.
    keep: bool, which values count.
    real: bool, `[B]`, which examples count.
    size: of a group.
    distinct: whether the examples of a group differ.

  Returns:
    A LossSum; the count is the number of groups.
  """
  number = jnp.sum(real, dtype=jnp.float32)  # Exact: there are few examples.
  count = math.prod(number - i * distinct for i in range(size))
  return base.LossSum(jnp.sum(jnp.where(keep, values, 0.0)),
                      jnp.maximum(count, 0.0))
