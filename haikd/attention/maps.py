"""Lazy attention maps, and the arithmetic of one block of maps."""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any, Optional

import jax
from jax import lax
import jax.numpy as jnp

from haikd.attention import bias as bias_lib
from haikd.attention import blocks as blocks_lib
from haikd.core import area_weights
from haikd.core import attention_mask
from haikd.core import base
from haikd.core import lazy
from haikd.core import mesh_context

Mask = blocks_lib.Mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MeanMaps:
  """Lazy attention maps: the mean of some maps, with their heads pooled.

  Attributes:
    sources: the maps, all of one shape `[B, S, N, M]`.
    heads: H, to which the S heads are averaged down by area.
  """

  sources: tuple[base.QueryKey, ...]
  heads: int = dataclasses.field(metadata=dict(static=True))

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the maps, `[B, H, N, M]`."""
    batch, _, *rows = self.sources[0].shape
    return (batch, self.heads, *rows)

  def materialise(self) -> jax.Array:
    """Returns the maps, `[B, H, N, M]` float32."""
    return mean([x.materialise() for x in self.sources], self.heads)


def mean(maps: Sequence[jax.Array], heads: int) -> jax.Array:
  """Returns the mean of maps, its heads pooled.

  Args:
    maps: each `[b, S, n, m]` float32.
    heads: H, to which S heads are averaged down by area.
  """
  averaged = maps[0]
  if len(maps) > 1:
    averaged = sum(maps[1:], start=averaged) / len(maps)
  batch, map_heads, *rows = averaged.shape
  if map_heads == heads:
    return averaged
  if map_heads % heads == 0:
    # On CPU a mean over this axis takes three times as long.
    grouped = averaged.reshape(batch, heads, -1, *rows)
    first, *rest = (grouped[:, :, i] for i in range(map_heads // heads))
    return sum(rest, start=first) * (heads / map_heads)
  weights = jnp.float32(area_weights.weights(map_heads, heads))
  return jnp.einsum(
      'bsnm,sh->bhnm', averaged, weights, precision=lax.Precision.HIGHEST)


def heads_as_examples(
    sides: tuple[MeanMaps, ...],
    mask: jax.Array) -> tuple[tuple[MeanMaps, ...], jax.Array]:
  """Turns groups of heads that pooling does not mix into examples.

  Args:
    sides: maps `[B, H, N, M]`.
    mask: bool, `[B, N]`.

  Returns:
    Maps `[B g, H / g, N, M]` and a mask `[B g, N]`, with the largest possible
    g. It is 1 if heads may lie on several devices, if attention masks are
    arrays that differ between examples or heads, or if scores have a bias.
  """
  sources = [x for side in sides for x in side.sources]
  groups = math.gcd(*(side.heads for side in sides),
                    *(x.key.shape[2] for x in sources))
  if mesh_context.is_split_further() or not all(
      _is_shared(x.mask) and x.bias is None for x in sources):
    groups = 1
  if groups == 1:
    return sides, mask

  def split_heads(x):
    x = x.reshape(*x.shape[:2], groups, x.shape[2] // groups, x.shape[3])
    x = jnp.swapaxes(x, 1, 2)
    return x.reshape(x.shape[0] * groups, *x.shape[2:])

  repeat = lambda x: jnp.repeat(x, groups, axis=0)

  def split_source(source):
    allowed = source.mask
    if isinstance(allowed, attention_mask.AttentionMask):
      keys, segments = jax.tree.map(repeat, (allowed.keys, allowed.segments))
      allowed = dataclasses.replace(allowed, keys=keys, segments=segments)
    return source._replace(
        query=split_heads(source.query), key=split_heads(source.key),
        mask=allowed)

  return tuple(
      MeanMaps(tuple(map(split_source, side.sources)), side.heads // groups)
      for side in sides), repeat(mask)


def _is_shared(mask):
  """Returns whether a mask is rules, or shared by all examples and heads."""
  if mask is None or isinstance(mask, attention_mask.AttentionMask):
    return True
  return all(size == 1 for size in mask.shape[:-2])


def causal_and_window(mask: Mask) -> tuple[bool, Optional[int]]:
  """Returns whether a mask is causal, and its window if that is known."""
  if not isinstance(mask, attention_mask.AttentionMask):
    return False, None
  return mask.causal, mask.window if isinstance(mask.window, int) else None


def real_positions(mask: Mask) -> Optional[jax.Array]:
  """Returns whether positions are real: bool, `[B, N]`, or None if all are."""
  return mask.keys if isinstance(mask, attention_mask.AttentionMask) else None


def split_mask(mask: Mask, batch: int,
               rows: int) -> tuple[Any, Callable[[Any], Mask]]:
  """Splits a mask into arrays that have an axis of examples, and the rest.

  Args:
    mask: of B examples.
    batch: B.
    rows: how many rows all blocks have together, N or more; the mask is padded
      to them.

  Returns:
    A tuple of arrays `[B, ...]`, and a function that makes the mask of some
    examples from their part of these arrays.
  """
  if mask is None:
    return (), lambda _: None
  if isinstance(mask, attention_mask.AttentionMask):
    rules = mask
    arrays = jax.tree.map(
        lambda x: _pad(x, 1, rows), (rules.keys, rules.segments))
    return arrays, lambda arrays: dataclasses.replace(
        rules, keys=arrays[0], segments=arrays[1])
  array = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
  if array.shape[2] > 1:
    array = _pad(array, 2, rows)
  if array.shape[0] == batch:
    return (array,), lambda arrays: arrays[0]
  return (), lambda _: array


def _pad(array, axis, length):
  padding = [(0, 0)] * array.ndim
  padding[axis] = (0, max(length - array.shape[axis], 0))
  return jnp.pad(array, padding)


def queries_by_key_head(query: jax.Array, groups: int) -> jax.Array:
  """Reshapes `[b, q, H, K]` to `[b, G, H/G q, K]`.

  The queries that share a key head become the rows of one matrix, so keys need
  not be repeated.
  """
  examples, rows, heads, size = query.shape
  query = query.reshape(examples, rows, groups, heads // groups, size)
  query = query.transpose(0, 2, 3, 1, 4)
  return query.reshape(examples, groups, -1, size)


def queries_by_row(query: jax.Array, rows: int) -> jax.Array:
  """Undoes `queries_by_key_head`."""
  examples, groups, _, size = query.shape
  query = query.reshape(examples, groups, -1, rows, size)
  return query.transpose(0, 3, 1, 2, 4).reshape(examples, rows, -1, size)


def scores(query: jax.Array, key: jax.Array, mask: Mask,
           soft_cap: Optional[jax.Array], bias: Optional[bias_lib.Bias],
           place: blocks_lib.Place) -> jax.Array:
  """Returns the scores of a block.

  Args:
    query: `[b, G, H/G q, K]` floating.
    key: `[b, G, k, K]` floating, the keys of the block.
    mask: of the examples.
    soft_cap: of the scores, as in `base.QueryKey`.
    bias: of all rows; None for none.
    place: of the block.

  Returns:
    float32, `[b, G, H/G q, k]`; -inf where a query does not attend to a key.
  """
  products = lazy.capped(products_of(query, key), soft_cap)
  if bias is not None:
    products += bias.block(place).reshape(1, *products.shape[1:])
  if mask is None:
    return products
  if isinstance(mask, attention_mask.AttentionMask):
    allowed = mask.block(place.queries, place.keys)
  else:
    allowed = mask
    for axis, positions in ((2, place.queries), (3, place.keys)):
      if allowed.shape[axis] > 1:
        allowed = lax.dynamic_slice_in_dim(allowed, *positions, axis=axis)
  shape = products.shape
  products = products.reshape(*shape[:2], -1, place.queries[1], shape[3])
  if allowed.shape[1] > 1:
    allowed = allowed.reshape(-1, *products.shape[1:3], *allowed.shape[2:])
  else:
    allowed = allowed[:, :, None]
  return jnp.where(allowed, products, -jnp.inf).reshape(shape)


def products_of(query: jax.Array, key: jax.Array) -> jax.Array:
  """Returns the products of queries and keys; arguments as for `scores`."""
  return jnp.einsum(
      'bgqd,bgkd->bgqk', query, key, preferred_element_type=jnp.float32)


def softmax_parts(scores: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the parts of a softmax along keys, not yet divided.

  Args:
    scores: float32, `[..., k]`; -inf where a query does not attend to a key.

  Returns:
    Weights like `scores`; their sum, `[..., 1]`, by which to divide them; and
    the row's log-sum-exp. A row without a key has weights of 0 and a sum of 1.
  """
  top = jnp.max(scores, axis=-1, keepdims=True)
  top = jnp.where(jnp.isneginf(top), 0.0, top)
  weights = jnp.exp(scores - top)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  total = jnp.where(total > 0.0, total, 1.0)
  return weights, total, top + jnp.log(total)


def block_maps(query: jax.Array, key: jax.Array, mask: Mask,
               soft_cap: Optional[jax.Array], bias: Optional[bias_lib.Bias],
               place: blocks_lib.Place) -> jax.Array:
  """Returns the maps of a block, `[b, H, q, k]`; arguments as for `scores`."""
  weights, total, _ = softmax_parts(
      scores(query, key, mask, soft_cap, bias, place))
  shape = (weights.shape[0], -1, place.queries[1], weights.shape[3])
  return (weights * (1.0 / total)).reshape(shape)
