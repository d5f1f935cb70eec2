"""One block of attention maps, and maps that are not computed yet."""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any, Optional

import jax
from jax import lax
import jax.numpy as jnp

from haikd.attention import blocks as blocks_lib
from haikd.core import area_weights
from haikd.core import attention_mask
from haikd.core import base
from haikd.core import mesh_context

Mask = blocks_lib.Mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MeanMaps:
  """Maps that are not computed yet: the mean of some, their heads pooled.

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
  maps = sum(maps) / len(maps) if len(maps) > 1 else maps[0]
  batch, own, *rows = maps.shape
  if own == heads:
    return maps
  if own % heads == 0:
    # On CPU a mean over this axis takes three times as long.
    maps = maps.reshape(batch, heads, -1, *rows)
    return sum(maps[:, :, i] for i in range(own // heads)) * (heads / own)
  return jnp.einsum(
      'bsnm,sh->bhnm',
      maps,
      jnp.float32(area_weights.weights(own, heads)),
      precision=lax.Precision.HIGHEST)


def heads_as_examples(
    sides: tuple[MeanMaps, ...],
    mask: jax.Array) -> tuple[tuple[MeanMaps, ...], jax.Array]:
  """Makes examples of groups of heads that no pooling mixes with others.

  Args:
    sides: maps `[B, H, N, M]`.
    mask: bool, `[B, N]`.

  Returns:
    Maps `[B g, H / g, N, M]` and a mask `[B g, N]`, with g as large as can be.
    It is 1 where heads may lie on several devices, and where examples have
    masks of their own that are arrays.
  """
  sources = [x for side in sides for x in side.sources]
  groups = math.gcd(*(side.heads for side in sides),
                    *(x.key.shape[2] for x in sources))
  if mesh_context.is_split_further() or not all(
      _is_of_all_examples(x.mask) for x in sources):
    groups = 1
  if groups == 1:
    return sides, mask

  def move(x):
    x = x.reshape(*x.shape[:2], groups, x.shape[2] // groups, x.shape[3])
    x = jnp.swapaxes(x, 1, 2)
    return x.reshape(x.shape[0] * groups, *x.shape[2:])

  repeat = lambda x: jnp.repeat(x, groups, axis=0)

  def of_groups(source):
    own = source.mask
    if isinstance(own, attention_mask.AttentionMask):
      own = dataclasses.replace(
          own, **{name: None if value is None else repeat(value)
                  for name, value in (('keys', own.keys),
                                      ('segments', own.segments))})
    return base.QueryKey(move(source.query), move(source.key), own)

  return tuple(
      MeanMaps(tuple(map(of_groups, side.sources)), side.heads // groups)
      for side in sides), repeat(mask)


def _is_of_all_examples(mask):
  """Returns whether a mask is rules, or one array for heads and examples."""
  if mask is None or isinstance(mask, attention_mask.AttentionMask):
    return True
  return all(size == 1 for size in mask.shape[:-2])


def rules(mask: Mask) -> tuple[bool, Optional[int]]:
  """Returns whether a mask is causal, and its window if that is known."""
  if not isinstance(mask, attention_mask.AttentionMask):
    return False, None
  return mask.causal, mask.window if isinstance(mask.window, int) else None


def real_positions(mask: Mask) -> Optional[jax.Array]:
  """Returns which positions are real: bool, `[B, N]`, or None for all."""
  return mask.keys if isinstance(mask, attention_mask.AttentionMask) else None


def by_example(mask: Mask, batch: int,
               rows: int) -> tuple[Any, Callable[[Any], Mask]]:
  """Splits a mask in what each example has of its own, and the rest.

  Args:
    mask: of B examples.
    batch: B.
    rows: how many rows the blocks have together, N or more; the mask is made
      as long.

  Returns:
    A tuple of arrays `[B, ...]`, and a function of those of some examples that
    returns the mask of these.
  """
  if mask is None:
    return (), lambda _: None
  if isinstance(mask, attention_mask.AttentionMask):
    own = tuple(None if x is None else _longer(x, 1, rows)
                for x in (mask.keys, mask.segments))
    return own, lambda own: dataclasses.replace(
        mask, keys=own[0], segments=own[1])
  mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
  if mask.shape[2] > 1:
    mask = _longer(mask, 2, rows)
  if mask.shape[0] == batch:
    return (mask,), lambda own: own[0]
  return (), lambda _: mask


def _longer(array, axis, length):
  padding = [(0, 0)] * array.ndim
  padding[axis] = (0, max(length - array.shape[axis], 0))
  return jnp.pad(array, padding)


def queries_by_key_head(query: jax.Array, groups: int) -> jax.Array:
  """Makes `[b, G, H/G q, K]` of `[b, q, H, K]`.

  The queries that one key head serves are the rows of one matrix, so that keys
  need not be repeated.
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


