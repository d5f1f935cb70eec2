"""Positions cut into chunks, those that count first."""

from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import masking
from haikd.core import mesh_context

# Of float32 logits in a chunk. A CPU is fastest where they stay in its cache,
# others where the products are large.
_BYTES_ON_CPU, _BYTES = 2**23, 2**28
# On CPU what is computed of a chunk, some ten arrays like its logits, is
# computed of groups of rows, to stay in a core's cache.
_LOGITS_OF_GROUP = 2**18
_WHERE = 'losses.chunks'
# Rows of a chunk, at least: with fewer, adding to the kernel's gradient takes
# longest. With a vocabulary beyond the largest a CPU makes do with some less.
_ROWS, _ROWS_BEYOND, _LARGEST = 128, 96, 2**17


class ChunkSizes(NamedTuple):
  """How positions are cut into chunks.

  Attributes:
    chunk_bytes: of a chunk's float32 logits; None for what suits the platform.
    agree: where several devices compute logits together, each a part of the
      vocabulary, it makes them visit as many chunks: `number -> number`.
    split: there, it lays an array out over them along its last axis, the
      vocabulary: `array -> array`.
  """

  chunk_bytes: Optional[int] = None
  agree: Callable[[jax.Array], jax.Array] = lambda number: number
  split: Callable[[jax.Array], jax.Array] = lambda array: array

  def rows(self, positions: int, classes: int) -> int:
    """Returns how many positions there are in a chunk."""
    on_cpu = mesh_context.platform() == 'cpu'
    wanted = self.chunk_bytes or (_BYTES_ON_CPU if on_cpu else _BYTES)
    rows = wanted // (4 * classes)
    if self.chunk_bytes is None:
      fewest = _ROWS_BEYOND if on_cpu and classes > _LARGEST else _ROWS
      rows = max(rows // fewest, 1) * fewest
    group = _rows_of_group(classes) if on_cpu else 1
    # An odd number of rows would go by in groups of one.
    if rows > group:
      rows -= rows % group
    if positions > group:
      positions += -positions % group
    return max(min(rows, positions), 1)

  def groups(self, rows: int, classes: int) -> int:
    """Returns in how many groups to go through the logits of a chunk.

    Only on CPU in more than one.
    """
    if mesh_context.platform() != 'cpu':
      return 1
    most = _rows_of_group(classes)
    return next(n for n in range(1, rows + 1)
                if rows % n == 0 and rows // n <= most)


def _rows_of_group(classes):
  return max(_LOGITS_OF_GROUP // classes, 1)


class Chunk(NamedTuple):
  """Some positions.

  Attributes:
    index: int32 `[R]`, where they lie; beyond the last where none counts.
    keep: bool `[R]`, which of them count.
  """

  index: jax.Array
  keep: jax.Array

  def of(self, rows: Any) -> Any:
    """Returns its rows of what lies in rows, zeros where none counts."""
    if rows is None:
      return None
    if isinstance(rows, base.LinearLogits):
      return rows._replace(hidden=self.of(rows.hidden))
    rows = jnp.take(rows, self.index, axis=0, mode='clip')
    return masking.clean(rows, self.keep)


class Cut:
  """The positions of a batch's logits, in chunks.

  Padding comes last, and chunks that hold nothing else are not visited.

  Args:
    student: stands for logits `[..., V]`.
    mask: bool, leading axes of the logits, true where a position counts.
    sizes: of the chunks.

  Raises:
    TypeError: the mask is not boolean.
    ValueError: its shape does not begin that of the logits.
  """

  def __init__(self, student: base.LinearLogits, mask: jax.Array,
               sizes: ChunkSizes):
    checks.check_mask(mask)
    checks.check_leading('student.hidden', student.hidden, mask)
    self._shape = student.shape[:-1]
    mask = masking.expand(mask, len(self._shape))
    mask = jnp.broadcast_to(mask, self._shape).reshape(-1)
    self._rows = sizes.rows(mask.size, student.shape[-1])
    self._beyond = mask.size
    self._order = jnp.pad(
        jnp.argsort(~mask, stable=True).astype(jnp.int32),
        (0, -mask.size % self._rows))
    self._count = jnp.sum(mask, dtype=jnp.int32)
    self._number = sizes.agree(-(-self._count // self._rows))
    self._split = sizes.split

  def flat(self, value: Any) -> Any:
    """Returns a side, or labels, with one axis for all positions."""
    if value is None:
      return None
    if isinstance(value, base.LinearLogits):
      return value._replace(
          hidden=self.flat(value.hidden), kernel=self._split(value.kernel))
    lead = len(self._shape)
    if value.shape[:lead] != self._shape:
      raise ValueError(
          f'{_WHERE}: labels and logits must begin with the axes of positions '
          f'{self._shape}; got shape {value.shape}. Of other labels, no loss '
          'can be additive.')
    return value.reshape(-1, *value.shape[lead:])

  def chunk(self, number: jax.Array) -> Chunk:
    """Returns the chunk of a number."""
    first = number * self._rows
    keep = first + jnp.arange(self._rows) < self._count
    index = lax.dynamic_slice_in_dim(self._order, first, self._rows)
    # Each beyond in a place of its own: indices are promised to be unique.
    beyond = self._beyond + jnp.arange(self._rows)
    return Chunk(jnp.where(keep, index, beyond), keep)

  def loop(self, more: Callable[[jax.Array, Any], Any], start: Any) -> Any:
    """Runs `more` with the number of each chunk that counts, and a carry."""
    # They are no more than that anyway, but a plan reads it here.
    most = np.int32(self._order.size // self._rows)
    return lax.fori_loop(0, lax.min(self._number, most), more, start)
