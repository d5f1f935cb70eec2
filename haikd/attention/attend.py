"""Attention without maps: a block of them at a time, in both directions."""

import jax
import jax.numpy as jnp

from haikd.attention import blocks as blocks_lib
from haikd.attention import maps as maps_lib
from haikd.core import base
from haikd.core import mesh_context

# A network has many layers: twice the loops would compile for twice as long.
_ROWS_OF_LOOP = 512


def attend(query_key: base.QueryKey, value: jax.Array) -> jax.Array:
  """Returns the values that queries look at, weighted by the softmax.

  It is exact: every row of the maps is computed at once. The maps are never
  whole; the backward pass computes them again from the logarithms of the sums
  in the softmax, which it keeps beside its inputs and outputs. Softmax and sums
  are in float32, whatever comes in. Forward-mode derivatives there are none.

  Additive over `B`: examples do not interact.

  Args:
    query_key: queries `[B, N, H, K]`, keys `[B, M, G, K]` and a mask.
    value: `[B, M, G, E]` floating.

  Returns:
    `[B, N, H, E]` in the dtype of `value`. A query that may look at no key
    gives 0 and has no gradient. So may one in a block where, as an
    AttentionMask says, none is real: what a query in padding gives is not to be
    used.

  References:
    Dao et al., FlashAttention, arXiv:2205.14135, for the backward pass.
  """
  query, key, mask = query_key
  # Of one type, and so their gradients, where each device has its own part.
  query, key, value = mesh_context.alike((query, key, value), query, key,
                                         value, mask)
  return _attend(query, key, value, mask)


@jax.custom_vjp
def _attend(query, key, value, mask):
  return _forward(query, key, value, mask)[0]


def _forward(query, key, value, mask):
  groups = key.shape[2]
  blocks = _cut(query, key, mask)
  own, mask_of = maps_lib.by_example(mask, query.shape[0],
                                     blocks.count * blocks.rows)

  def block(sums, query, keys, own, place):
    key, value = keys
    weights, total, log_total = maps_lib.softmax(
        maps_lib.scores(
            maps_lib.queries_by_key_head(query, groups), key, mask_of(own),
            place))
    outputs = jnp.einsum(
        'bgqk,bgkd->bgqd',
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32)
    outputs = (outputs * (1.0 / total)).astype(value.dtype)
    back = lambda x: maps_lib.queries_by_row(x, query.shape[1])
    return sums, (back(outputs), back(log_total)[..., 0])

  _, (outputs, log_totals) = blocks_lib.run(
      blocks, block, query, [(key, None), (value, None)], own, (),
      maps_lib.real_positions(mask))
  return outputs, (query, key, value, mask, outputs, log_totals)


def _backward(kept, gradient):
  query, key, value, mask, outputs, log_totals = kept
  batch, _, groups, _ = key.shape
  blocks = _cut(query, key, mask)
  own, mask_of = maps_lib.by_example(mask, batch, blocks.count * blocks.rows)
  # The part of the softmax's gradient that is common to a row.
  common = jnp.einsum(
      'bnhd,bnhd->bnh', gradient, outputs, preferred_element_type=jnp.float32)

  def block(sums, rows, keys, own, place):
    query, gradient, log_total, common = (
        maps_lib.queries_by_key_head(x, groups) for x in rows)
    key, value = keys
    scores = maps_lib.scores(query, key, mask_of(own), place)
    maps = jnp.exp(scores - log_total)
    into_maps = jnp.einsum(
        'bgqd,bgkd->bgqk', gradient, value, preferred_element_type=jnp.float32)
    into_scores = (maps * (into_maps - common)).astype(query.dtype)
    of_query = maps_lib.of_queries(into_scores, key).astype(query.dtype)
    more = (maps_lib.of_keys(into_scores, query),
            maps_lib.of_keys(maps.astype(gradient.dtype), gradient))
    sums = tuple(
        maps_lib.add_keys(x, y, place.keys) for x, y in zip(sums, more))
    return sums, maps_lib.queries_by_row(of_query, rows[0].shape[1])

  init = tuple(maps_lib.key_sums(x, blocks.examples) for x in (key, value))
  sums, of_query = blocks_lib.run(
      blocks, block, (query, gradient, log_totals[..., None],
                      common[..., None]),
      [(key, None), (value, None)], own, init, maps_lib.real_positions(mask))
  of_key, of_value = map(maps_lib.keys_back, sums)
  return (of_query, of_key.astype(key.dtype), of_value.astype(value.dtype),
          None)


_attend.defvjp(_forward, _backward)


def _cut(query, key, mask):
  batch, queries, heads, _ = query.shape
  causal, window = maps_lib.rules(mask)
  return blocks_lib.cut(
      batch, heads, queries, key.shape[1], causal=causal, window=window,
      rows_of_loop=_ROWS_OF_LOOP)
