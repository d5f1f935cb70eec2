"""Where the positions of a row look, without a map of it."""

import dataclasses
from typing import Optional, Union

import jax
from jax import lax
import jax.numpy as jnp

Range = tuple[Union[int, jax.Array], int]  # Where it begins, and its length.


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class AttentionMask:
  """Where the positions of a row look at one another, told by rules.

  A query may look at a key that obeys all of them. As an array this would be
  `[B, 1, N, N]`, which grows with the square of N.

  Attributes:
    keys: bool, `[B, N]`, true where a position is real; None if all are.
    segments: int32, `[B, N]`, the document that a position belongs to, beyond
      which it does not look; None where a row is one document.
    causal: whether a position looks at itself and what stands before it only.
    window: how many keys one sees at most, itself and those right before it;
      with `causal` only. None for all. An int is known while tracing and saves
      what lies outside; an int32 scalar array may differ from layer to layer.
  """

  keys: Optional[jax.Array] = None
  segments: Optional[jax.Array] = None
  causal: bool = False
  window: Optional[Union[int, jax.Array]] = None

  def block(self, queries: Range, keys: Range) -> jax.Array:
    """Returns a part of the mask.

    Args:
      queries: which, as (first, number); the first may be traced.
      keys: likewise.

    Returns:
      bool, `[B, 1, queries, keys]`, where B and queries are 1 if all are alike.
    """
    allowed = jnp.ones((1, 1, 1, 1), bool)
    if self.keys is not None:
      allowed = _part(self.keys, keys)[:, None, None, :]
    behind = _places(queries)[:, None] - _places(keys)
    if self.causal:
      allowed = allowed & (behind >= 0)
    if self.window is not None:
      allowed = allowed & (behind < self.window)
    if self.segments is not None:
      own, other = _part(self.segments, queries), _part(self.segments, keys)
      allowed = allowed & (own[:, :, None] == other[:, None, :])[:, None]
    return allowed

  def tree_flatten(self):
    """Makes a pytree of it: a window known while tracing is no leaf."""
    known = isinstance(self.window, int)
    traced, fixed = (None, self.window) if known else (self.window, None)
    return (self.keys, self.segments, traced), (self.causal, fixed)

  @classmethod
  def tree_unflatten(cls, fixed, leaves):
    """Undoes `tree_flatten`."""
    keys, segments, window = leaves
    causal, known = fixed
    return cls(keys, segments, causal, window if known is None else known)


def _part(array, positions):
  return lax.dynamic_slice_in_dim(array, *positions, axis=1)


def _places(positions):
  first, number = positions
  return first + jnp.arange(number, dtype=jnp.int32)
