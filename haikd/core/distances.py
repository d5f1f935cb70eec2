"""Values that depend on the distance from a query to a key alone."""

import jax
import jax.numpy as jnp


def expand(values: jax.Array, queries: int, keys: int) -> jax.Array:
  """Returns the value of each query and key, given that of each distance.

  Neither it nor its gradient gathers or scatters, which are slow on CPU.

  Args:
    values: `[..., queries + keys - 1]`, from the distance of the first key from
      the last query, which is negative, to that of the last key from the first
      query.
    queries: the number of queries.
    keys: the number of keys.

  Returns:
    `[..., queries, keys]`; the entry of query i and key j is the column
    j - i + queries - 1 of `values`.
  """
  # Rows of `length` numbers, laid one after another and cut into rows of one
  # number less, begin one number earlier each time.
  length = queries + keys
  padded = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])
  from_zero = jnp.concatenate(
      [padded[..., queries - 1:], padded[..., :queries - 1]], axis=-1)
  rows = jnp.broadcast_to(from_zero[..., None, :],
                          (*values.shape[:-1], queries, length))
  rows = rows.reshape(*values.shape[:-1], queries * length)
  rows = rows[..., :queries * (length - 1)]
  return rows.reshape(*values.shape[:-1], queries, length - 1)[..., :keys]
