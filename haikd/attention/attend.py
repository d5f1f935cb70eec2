"""Attention in blocks: no large map is materialised, in either direction."""

import functools

import jax
from jax import export
import jax.numpy as jnp

from haikd.attention import bias as bias_lib
from haikd.attention import block_loops
from haikd.attention import blocks as blocks_lib
from haikd.attention import gradients
from haikd.attention import maps as maps_lib
from haikd.attention import whole
from haikd.core import base
from haikd.core import mesh_context
from haikd.core import tap as tap_lib

# A network has many layers; twice the loops would double its compile time.
_ROWS_OF_LOOP = 512


def attend(query_key: base.QueryKey, value: jax.Array) -> jax.Array:
  """Returns the values that queries attend to, weighted by the softmax.

  It is exact: every row of the maps is computed at once. Maps of up to 8 MiB
  are kept for the backward pass. Larger ones are not materialised: the backward
  pass computes them again from each row's log-sum-exp, which is kept with the
  inputs and outputs. Softmax and sums are in float32, whatever the dtype of the
  arguments. Reverse mode only: `jax.jvp` is not supported.

  Additive over `B`: examples do not interact.

  Args:
    query_key: queries `[B, N, H, K]`, keys `[B, M, G, K]`, a mask, a soft cap
      and a bias.
    value: `[B, M, G, E]` floating.

  Returns:
    `[B, N, H, E]` in the dtype of `value`. A query that may attend to no key
    gives 0 and has no gradient. A padded query may also give 0: blocks without
    a real query, as an AttentionMask says, are skipped. Do not read outputs at
    padding.

  References:
    Dao et al., FlashAttention, arXiv:2205.14135, for the backward pass.
  """
  return _attend_and_keep(query_key, value)[0]


def attend_and_tap(query_key: base.QueryKey, value: jax.Array) -> jax.Array:
  """Does what `attend` does, and offers the maps as the tap `maps`.

  Args:
    query_key: as for `attend`.
    value: likewise.

  Returns:
    As `attend`.
  """
  outputs, query_key = _attend_and_keep(query_key, value)
  tap_lib.tap('maps', query_key)
  return outputs


def _attend_and_keep(query_key, value):
  """Attends; returns the query_key with its maps, where they are kept."""
  query, key, mask, soft_cap, bias, _ = query_key
  if any(map(export.is_symbolic_dim, query_key.shape)):
    return _attend_at_once(query_key, value), query_key
  # Under `jax.shard_map` arguments, and so their gradients, get one type.
  query, key, value, bias = mesh_context.vary_like(
      (query, key, value, bias), query, key, value, mask)
  arguments = query, key, value, mask, soft_cap, bias
  blocks = _cut(query, key, mask)
  if whole.is_small(query_key.shape, blocks):
    outputs, maps = whole.attend(blocks, *arguments)
    return outputs, query_key._replace(maps=maps)
  return _attend(*arguments), query_key


