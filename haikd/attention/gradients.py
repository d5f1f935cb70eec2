"""Gradients of blocks of attention maps, and their sums over blocks."""

from typing import Optional

import jax
from jax import lax
import jax.numpy as jnp

from haikd.attention import block_loops
from haikd.attention import maps as maps_lib
from haikd.core import attention_mask


def softmax_backward(
    maps: jax.Array, gradient: jax.Array, query: jax.Array, key: jax.Array,
    soft_cap: Optional[jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns gradients with respect to what the maps of a block are made of.

  Args:
    maps: `[b, H, q, k]` float32.
    gradient: with respect to `maps`.
    query: `[b, G, H/G q, K]`.
    key: `[b, G, k, K]`.
    soft_cap: of the scores, as in `base.QueryKey`.

  Returns:
    float32: those of queries `[b, q, H, K]`, of keys `[b, G, K, k]` and of
    scores `[b, H, q, k]`.
  """
  of_scores = into_softmax(maps, gradient)
  into_scores = before_cap(
      of_scores.reshape(*query.shape[:3], -1), query, key,
      soft_cap).astype(query.dtype)
  of_query = maps_lib.queries_by_row(
      query_gradient(into_scores, key), maps.shape[2])
  return of_query, key_gradient(into_scores, query), of_scores


def into_softmax(maps: jax.Array, gradient: jax.Array) -> jax.Array:
  """Returns the gradient of scores, given maps `[b, H, q, k]` and theirs."""
  # As a product: on CPU XLA takes eight times as long for the sum of
  # `maps * gradient` if the first axis is 1.
  common = jnp.einsum(
      'bhqk,bhqk->bhq', maps, gradient, precision=lax.Precision.HIGHEST)
  return maps * (gradient - common[..., None])


def before_cap(of_scores: jax.Array, query: jax.Array, key: jax.Array,
               soft_cap: Optional[jax.Array]) -> jax.Array:
  """Returns the gradient of the products that a soft cap makes scores of.

  Args:
    of_scores: the gradient with respect to the scores, `[b, G, H/G q, k]`.
    query: `[b, G, H/G q, K]`. The scores were computed from the same products,
      which XLA shares.
    key: `[b, G, k, K]`.
    soft_cap: of the scores; without one their gradient is that of the products.
  """
  if soft_cap is None:
    return of_scores
  return of_scores * (
      1.0 - jnp.tanh(maps_lib.products_of(query, key) / soft_cap)**2)


def query_gradient(into_scores: jax.Array, key: jax.Array) -> jax.Array:
  """Returns `[b, G, H/G q, K]` float32, given that of scores, and keys."""
  return jnp.einsum(
      'bgqk,bgkd->bgqd', into_scores, key, preferred_element_type=jnp.float32)


def key_gradient(into_scores: jax.Array, query: jax.Array) -> jax.Array:
  """Returns `[b, G, K, k]` float32, given that of scores, and queries."""
  # Features before keys: on CPU the transposed product takes twice as long.
  return jnp.einsum(
      'bgqd,bgqk->bgdk', query, into_scores, preferred_element_type=jnp.float32)


def zero_key_sums(key: jax.Array, examples: int) -> jax.Array:
  """Returns zeros `[examples, G, K, M]` for keys `[B, M, G, K]`."""
  _, keys, groups, size = key.shape
  return jnp.zeros((examples, groups, size, keys), jnp.float32)


def join_key_sums(sums: jax.Array) -> jax.Array:
  """Returns `[B, M, G, K]`, given the sums of all groups of examples."""
  return jnp.transpose(block_loops.join_groups(sums), (0, 3, 1, 2))


def add_to_keys(sums: jax.Array, more: jax.Array,
                keys: attention_mask.Range) -> jax.Array:
  """Adds `[b, G, K, keys]` to sums `[b, G, K, M]`, at a block's keys."""
  start = (0, 0, 0, keys[0])
  more += lax.dynamic_slice(sums, start, more.shape)
  return lax.dynamic_update_slice(sums, more, start)
