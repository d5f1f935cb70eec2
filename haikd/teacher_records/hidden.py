"""The last hidden state in 8 bits, from which logits are computed.

A hidden state has few large coordinates, and one scale for all would waste most
of its 256 values on them. An orthogonal map, the same for all positions,
spreads them over all coordinates. It is never undone: the unembedding that is
kept is multiplied by it, so that the logits are the same.
"""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import recorded
from haikd.teacher_records import packing

ABSENT: Any = None  # Stands in lazy logits for hidden states.
_LARGEST = 127


class Codec(NamedTuple):
  """How a hidden state is written.

  Attributes:
    width: D.
  """

  width: int

  def make(self, hidden: jax.Array, uniform: jax.Array) -> dict[str, jax.Array]:
    """Returns hidden states in 8 bits; runs on a device.

    Args:
      hidden: `[R, D]` floating.
      uniform: not used; nothing is drawn.

    Returns:
      `values` int8 `[R, D]`, and `scale` float32 `[R]`.
    """
    del uniform
    rotated = jnp.matmul(hidden.astype(jnp.float32), rotation(self.width),
                         precision='highest')
    scale = jnp.max(jnp.abs(rotated), axis=-1) / _LARGEST
    divisor = jnp.where(scale > 0, scale, 1.0)[..., None]
    return dict(values=jnp.round(rotated / divisor).astype(jnp.int8),
                scale=scale)

  def encode(self, arrays: Mapping[str, np.ndarray], copy: int) -> bytes:
    """Writes some positions.

    Args:
      arrays: from `make`, `[P, …]` each.
      copy: not used; all copies would be the same.
    """
    del copy
    return (arrays['values'].astype(np.int8).tobytes() +
            arrays['scale'].astype('<f4').tobytes())

  def decode(self, content: bytes, positions: int) -> recorded.Hidden:
    """Reads what `encode` wrote.

    Args:
      content: from `encode`.
      positions: P, how many positions it has.

    Returns:
      NumPy arrays `[P, …]`.
    """
    parts = packing.Parts(content)
    values = parts.array((positions, self.width), np.dtype(np.int8))
    scale = parts.array((positions,), np.dtype('<f4'))
    return recorded.Hidden(values, scale.astype(np.float32))

  def zeros(self, shape: tuple[int, ...]) -> recorded.Hidden:
    """Returns what padding holds.

    Args:
      shape: of the positions.
    """
    return recorded.Hidden(np.zeros((*shape, self.width), np.int8),
                           np.zeros(shape, np.float32))


@functools.lru_cache(maxsize=1)
def rotation(width: int) -> np.ndarray:
  """Returns a random orthogonal map, always the same one.

  Args:
    width: D.

  Returns:
    `[D, D]` float32.
  """
  # NumPy has frozen the stream of RandomState.
  normal = np.random.RandomState(0).normal(size=(width, width))
  return np.linalg.qr(normal)[0].astype(np.float32)


def rotated(logits: base.LinearLogits) -> base.LinearLogits:
  """Returns lazy logits without hidden states, for those that are recorded.

  Args:
    logits: of the teacher; its hidden states are left out.

  Returns:
    LinearLogits of NumPy arrays, float32, whose kernel takes rotated states.
  """
  kernel = np.asarray(jnp.asarray(logits.kernel), np.float32)
  parts = jax.tree.map(lambda x: np.asarray(x, np.float32), logits)
  return parts._replace(hidden=ABSENT, kernel=rotation(len(kernel)).T @ kernel)
