"""Losses on attention maps that are never whole.

A loss that is a sum over rows is computed block by block, and with it, while
the block is there, its gradient with respect to queries and keys. The backward
pass then only multiplies that by what the sum weighs in the objective.
"""

from collections.abc import Callable
from typing import Optional

import jax
from jax import lax
import jax.numpy as jnp

from haikd.attention import blocks as blocks_lib
from haikd.attention import maps as maps_lib
from haikd.core import base
from haikd.core import masking
from haikd.core import mesh_context

# More loops than in attention, of which a step has more: 8 at N = 1024. With
# four it takes 5 to 15 % more time, and two thirds as long to compile; see
# tests/bench/attention_blocks.py.
_ROWS_OF_LOOP = 128


def compare(function: Callable, student: maps_lib.MeanMaps,
            teacher: Optional[maps_lib.MeanMaps],
            mask: jax.Array,
            *,
            by_head: bool = False) -> base.LossSum:
  """Evaluates a loss on maps that are not computed yet.

  Additive over `B`.

  Args:
    function: `(student, teacher, *, mask) -> LossSum` of maps `[b, H, n, m]`
      float32 and mask bool `[b, n]`: a sum over rows, its count one of the mask
      alone. The maps of a block lack keys that no row there looks at; those in
      padding are 0.
    student: stands for `[B, H, N, N]`.
    teacher: likewise, or None for a loss that takes none.
    mask: bool, `[B]` or `[B, N]`, true where a position counts.
    by_head: whether the loss is a sum over heads as well: blocks may then have
      some heads alone, and be smaller.

  Returns:
    A LossSum; the total has a gradient for queries and keys on both sides, if
    it is asked for.
  """
  if mask.ndim == 1:
    mask = jnp.broadcast_to(mask[:, None], student.shape[::2])
  sides = tuple(x for x in (student, teacher) if x is not None)

  def loss(*pooled, mask):
    return function(*(*pooled, None)[:2], mask=mask)

  count = _count(loss, sides, mask)
  if by_head:
    sides, mask = maps_lib.heads_as_examples(sides, mask)
  masks = tuple(tuple(x.mask for x in side.sources) for side in sides)
  operands = tuple(
      tuple((x.query, x.key) for x in side.sources) for side in sides)
  heads = tuple(side.heads for side in sides)

  @jax.custom_vjp
  def total(operands, masks, mask):
    return _fold(loss, heads, operands, masks, mask, (False,) * len(sides))[0]

  def forward(operands, masks, mask):
    wanted = tuple(
        any(x.perturbed for x in jax.tree.leaves(side)) for side in operands)
    operands, masks, mask = jax.tree.map(lambda x: x.value,
                                         (operands, masks, mask))
    value, gradients = _fold(loss, heads, operands, masks, mask, wanted)
    like = jax.tree.map(lambda x: jnp.zeros((0,), x.dtype), operands)
    return value, (gradients, like)

  def backward(kept, cotangent):
    gradients, like = kept
    scaled = tuple(
        own and jax.tree.map(lambda x, y: (cotangent * x).astype(y.dtype), own,
                             alike) for own, alike in zip(gradients, like))
    return scaled, None, None

  total.defvjp(forward, backward, symbolic_zeros=True)
  operands, masks, mask = mesh_context.alike((operands, masks, mask),
                                             operands, masks, mask)
  return base.LossSum(total(operands, masks, mask), count)


def _count(loss, sides, mask):
  """Returns the count, of which a compiler sees that it takes no maps."""

  def count(mask):
    zeros = (jnp.zeros(side.shape, jnp.float32) for side in sides)
    return loss(*zeros, mask=mask).count

  return jax.jit(count)(mask)


def _fold(loss, heads, operands, masks, mask, wanted):
  """Returns the total, and for each side (query, key) gradients, or None."""
  sources = [x for side in operands for x in side]
  batch, length = mask.shape
  rules = [maps_lib.rules(x) for side in masks for x in side]
  windows = [window for _, window in rules]
  blocks = blocks_lib.cut(
      batch,
      max(query.shape[2] for query, _ in sources),
      length,
      sources[0][1].shape[1],
      causal=all(causal for causal, _ in rules),
      window=None if None in windows else max(windows),
      rows_of_loop=_ROWS_OF_LOOP)
  split = [[
      maps_lib.by_example(x, batch, blocks.count * blocks.rows) for x in side
  ] for side in masks]

  def block(sums, rows, keys, whole, place):
    queries, keep = rows
    owns, real = whole
    keys = iter(keys)
    keys = [[next(keys) for _ in side] for side in operands]
    real = lax.dynamic_slice_in_dim(real, *place.keys, axis=1)
    counts = keep[:, None, :, None] & real[:, None, None, :]
    # What stands behind a mask is multiplied by 0, which NaN survives.
    queries = [[
        maps_lib.queries_by_key_head(masking.clean(x, keep), key.shape[1])
        for x, key in zip(*side)
    ] for side in zip(queries, keys)]
    maps = tuple(
        tuple(
            maps_lib.weights(query, key, mask_of(own), place)
            for query, key, own, (_, mask_of) in zip(*side))
        for side in zip(queries, keys, owns, split))

    def total(maps):
      pooled = (
          jnp.where(counts, maps_lib.mean(side, number), 0.0)
          for side, number in zip(maps, heads))
      return loss(*pooled, mask=keep).total

    if not any(wanted):
      return (sums[0] + total(maps), sums[1]), ()
    value, pull = jax.vjp(
        lambda some: total(
            tuple(x if own else y for x, y, own in zip(some, maps, wanted))),
        tuple(x if own else () for x, own in zip(maps, wanted)))
    into_maps, = pull(mesh_context.alike(jnp.ones_like(value), value))
    of_keys, of_queries = [], []
    for side, own in enumerate(wanted):
      found = [
          maps_lib.through_softmax(*x)
          for x in zip(maps[side], into_maps[side], queries[side], keys[side])
      ] if own else []
      of_queries.append(tuple(x for x, _ in found))
      of_keys.append(tuple(
          maps_lib.add_keys(x, y, place.keys)
          for x, (_, y) in zip(sums[1][side], found)))
    return (sums[0] + value, tuple(of_keys)), tuple(of_queries)

  init = (jnp.zeros((), jnp.float32),
          tuple(
              tuple(maps_lib.key_sums(key, blocks.examples)
                    for _, key in side if own)
              for side, own in zip(operands, wanted)))
  (totals, of_keys), of_queries = blocks_lib.run(
      blocks, block,
      (tuple(tuple(x for x, _ in side) for side in operands), mask),
      [(key, maps_lib.real_positions(own))
       for side, allowed in zip(operands, masks)
       for (_, key), own in zip(side, allowed)],
      (tuple(tuple(own for own, _ in side) for side in split), mask),
      init, mask)
  if not any(wanted):
    return jnp.sum(totals), ()
  gradients = tuple(
      tuple(zip(queries, map(maps_lib.keys_back, keys))) if own else None
      for queries, keys, own in zip(of_queries, of_keys, wanted))
  return jnp.sum(totals), gradients