def add_keys(sums: jax.Array, more: jax.Array,
             keys: attention_mask.Range) -> jax.Array:
  """Adds `[b, G, K, keys]` to the keys of a block, in `[b, G, K, M]`."""
  start = (0, 0, 0, keys[0])
  more += lax.dynamic_slice(sums, start, more.shape)
  return lax.dynamic_update_slice(sums, more, start)


def scores(query: jax.Array, key: jax.Array, mask: Mask,
           place: blocks_lib.Place) -> jax.Array:
  """Returns the scores of a block.

  Args:
    query: `[b, G, H/G q, K]` floating.
    key: `[b, G, k, K]` floating, those of the block.
    mask: of the examples.
    place: of the block.

  Returns:
    float32, `[b, G, H/G q, k]`; -inf where a query does not look.
  """
  found = jnp.einsum(
      'bgqd,bgkd->bgqk', query, key, preferred_element_type=jnp.float32)
  if mask is None:
    return found
  if isinstance(mask, attention_mask.AttentionMask):
    allowed = mask.block(place.queries, place.keys)
  else:
    allowed = mask
    for axis, positions in ((2, place.queries), (3, place.keys)):
      if allowed.shape[axis] > 1:
        allowed = lax.dynamic_slice_in_dim(allowed, *positions, axis=axis)
  shape = found.shape
  found = found.reshape(*shape[:2], -1, place.queries[1], shape[3])
  if allowed.shape[1] > 1:
    allowed = allowed.reshape(-1, *found.shape[1:3], *allowed.shape[2:])
  else:
    allowed = allowed[:, :, None]
  return jnp.where(allowed, found, -jnp.inf).reshape(shape)


def softmax(scores: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns what a softmax along keys is made of.

  Args:
    scores: float32, `[..., k]`; -inf where a query does not look.

  Returns:
    Weights like `scores`; their sum, `[..., 1]`, by which they are to be
    divided; and its logarithm with what the weights were scaled by. Of a row
    that looks at no key the weights are 0 and the sum is 1.
  """
  top = jnp.max(scores, axis=-1, keepdims=True)
  top = jnp.where(jnp.isneginf(top), 0.0, top)
  weights = jnp.exp(scores - top)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  total = jnp.where(total > 0.0, total, 1.0)
  return weights, total, top + jnp.log(total)


def weights(query: jax.Array, key: jax.Array, mask: Mask,
            place: blocks_lib.Place) -> jax.Array:
  """Returns the maps of a block, `[b, H, q, k]`; arguments as for `scores`."""
  found, total, _ = softmax(scores(query, key, mask, place))
  shape = (found.shape[0], -1, place.queries[1], found.shape[3])
  return (found * (1.0 / total)).reshape(shape)


def through_softmax(maps: jax.Array, gradient: jax.Array, query: jax.Array,
                    key: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns gradients with respect to queries and keys of a block.

  Args:
    maps: `[b, H, q, k]` float32.
    gradient: with respect to `maps`.
    query: `[b, G, H/G q, K]`.
    key: `[b, G, k, K]`.

  Returns:
    float32, `[b, q, H, K]` and `[b, G, K, k]`.
  """
  # As a product: on CPU XLA takes eight times as long for the sum over
  # `maps * gradient` where the first axis is 1.
  common = jnp.einsum(
      'bhqk,bhqk->bhq', maps, gradient, precision=lax.Precision.HIGHEST)
  into_scores = (maps * (gradient - common[..., None])).astype(query.dtype)
  rows = maps.shape[2]
  into_scores = into_scores.reshape(*query.shape[:3], -1)
  return (queries_by_row(of_queries(into_scores, key), rows),
          of_keys(into_scores, query))


def of_queries(into_scores: jax.Array, key: jax.Array) -> jax.Array:
  """Returns `[b, G, H/G q, K]` float32 of `[b, G, H/G q, k]` and keys."""
  return jnp.einsum(
      'bgqk,bgkd->bgqd', into_scores, key, preferred_element_type=jnp.float32)


def of_keys(into_scores: jax.Array, query: jax.Array) -> jax.Array:
  """Returns `[b, G, K, k]` float32 of `[b, G, H/G q, k]` and queries."""
  # Features before keys: on CPU half the time of the transposed product.
  return jnp.einsum(
      'bgqd,bgqk->bgdk',
      query,
      into_scores,
      preferred_element_type=jnp.float32)


def key_sums(key: jax.Array, examples: int) -> jax.Array:
  """Returns zeros `[examples, G, K, M]` for keys `[B, M, G, K]`."""
  _, keys, groups, size = key.shape
  return jnp.zeros((examples, groups, size, keys), jnp.float32)


def keys_back(sums: jax.Array) -> jax.Array:
  """Returns `[B, M, G, K]` of the sums of all groups of examples."""
  return jnp.transpose(blocks_lib.join_groups(sums), (0, 3, 1, 2))
