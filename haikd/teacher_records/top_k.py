"""The largest log-probabilities, and the probability of all other classes."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from haikd.core import recorded
from haikd.teacher_records import logarithms
from haikd.teacher_records import packing

_REST_BITS = 16


class Codec(NamedTuple):
  """What is kept of a prediction, and how it is written.

  Attributes:
    classes: V.
    k: K, how many of the largest log-probabilities are kept.
    bits: of each, 8 or 16.
    temperature: T, which logits are divided by.
  """

  classes: int
  k: int
  bits: int
  temperature: float

  def make(self, logits: jax.Array, uniform: jax.Array) -> dict[str, jax.Array]:
    """Returns what is kept of predictions; runs on a device.

    Args:
      logits: `[R, V]` float32.
      uniform: not used; nothing is drawn.

    Returns:
      `ids` int32 `[R, K]`, `codes` int32 `[R, K]` and `rest` int32 `[R]`.
    """
    del uniform
    log_probs = jax.nn.log_softmax(logits / self.temperature)
    largest, ids = lax.top_k(log_probs, self.k)
    # Summed over the other classes: 1 less the sum of these would lose a small
    # rest to rounding.
    others = jnp.put_along_axis(log_probs, ids, -jnp.inf, axis=-1,
                                inplace=False)
    rest = jnp.log(jnp.sum(jnp.exp(others), axis=-1))
    return self._coded(ids, largest, rest)

  def take(self, ids: np.ndarray,
           log_probs: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what is kept where only the largest are known.

    The rest is 1 less their sum: below a millionth, it is no more than what
    rounding has left of it.

    Args:
      ids: int32 `[..., K]`, the likeliest first.
      log_probs: float32 `[..., K]`, in nats.

    Returns:
      As `make`, with the leading axes of `ids`.
    """
    total = np.sum(np.exp(log_probs.astype(np.float64)), axis=-1)
    with np.errstate(divide='ignore'):
      rest = np.log(np.maximum(1 - total, 0.0)).astype(np.float32)
    return jax.device_get(self._coded(ids, log_probs, rest))

  def encode(self, arrays: Mapping[str, np.ndarray], copy: int) -> bytes:
    """Writes some positions.

    Args:
      arrays: from `make`, `[P, …]` each.
      copy: not used; all copies would be the same.
    """
    del copy
    return b''.join((
        packing.pack(arrays['ids'], packing.bits_for(self.classes)),
        arrays['codes'].astype(logarithms.DTYPES[self.bits]).tobytes(),
        arrays['rest'].astype(logarithms.DTYPES[_REST_BITS]).tobytes()))

  def decode(self, content: bytes, positions: int) -> recorded.TopK:
    """Reads what `encode` wrote.

    Args:
      content: from `encode`.
      positions: P, how many positions it has.

    Returns:
      NumPy arrays `[P, …]`.
    """
    parts, shape = packing.Parts(content), (positions, self.k)
    ids = parts.packed(positions * self.k, packing.bits_for(self.classes))
    codes = parts.array(shape, logarithms.DTYPES[self.bits])
    rest = parts.array((positions,), logarithms.DTYPES[_REST_BITS])
    return recorded.TopK(ids.reshape(shape),
                         logarithms.decode(codes, self.bits),
                         logarithms.decode(rest, _REST_BITS))

  def _coded(self, ids, log_probs, rest):
    """Returns what `make` does, given log-probabilities in nats."""
    return dict(ids=ids, codes=logarithms.nearest(log_probs, self.bits),
                rest=logarithms.nearest(rest, _REST_BITS))

  def zeros(self, shape: tuple[int, ...]) -> recorded.TopK:
    """Returns what padding holds.

    Args:
      shape: of the positions.
    """
    return recorded.TopK(np.zeros((*shape, self.k), np.int32),
                         np.zeros((*shape, self.k), np.float32),
                         np.zeros(shape, np.float32))
