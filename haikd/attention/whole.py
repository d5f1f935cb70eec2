"""Attention with small maps, which are computed once and kept.

Losses on the maps and the backward pass read them. Larger maps are computed
anew in blocks, see `attend`.
"""

import functools
from typing import Any, Optional

import jax
import jax.numpy as jnp

from haikd.attention import bias as bias_lib
from haikd.attention import blocks as blocks_lib
from haikd.attention import gradients
from haikd.attention import maps as maps_lib

# Bytes of a layer's maps. All layers keep theirs until the backward pass, and
# twice in a loop over layers for a loss on them, so it is no more on devices
# that have larger blocks.
_MAX_BYTES = 2**23


def is_small(shape: tuple[int, ...], blocks: blocks_lib.Blocks) -> bool:
  """Returns whether maps are small enough to keep.

  Args:
    shape: `[B, H, N, M]`.
    blocks: how the maps would be cut.
  """
  batch, heads, queries, keys = shape
  is_one = blocks.examples == batch and blocks.num_blocks == 1
  return is_one and 4 * batch * heads * queries * keys <= _MAX_BYTES


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(blocks: blocks_lib.Blocks, query: jax.Array, key: jax.Array,
           value: jax.Array, mask: maps_lib.Mask, soft_cap: Optional[jax.Array],
           bias: Optional[jax.Array]) -> tuple[jax.Array, jax.Array]:
  """Does what `attend.attend` does, and returns the maps as well.

  Args:
    blocks: a single block.
    query: as in `base.QueryKey`.
    key: likewise.
    value: `[B, M, G, E]` floating.
    mask: as in `base.QueryKey`.
    soft_cap: likewise.
    bias: likewise.

  Returns:
    `[B, N, H, E]` in the dtype of `value`; and `[B, H, N, M]` float32.
  """
  return _run_forward(blocks, query, key, value, mask, soft_cap, bias)


# Layers of one shape share a trace.
@functools.partial(jax.jit, static_argnums=0)
def _run_forward(blocks, query, key, value, mask, soft_cap, bias):
  batch, rows, heads, _ = query.shape
  mask_arrays, mask_of = maps_lib.split_mask(mask, batch, rows)
  weights, total, _ = maps_lib.softmax_parts(
      maps_lib.scores(
          maps_lib.queries_by_key_head(query, key.shape[2]), _by_head(key),
          mask_of(mask_arrays), soft_cap,
          bias_lib.of_blocks(bias, rows, blocks), _place(blocks)))
  outputs = jnp.einsum(
      'bgqk,bgkd->bgqd',
      weights.astype(value.dtype),
      _by_head(value),
      preferred_element_type=jnp.float32)
  scale = 1.0 / total
  outputs = (outputs * scale).astype(value.dtype)
  return (maps_lib.queries_by_row(outputs, rows),
          (weights * scale).reshape(batch, heads, rows, -1))


def _forward(blocks, *arguments):
  outputs, maps = _run_forward(blocks, *arguments)
  return (outputs, maps), (*arguments, maps)


@functools.partial(jax.jit, static_argnums=0)
def _backward(blocks: blocks_lib.Blocks, residuals: Any, of_results: Any):
  query, key, value, _, soft_cap, bias, maps = residuals
  of_outputs, of_maps = of_results
  rows, groups = query.shape[1], key.shape[2]
  queries, keys = maps_lib.queries_by_key_head(query, groups), _by_head(key)
  into_maps = of_maps + jnp.einsum(
      'bgqd,bgkd->bgqk',
      maps_lib.queries_by_key_head(of_outputs, groups),
      _by_head(value),
      preferred_element_type=jnp.float32).reshape(maps.shape)
  of_scores = gradients.into_softmax(maps, into_maps)
  by_group = (*queries.shape[:3], -1)
  into_scores = gradients.before_cap(
      of_scores.reshape(by_group), queries, keys, soft_cap).astype(query.dtype)
  of_query = maps_lib.queries_by_row(
      gradients.query_gradient(into_scores, keys), rows)
  of_key = _key_gradient(into_scores, query)
  of_value = _key_gradient(
      maps.reshape(by_group).astype(of_outputs.dtype), of_outputs)
  of_bias = None
  if block_bias := bias_lib.of_blocks(bias, rows, blocks):
    of_bias = block_bias.gradient(
        of_scores, _place(blocks)).astype(bias.dtype)
  return (of_query.astype(query.dtype), of_key.astype(key.dtype),
          of_value.astype(value.dtype), None, None, of_bias)


attend.defvjp(_forward, _backward)


def _key_gradient(into_scores, query):
  """Returns `[B, M, G, K]` float32 of `[B, G, H/G N, M]` and `[B, N, H, K]`."""
  batch, rows, _, size = query.shape
  groups = into_scores.shape[1]
  # Features before queries: on CPU the product takes half as long, and a step
  # of `digits_vit` 4 % less than with `gradients.key_gradient`.
  by_feature = query.reshape(batch, rows, groups, -1, size)
  by_feature = by_feature.transpose(0, 2, 4, 3, 1)
  of_key = jnp.einsum(
      'bgdq,bgqk->bgdk', by_feature.reshape(batch, groups, size, -1),
      into_scores, preferred_element_type=jnp.float32)
  return jnp.transpose(of_key, (0, 3, 1, 2))


def _by_head(keys):
  """Returns `[B, G, M, K]` of `[B, M, G, K]`."""
  return jnp.swapaxes(keys, 1, 2)


def _place(blocks):
  return blocks.place(blocks.spans[0], 0)
