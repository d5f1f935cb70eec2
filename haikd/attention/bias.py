"""A bias of attention scores that depends on distances alone."""

from typing import NamedTuple, Optional

import jax
from jax import lax
import jax.numpy as jnp

from haikd.attention import blocks as blocks_lib
from haikd.core import distances
from haikd.core import mesh_context


class Bias(NamedTuple):
  """What is added to the scores of all rows, those of padded blocks included.

  Attributes:
    values: `[H, rows + M - 1]` floating, by distance, as `distances.expand`
      takes them.
    rows: how many rows all blocks have together.
  """

  values: jax.Array
  rows: int

  def block(self, place: blocks_lib.Place) -> jax.Array:
    """Returns what is added to the scores of a block, `[H, q, k]` float32."""
    return self._block(self.values.astype(jnp.float32), place)

  def gradient(self, into_scores: jax.Array,
               place: blocks_lib.Place) -> jax.Array:
    """Returns the gradient of `values`, in float32.

    Args:
      into_scores: the gradient of the scores of a block, `[b, ...]` float32,
        whose axes after the first hold the same numbers as `[H, q, k]`.
      place: of the block.
    """
    zeros = mesh_context.vary_like(
        jnp.zeros(self.values.shape, jnp.float32), into_scores)
    transpose = jax.linear_transpose(lambda x: self._block(x, place), zeros)
    shape = (self.values.shape[0], place.queries[1], place.keys[1])
    return transpose(jnp.sum(into_scores, axis=0).reshape(shape))[0]

  def _block(self, values, place):
    (first_query, queries), (first_key, keys) = place
    start = first_key - first_query + self.rows - queries
    part = lax.dynamic_slice_in_dim(values, start, queries + keys - 1, axis=1)
    return distances.expand(part, queries, keys)


def of_blocks(bias: Optional[jax.Array], queries: int,
              blocks: blocks_lib.Blocks) -> Optional[Bias]:
  """Returns the bias of blocks, whose rows may be more than the queries.

  Args:
    bias: `[H, N + M - 1]`, as in `base.QueryKey`; or None.
    queries: N.
    blocks: how the maps are cut.
  """
  if bias is None:
    return None
  padding = blocks.padded_rows - queries
  return Bias(jnp.pad(bias, ((0, 0), (padding, 0))), blocks.padded_rows)


def zero_sum(bias: Optional[Bias]) -> Optional[jax.Array]:
  """Returns zeros for the sum of gradients of the values; None for None."""
  return None if bias is None else jnp.zeros(bias.values.shape, jnp.float32)


def join_sums(sums: Optional[jax.Array],
              bias: Optional[jax.Array]) -> Optional[jax.Array]:
  """Returns the gradient of a bias, given the sums of groups of examples.

  Args:
    sums: `[groups, H, rows + M - 1]` float32; None without a bias.
    bias: `[H, N + M - 1]`; or None.
  """
  if bias is None or sums is None:
    return None
  padding = sums.shape[-1] - bias.shape[-1]
  return jnp.sum(sums, axis=0)[:, padding:].astype(bias.dtype)