def _attend_at_once(query_key, value):
  """Attends for sizes that an exported program learns when it is called.

  Sizes that are not known cannot be cut into blocks.
  """
  value = jnp.repeat(value, query_key.query.shape[2] // value.shape[2], axis=2)
  maps = query_key.materialise().astype(value.dtype)
  return jnp.einsum('bhnm,bmhe->bnhe', maps, value,
                    preferred_element_type=jnp.float32).astype(value.dtype)


@jax.custom_vjp
def _attend(query, key, value, mask, soft_cap, bias):
  return _forward(query, key, value, mask, soft_cap, bias)[0]


def _forward(query, key, value, mask, soft_cap, bias):
  outputs, log_totals = _run_forward(
      _cut(query, key, mask), query, key, value, mask, soft_cap, bias)
  return outputs, (query, key, value, mask, soft_cap, bias, outputs,
                   log_totals)


# Layers of one shape share a trace.
@functools.partial(jax.jit, static_argnums=0)
def _run_forward(blocks, query, key, value, mask, soft_cap, bias):
  groups = key.shape[2]
  mask_arrays, mask_of = maps_lib.split_mask(mask, query.shape[0],
                                             blocks.padded_rows)
  block_bias = bias_lib.of_blocks(bias, query.shape[1], blocks)

  def block(sums, query, keys, mask_arrays, place):
    key, value = keys
    weights, total, log_total = maps_lib.softmax_parts(
        maps_lib.scores(
            maps_lib.queries_by_key_head(query, groups), key,
            mask_of(mask_arrays), soft_cap, block_bias, place))
    outputs = jnp.einsum(
        'bgqk,bgkd->bgqd',
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32)
    outputs = (outputs * (1.0 / total)).astype(value.dtype)
    by_row = lambda x: maps_lib.queries_by_row(x, query.shape[1])
    return sums, (by_row(outputs), by_row(log_total)[..., 0])

  heads = query.shape[2]
  results = (jax.ShapeDtypeStruct((heads, value.shape[3]), value.dtype),
             jax.ShapeDtypeStruct((heads,), jnp.float32))
  _, (outputs, log_totals) = block_loops.run(
      blocks, block, query, [(key, None), (value, None)], mask_arrays, (),
      results, maps_lib.real_positions(mask))
  return outputs, log_totals


def _backward(residuals, gradient):
  query, key, _, mask, *_ = residuals
  return _run_backward(_cut(query, key, mask), residuals, gradient)


@functools.partial(jax.jit, static_argnums=0)
def _run_backward(blocks, residuals, gradient):
  query, key, value, mask, soft_cap, bias, outputs, log_totals = residuals
  batch, _, groups, _ = key.shape
  mask_arrays, mask_of = maps_lib.split_mask(mask, batch, blocks.padded_rows)
  block_bias = bias_lib.of_blocks(bias, query.shape[1], blocks)
  # The term of the softmax's gradient that is the same for a row.
  common = jnp.einsum(
      'bnhd,bnhd->bnh', gradient, outputs, preferred_element_type=jnp.float32)

  def block(sums, rows, keys, mask_arrays, place):
    query, gradient, log_total, common = (
        maps_lib.queries_by_key_head(x, groups) for x in rows)
    key, value = keys
    scores = maps_lib.scores(
        query, key, mask_of(mask_arrays), soft_cap, block_bias, place)
    maps = jnp.exp(scores - log_total)
    into_maps = jnp.einsum(
        'bgqd,bgkd->bgqk', gradient, value, preferred_element_type=jnp.float32)
    of_scores = maps * (into_maps - common)
    into_scores = gradients.before_cap(
        of_scores, query, key, soft_cap).astype(query.dtype)
    of_query = gradients.query_gradient(into_scores, key).astype(query.dtype)
    more = (gradients.key_gradient(into_scores, query),
            gradients.key_gradient(maps.astype(gradient.dtype), gradient))
    of_keys, of_bias = sums
    of_keys = tuple(
        gradients.add_to_keys(x, y, place.keys) for x, y in zip(of_keys, more))
    if block_bias is not None:
      of_bias += block_bias.gradient(of_scores, place)
    return (of_keys, of_bias), maps_lib.queries_by_row(
        of_query, rows[0].shape[1])

  init = (tuple(gradients.zero_key_sums(x, blocks.examples)
                for x in (key, value)), bias_lib.zero_sum(block_bias))
  (of_keys, of_bias), of_query = block_loops.run(
      blocks, block, (query, gradient, log_totals[..., None],
                      common[..., None]),
      [(key, None), (value, None)], mask_arrays, init,
      jax.ShapeDtypeStruct(query.shape[2:], query.dtype),
      maps_lib.real_positions(mask))
  of_key, of_value = map(gradients.join_key_sums, of_keys)
  return (of_query, of_key.astype(key.dtype), of_value.astype(value.dtype),
          None, None, bias_lib.join_sums(of_bias, bias))


_attend.defvjp(_forward, _backward)


def _cut(query, key, mask):
  batch, queries, heads, _ = query.shape
  causal, window = maps_lib.causal_and_window(mask)
  return blocks_lib.cut(
      batch, heads, queries, key.shape[1], causal=causal, window=window,
      rows_of_loop=_ROWS_OF_LOOP)
