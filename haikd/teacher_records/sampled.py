"""The largest probabilities and draws of the rest: an unbiased estimate.

The m largest probabilities are kept, each rounded down to a code. All that is
left, which is the other classes and what the rounding took away, has the mass r
and is represented by n draws of weight r/n each. They are drawn systematically,
at (u + j)/n of the cumulated rest for j < n, with one u from 0 to 1: a class of
probability p is drawn n p / r times, give or take one, and that often on the
average. Hence the estimate sums to 1, and its expectation is the prediction.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from haikd.core import recorded
from haikd.losses import divergences
from haikd.teacher_records import logarithms
from haikd.teacher_records import packing

_BLOCK = 64  # Classes whose probabilities are cumulated at once.


class Codec(NamedTuple):
  """What is kept of a prediction, and how it is written.

  Attributes:
    classes: V.
    exact: m, how many of the largest probabilities are kept.
    draws: n, how many draws stand for the rest.
    bits: of a kept probability, 8 or 16.
    temperature: T, which logits are divided by.
  """

  classes: int
  exact: int
  draws: int
  bits: int
  temperature: float

  def make(self, logits: jax.Array, uniform: jax.Array) -> dict[str, jax.Array]:
    """Returns what is kept of predictions; runs on a device.

    Args:
      logits: `[R, V]` float32.
      uniform: `[R, C]` float32, from 0 to below 1, a number for each copy.

    Returns:
      `ids` int32 `[R, m]`; `codes` int32 `[R, m]`; `draws` int32 `[R, C, n]`,
      in ascending order; and `entropy` float32 `[R]`, in nats.
    """
    logits = logits / self.temperature
    probs, normaliser = divergences.softmax(logits)
    surprise = jnp.where(probs > 0, probs * (normaliser[0] - logits), 0.0)
    entropy = jnp.sum(surprise, axis=-1) + normaliser[1][:, 0]
    largest, ids = lax.top_k(logits, self.exact)
    largest -= sum(normaliser)
    codes = logarithms.below(largest, self.bits)
    kept = jnp.exp(logarithms.decode(codes, self.bits, jnp))
    left = jnp.maximum(jnp.exp(largest) - kept, 0.0)
    rest = jnp.put_along_axis(probs, ids, left, axis=-1, inplace=False)
    return dict(ids=ids, codes=codes, draws=_draw(rest, uniform, self.draws),
                entropy=entropy)

  def encode(self, arrays: Mapping[str, np.ndarray], copy: int) -> bytes:
    """Writes some positions.

    Args:
      arrays: from `make`, `[P, …]` each.
      copy: which of the copies.
    """
    bits = packing.bits_for(self.classes)
    draws = arrays['draws'][:, copy]
    is_new = np.ones(draws.shape, bool)
    is_new[:, 1:] = draws[:, 1:] != draws[:, :-1]
    return b''.join((
        packing.pack(arrays['ids'], bits),
        arrays['codes'].astype(logarithms.DTYPES[self.bits]).tobytes(),
        arrays['entropy'].astype('<f4').tobytes(),
        packing.pack(is_new, 1),
        packing.pack(draws[is_new], bits)))

  def decode(self, content: bytes, positions: int) -> recorded.Sampled:
    """Reads what `encode` wrote.

    Args:
      content: from `encode`.
      positions: P, how many positions it has.

    Returns:
      NumPy arrays `[P, …]`, those of the draws behind those that were kept.
    """
    parts = packing.Parts(content)
    shape, bits = (positions, self.exact), packing.bits_for(self.classes)
    ids = parts.packed(positions * self.exact, bits).reshape(shape)
    codes = parts.array(shape, logarithms.DTYPES[self.bits])
    entropy = parts.array((positions,), np.dtype('<f4'))
    is_new = parts.packed(positions * self.draws, 1)
    distinct = parts.packed(int(is_new.sum()), bits)
    # Each draw is the last one that was new.
    draws = distinct[np.cumsum(is_new) - 1].reshape(positions, self.draws)
    kept = np.exp(logarithms.decode(codes, self.bits))
    rest = np.maximum(1 - kept.sum(-1, keepdims=True), 0) / max(self.draws, 1)
    weights = np.concatenate(
        [kept, np.broadcast_to(rest, draws.shape)], axis=-1)
    return recorded.Sampled(
        np.concatenate([ids, draws], axis=-1), weights.astype(np.float32),
        entropy.astype(np.float32))

  def zeros(self, shape: tuple[int, ...]) -> recorded.Sampled:
    """Returns what padding holds.

    Args:
      shape: of the positions.
    """
    entries = (*shape, self.exact + self.draws)
    return recorded.Sampled(np.zeros(entries, np.int32),
                            np.zeros(entries, np.float32),
                            np.zeros(shape, np.float32))


def _draw(rest: jax.Array, uniform: jax.Array, count: int) -> jax.Array:
  """Draws classes systematically.

  Blocks of classes are cumulated first, and classes only in the blocks that
  were drawn: a sum over all classes one by one is slow, and loses small ones.

  Args:
    rest: `[R, V]` float32, 0 or more.
    uniform: `[R, C]` float32, from 0 to below 1.
    count: n.

  Returns:
    int32 `[R, C, n]`, in ascending order.
  """
  rows, classes = rest.shape
  blocks = jnp.pad(rest, ((0, 0), (0, -classes % _BLOCK))).reshape(
      rows, -1, _BLOCK)
  ends = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
  # Rounding must not lead past the last class that has a probability, here and
  # in its block.
  below_1 = 1 - jnp.finfo(jnp.float32).eps
  points = (uniform[..., None] + jnp.arange(count)) / count
  points = jnp.minimum(points, below_1)
  points = (points * ends[:, -1:, None]).reshape(rows, -1)
  block = jax.vmap(lambda x, y: jnp.searchsorted(x, y, side='right'))(
      ends, points)
  block = jnp.minimum(block, ends.shape[-1] - 1)
  before = jnp.where(block > 0, jnp.take_along_axis(
      ends, jnp.maximum(block - 1, 0), axis=-1), 0.0)
  inside = jnp.cumsum(
      jnp.take_along_axis(blocks, block[..., None], axis=1), axis=-1)
  within = jnp.minimum(points - before, inside[..., -1] * below_1)
  place = jnp.sum(inside <= within[..., None], axis=-1)
  drawn = jnp.minimum(block * _BLOCK + place, classes - 1)
  return drawn.astype(jnp.int32).reshape(rows, -1, count)
