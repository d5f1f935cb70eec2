"""Which keys each query may attend to, as rules rather than an array."""

import dataclasses
from typing import Optional, Union

import jax
from jax import lax
import jax.numpy as jnp

Range = tuple[Union[int, jax.Array], int]  # The first position, and how many.


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class AttentionMask:
  """Rules that say which keys a query may attend to.

  A query may attend to a key if all rules allow it. As an array this would be
  `[B, 1, N, N]`, which grows with the square of N.

  Attributes:
    keys: bool, `[B, N]`, true where a position is real and not padding; None if
      all are real.
    segments: int32, `[B, N]`, the document of each position. A query attends to
      its own document only. None where a row is one document.
    causal: whether a query attends only to itself and to earlier positions.
    window: a query attends only to itself and to keys fewer than this many
      positions away; with `causal` these are as many keys at most. None for no
      limit. If it is an int and `causal`, keys outside the window are not
      computed; an int32 scalar array may differ from layer to layer.
  """

  keys: Optional[jax.Array] = None
  segments: Optional[jax.Array] = None
  causal: bool = False
  window: Optional[Union[int, jax.Array]] = None

  def block(self, queries: Range, keys: Range) -> jax.Array:
    """Returns one block of the mask as an array.

    Args:
      queries: the block's queries, as (first, number); the first may be traced.
      keys: the block's keys, likewise.

    Returns:
      bool, `[B, 1, queries, keys]`. The axis of B or of queries has size 1 if
      no rule depends on it.
    """
    allowed = jnp.ones((1, 1, 1, 1), bool)
    if self.keys is not None:
      allowed = _slice(self.keys, keys)[:, None, None, :]
    distance = _positions(queries)[:, None] - _positions(keys)
    if self.causal:
      allowed = allowed & (distance >= 0)
    if self.window is not None:
      allowed = allowed & (jnp.abs(distance) < self.window)
    if self.segments is not None:
      of_queries = _slice(self.segments, queries)[:, :, None]
      of_keys = _slice(self.segments, keys)[:, None, :]
      allowed = allowed & (of_queries == of_keys)[:, None]
    return allowed

  def tree_flatten(self):
    """Returns (leaves, static data); a window that is an int is static."""
    is_static = isinstance(self.window, int)
    traced, static = (None, self.window) if is_static else (self.window, None)
    return (self.keys, self.segments, traced), (self.causal, static)

  @classmethod
  def tree_unflatten(cls, static, leaves):
    """Undoes `tree_flatten`."""
    keys, segments, traced = leaves
    causal, window = static
    return cls(keys, segments, causal, traced if window is None else window)


def _slice(array, positions):
  return lax.dynamic_slice_in_dim(array, *positions, axis=1)


def _positions(positions):
  first, number = positions
  return first + jnp.arange(number, dtype=jnp.int32)
