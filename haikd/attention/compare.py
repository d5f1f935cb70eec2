"""Losses on attention maps that are not materialised.

A loss that is a sum over rows is computed block by block. While a block exists,
so is the gradient with respect to its queries and keys. The backward pass only
multiplies this gradient by the weight of the sum in the objective.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional

import jax
from jax import lax
import jax.numpy as jnp

from haikd.attention import bias as bias_lib
from haikd.attention import block_loops
from haikd.attention import blocks as blocks_lib
from haikd.attention import gradients as gradients_lib
from haikd.attention import maps as maps_lib
from haikd.core import base
from haikd.core import masking
from haikd.core import mesh_context
from haikd.core import weighting

# More loops than in attention, of which a step has more: 8 at N = 1024. Four
# would take 5 to 15 % more time, and two thirds of the time to compile; see
# tests/bench/attention_blocks.py.
_ROWS_OF_LOOP = 128


def compare(function: Callable, student: maps_lib.MeanMaps,
            teacher: Optional[maps_lib.MeanMaps],
            mask: jax.Array,
            *,
            options: Optional[Mapping[str, Any]] = None,
            weight: Optional[jax.Array] = None,
            by_head: bool = False) -> base.LossSum:
  """Evaluates a loss on lazy maps, or on those that attention has kept.

  Additive over `B`.

  Args:
    function: `(student, teacher, *, mask, **options) -> LossSum` of maps
      `[b, H, n, m]` float32 and mask bool `[b, n]`: a sum over rows, whose
      count depends on the mask only. The maps of a block lack keys that no row
      in it attends to; padding in them is 0. Calls with the same function and
      options share a trace, if both can be hashed.
    student: maps `[B, H, N, N]`.
    teacher: maps `[B, H, N, N]`, or None for a loss that takes none.
    mask: bool, `[B]` or `[B, N]`, true where a position counts.
    options: of the function.
    weight: `[B]`, what the sums of each example are multiplied by; or None.
    by_head: whether the loss is a sum over heads as well. Blocks may then have
      only some of the heads, and be smaller.

  Returns:
    A LossSum; the total is differentiable with respect to the queries, keys and
    biases of both sides, and only the gradients asked for are computed.
  """
  if mask.ndim == 1:
    mask = jnp.broadcast_to(mask[:, None], student.shape[::2])
  sides = tuple(x for x in (student, teacher) if x is not None)
  given = tuple(sorted((options or {}).items()))
  loss = _Loss(function, given, repr(given))
  if all(x.maps is not None for side in sides for x in side.sources):
    counts = mask[:, None, :, None] & mask[:, None, None, :]
    maps = (jnp.where(counts, x.materialise(), 0.0) for x in sides)
    return loss(*maps, mask=mask, weight=weight)
  count = _count(loss, sides, mask, weight)
  if by_head:
    sides, mask = maps_lib.heads_as_examples(sides, mask)
  if weight is not None:  # Groups of heads are examples too.
    weight = jnp.repeat(weight, len(mask) // len(weight),
                        total_repeat_length=len(mask))
  rules = tuple(
      tuple((x.mask, x.soft_cap) for x in side.sources) for side in sides)
  operands = tuple(
      tuple((x.query, x.key, x.bias) for x in side.sources) for side in sides)
  heads = tuple(side.heads for side in sides)

  blocks = _cut(operands, rules, *mask.shape)
  fold = _fold if loss.is_hashable() else _fold_once

  @jax.custom_vjp
  def total(operands, rules, kept):
    wanted = (False,) * len(sides)
    return fold(loss, blocks, heads, wanted, operands, rules, *kept)[0]

  def forward(operands, rules, kept):
    wanted = tuple(
        any(x.perturbed for x in jax.tree.leaves(side)) for side in operands)
    operands, rules, kept = jax.tree.map(lambda x: x.value,
                                         (operands, rules, kept))
    value, gradients = fold(
        loss, blocks, heads, wanted, operands, rules, *kept)
    # Residuals must be arrays, so empty ones carry the dtypes.
    dtypes = jax.tree.map(lambda x: jnp.zeros((0,), x.dtype), operands)
    return value, (gradients, dtypes)

  def backward(residuals, cotangent):
    scaled = tuple(
        gradient and jax.tree.map(
            lambda x, empty: (cotangent * x).astype(empty.dtype), gradient,
            dtypes) for gradient, dtypes in zip(*residuals))
    return scaled, None, None

  total.defvjp(forward, backward, symbolic_zeros=True)
  arguments = operands, rules, (mask, weight)
  return base.LossSum(total(*mesh_context.vary_like(arguments, *arguments)),
                      count)


class _Loss(NamedTuple):
  """A loss on the maps of a block, equal to another with the same options.

  Attributes:
    function: the loss.
    options: its options by name.
    written: the options as text, since 1 and 1.0 and True are equal.
  """

  function: Callable
  options: tuple[tuple[str, Any], ...]
  written: str

  def __call__(self, *maps, mask, weight):
    call = lambda mask, student, teacher=None: self.function(
        student, teacher, mask=mask, **dict(self.options))
    return (call(mask, *maps) if weight is None else
            weighting.add_up(call, weight, mask, *maps))

  def is_hashable(self):
    """Returns whether no option is an array, such as that of a schedule."""
    try:
      hash(self)
    except TypeError:
      return False
    return True


def _count(loss, sides, mask, weight):
  """Returns the count, in a way that shows the compiler it needs no maps."""

  def count(mask, weight):
    zeros = (jnp.zeros(side.shape, jnp.float32) for side in sides)
    return loss(*zeros, mask=mask, weight=weight).count

  return jax.jit(count)(mask, weight)


class _Side(NamedTuple):
  """How the maps of one network are computed, and whether for a gradient.

  Attributes:
    heads: H, to which the heads are pooled.
    masks_of: for each map, what makes its mask; see `maps.split_mask`.
    soft_caps: for each map, the cap of its scores.
    biases: for each map, the bias of its scores, or None.
    wanted: whether the queries, keys and biases need a gradient.
  """

  heads: int
  masks_of: tuple[Callable[[Any], maps_lib.Mask], ...]
  soft_caps: tuple[Optional[jax.Array], ...]
  biases: tuple[Optional[bias_lib.Bias], ...]
  wanted: bool

  def maps(self, queries, keys, mask_arrays, place):
    """Returns the maps of a block, before pooling."""
    return tuple(
        maps_lib.block_maps(query, key, mask_of(arrays), soft_cap, bias, place)
        for query, key, mask_of, arrays, soft_cap, bias in zip(
            queries, keys, self.masks_of, mask_arrays, self.soft_caps,
            self.biases))

  def pool(self, maps, keep):
    """Returns the pooled maps, 0 where a query or key does not count."""
    return jnp.where(keep, maps_lib.mean(maps, self.heads), 0.0)


def _fold_once(loss, blocks, heads, wanted, operands, rules, mask, weight):
  """Evaluates a loss block by block, with the gradients that are wanted.

  Args:
    loss: `(*sides, mask, weight) -> LossSum`, of the maps of a block.
    blocks: how the maps are cut.
    heads: H of each side.
    wanted: for each side, whether its gradient is wanted.
    operands: for each side, (query, key, bias) of each of its maps.
    rules: for each side, (attention mask, soft cap) of each of its maps.
    mask: bool, `[B, N]`, true where a position counts.
    weight: `[B]`, or None.

  Returns:
    The total; and for each side, gradients like its operands, or None.
  """
  batch, length = mask.shape
  masks = tuple(tuple(allowed for allowed, _ in side) for side in rules)
  split = [[maps_lib.split_mask(x, batch, blocks.padded_rows) for x in side]
           for side in masks]
  mask_arrays = tuple(tuple(arrays for arrays, _ in side) for side in split)
  queries, keys, biases = (
      tuple(tuple(x[i] for x in side) for side in operands) for i in range(3))
  sides = [
      _Side(number, tuple(mask_of for _, mask_of in masks_of),
            tuple(soft_cap for _, soft_cap in of_side),
            tuple(bias_lib.of_blocks(x, length, blocks) for x in bias), want)
      for number, masks_of, of_side, bias, want in zip(
          heads, split, rules, biases, wanted)]
  structure = jax.tree.structure(keys)

  def block(sums, rows, keys, per_example, place):
    (queries, keep), (mask_arrays, real, weight) = rows, per_example
    keys = jax.tree.unflatten(structure, keys)
    real = lax.dynamic_slice_in_dim(real, *place.keys, axis=1)
    counts = keep[:, None, :, None] & real[:, None, None, :]
    # Clean before the products: 0 x NaN is NaN.
    queries = [[
        maps_lib.queries_by_key_head(masking.clean(x, keep), key.shape[1])
        for x, key in zip(*of_side)
    ] for of_side in zip(queries, keys)]
    maps = tuple(
        side.maps(*of_side, place)
        for side, *of_side in zip(sides, queries, keys, mask_arrays))

    def total(maps):
      pooled = (side.pool(x, counts) for side, x in zip(sides, maps))
      return loss(*pooled, mask=keep, weight=weight).total

    if not any(wanted):
      return (sums[0] + total(maps), *sums[1:]), ()
    value, pullback = jax.vjp(
        lambda variables: total(
            tuple(x or constant for x, constant in zip(variables, maps))),
        tuple(x if side.wanted else () for side, x in zip(sides, maps)))
    into_maps, = pullback(mesh_context.vary_like(jnp.ones_like(value), value))
    gradients = [
        [gradients_lib.softmax_backward(*x)
         for x in zip(*of_side, side.soft_caps)]
        if side.wanted else []
        for side, *of_side in zip(sides, maps, into_maps, queries, keys)]
    of_queries = tuple(tuple(x for x, *_ in side) for side in gradients)
    of_keys = tuple(
        tuple(gradients_lib.add_to_keys(total_of_key, x, place.keys)
              for total_of_key, (_, x, _) in zip(totals, of_side))
        for totals, of_side in zip(sums[1], gradients))
    of_biases = tuple(
        tuple(None if bias is None else total_of_bias + bias.gradient(x, place)
              for total_of_bias, bias, (*_, x) in zip(
                  totals, side.biases, of_side))
        for totals, side, of_side in zip(sums[2], sides, gradients))
    return (sums[0] + value, of_keys, of_biases), of_queries

  init = (jnp.zeros((), jnp.float32),
          tuple(
              tuple(gradients_lib.zero_key_sums(x, blocks.examples)
                    for x in side if want)
              for side, want in zip(keys, wanted)),
          tuple(
              tuple(map(bias_lib.zero_sum, side.biases)) if side.wanted else ()
              for side in sides))
  results = tuple(
      tuple(jax.ShapeDtypeStruct(x.shape[2:], jnp.float32) for x in side)
      if want else () for side, want in zip(queries, wanted))
  keys_and_masks = [
      (key, maps_lib.real_positions(allowed))
      for of_side in zip(keys, masks) for key, allowed in zip(*of_side)]
  (totals, of_keys, of_biases), of_queries = block_loops.run(
      blocks, block, (queries, mask), keys_and_masks,
      (mask_arrays, mask, weight), init, results, mask)
  if not any(wanted):
    return jnp.sum(totals), ()
  gradients = tuple(
      tuple(zip(of_query, map(gradients_lib.join_key_sums, of_key),
                map(bias_lib.join_sums, of_bias, bias))) if want else None
      for of_query, of_key, of_bias, bias, want in zip(
          of_queries, of_keys, of_biases, biases, wanted))
  return jnp.sum(totals), gradients


# Pairs of layers of one shape share a trace.
_fold = jax.jit(_fold_once, static_argnums=(0, 1, 2, 3))


def _cut(operands, rules, batch, length):
  """Returns how to cut maps into blocks that suit both sides."""
  sources = [x for side in operands for x in side]
  known = [maps_lib.causal_and_window(x) for side in rules for x, _ in side]
  windows = [window for _, window in known]
  return blocks_lib.cut(
      batch,
      max(query.shape[2] for query, *_ in sources),
      length,
      sources[0][1].shape[1],
      causal=all(causal for causal, _ in known),
      window=None if None in windows else max(windows),
      rows_of_loop=_ROWS_OF_LOOP)
