"""Cuts positions into chunks, those that count first."""

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
from haikd.core import recorded
from haikd.core import transposed

# Bytes of float32 logits in a chunk. A CPU is fastest if they stay in its
# cache, an accelerator if the matrix products are large.
_CHUNK_BYTES_ON_CPU, _CHUNK_BYTES = 2**23, 2**28
# On CPU, losses go through a chunk in groups of rows, so that their ten or so
# temporary arrays, each as large as the logits, stay in a core's cache.
_MAX_LOGITS_IN_GROUP = 2**18
# The least rows of a chunk: with fewer, most time goes into adding to the
# kernel's gradient. Above 2**17 classes a CPU uses 96 rows.
_MIN_ROWS, _MIN_ROWS_LARGE_VOCABULARY = 128, 96
_LARGE_VOCABULARY = 2**17


class ChunkSizes(NamedTuple):
  """How positions are cut into chunks.

  Attributes:
    chunk_bytes: bytes of a chunk's float32 logits; None for the platform's
      default.
    agree: `number -> number` of chunks. Where several devices each compute a
      part of the vocabulary, it makes them visit equally many chunks.
    split: `array -> array`. There, it splits the last axis of an array, the
      vocabulary, over these devices.
  """

  chunk_bytes: Optional[int] = None
  agree: Callable[[jax.Array], jax.Array] = lambda number: number
  split: Callable[[jax.Array], jax.Array] = lambda array: array

  def rows(self, positions: int, classes: int) -> int:
    """Returns how many positions a chunk has.

    Chunks are about equally large, so that the last one is not mostly padding.

    Args:
      positions: how many there are in all.
      classes: V.
    """
    on_cpu = mesh_context.platform() == 'cpu'
    # A prime number of rows could only be cut into groups of one.
    unit = _max_rows_in_group(classes) if on_cpu else 1
    if self.chunk_bytes is None:
      is_large = on_cpu and classes > _LARGE_VOCABULARY
      least = _MIN_ROWS_LARGE_VOCABULARY if is_large else _MIN_ROWS
      default_bytes = _CHUNK_BYTES_ON_CPU if on_cpu else _CHUNK_BYTES
      limit = max(default_bytes // (4 * classes) // least, 1) * least
      unit = unit if on_cpu else least
      limit += -limit % min(unit, limit)
    else:
      limit = max(self.chunk_bytes // (4 * classes), 1)
      limit -= limit % min(unit, limit)
    chunks = max(-(-positions // limit), 1)
    rows = max(-(-positions // chunks), 1)
    if rows <= unit or chunks == 1 and not on_cpu:
      return rows
    return rows + -rows % unit

  def groups(self, rows: int, classes: int) -> int:
    """Returns how many groups a chunk's logits are cut into; 1 off the CPU."""
    if mesh_context.platform() != 'cpu':
      return 1
    max_rows = _max_rows_in_group(classes)
    return next(n for n in range(1, rows + 1)
                if rows % n == 0 and rows // n <= max_rows)


def _max_rows_in_group(classes):
  return max(_MAX_LOGITS_IN_GROUP // classes, 1)


class Chunk(NamedTuple):
  """Some positions.

  Attributes:
    positions: int32 `[R]`, their indices; past the last position where none
      counts.
    keep: bool `[R]`, which of them count.
  """

  positions: jax.Array
  keep: jax.Array

  def of(self, rows: Any) -> Any:
    """Returns the chunk's part of an array's rows, zeros where none counts."""
    if rows is None:
      return None
    if isinstance(rows, base.LinearLogits):
      return rows._replace(hidden=self.of(rows.hidden))
    if isinstance(rows, recorded.TARGETS):
      return jax.tree.map(self.of, rows)
    rows = jnp.take(rows, self.positions, axis=0, mode='clip')
    return masking.clean(rows, self.keep)


class Cut:
  """The positions of a batch's logits, cut into chunks.

  Padding comes last, and chunks of padding alone are not visited.

  Args:
    student: LinearLogits `[..., V]`.
    mask: bool, leading axes of the logits, true where a position counts.
    sizes: of the chunks.

  Raises:
    TypeError: the mask is not boolean.
    ValueError: the mask's shape does not begin that of the logits.
  """

  def __init__(self, student: base.LinearLogits, mask: jax.Array,
               sizes: ChunkSizes):
    checks.check_mask(mask)
    checks.check_leading('student.hidden', student.hidden, mask)
    self._shape = student.shape[:-1]
    mask = masking.expand(mask, len(self._shape))
    mask = jnp.broadcast_to(mask, self._shape).reshape(-1)
    self._num_positions = mask.size
    self._rows = sizes.rows(mask.size, student.shape[-1])
    self._order = jnp.pad(
        jnp.argsort(~mask, stable=True).astype(jnp.int32),
        (0, -mask.size % self._rows))
    self._num_kept = jnp.sum(mask, dtype=jnp.int32)
    self._num_chunks = sizes.agree(-(-self._num_kept // self._rows))
    self._split = sizes.split

  def flatten(self, name: str, value: Any) -> Any:
    """Returns logits or labels with a single axis for all positions.

    The kernel of LinearLogits is split over the devices that share the
    vocabulary, see `ChunkSizes`.

    Args:
      name: of the argument, for messages.
      value: LinearLogits or an array `[..., *rest]`, or None.

    Returns:
      LinearLogits or an array `[R, *rest]`, or None.

    Raises:
      ValueError: an array does not begin with the axes of the positions.
    """
    if value is None:
      return None
    if isinstance(value, base.LinearLogits):
      return value._replace(
          hidden=self.flatten(f'{name}.hidden', value.hidden),
          kernel=transposed.over_kernel(self._split, value.kernel))
    if isinstance(value, recorded.TARGETS):
      return jax.tree.map(lambda x: self.flatten(name, x), value)
    rank = len(self._shape)
    if value.shape[:rank] != self._shape:
      remedy = ('Register a loss that takes such labels without additive=True.'
                if name == 'labels' else 'Give both networks the same inputs.')
      raise ValueError(
          f"{name} must begin with the axes of the student's positions, "
          f'{self._shape}; got {name}.shape={value.shape}. {remedy}')
    return value.reshape(-1, *value.shape[rank:])

  def spread(self, weight: Optional[jax.Array]) -> Optional[jax.Array]:
    """Returns weights of examples, `[B]`, for all positions; None for None."""
    if weight is None:
      return None
    weight = masking.expand(weight, len(self._shape))
    return jnp.broadcast_to(weight, self._shape).reshape(-1)

  def chunk(self, number: jax.Array) -> Chunk:
    """Returns the chunk of a number."""
    first = number * self._rows
    keep = first + jnp.arange(self._rows) < self._num_kept
    positions = lax.dynamic_slice_in_dim(self._order, first, self._rows)
    # Rows that do not count get distinct positions past the last one: a scatter
    # drops these, and its indices are promised to be unique.
    past_last = self._num_positions + jnp.arange(self._rows)
    return Chunk(jnp.where(keep, positions, past_last), keep)

  def loop(self, body: Callable[[jax.Array, Any], Any], init: Any) -> Any:
    """Runs `(number, carry) -> carry` for each chunk that counts."""
    # The bound changes nothing; haikd.plan counts iterations by it.
    max_chunks = np.int32(self._order.size // self._rows)
    return lax.fori_loop(0, lax.min(self._num_chunks, max_chunks), body, init)


def in_groups(function: Callable, rows: Any, groups: int) -> tuple[Any, Any]:
  """Calls `rows -> (sums, outputs)` on groups of a chunk's rows.

  Args:
    function: returns a pytree of sums over its rows, and one of outputs whose
      first axis is that of its rows.
    rows: pytree of arrays `[R, ...]`.
    groups: how many groups there are.

  Returns:
    The sums and outputs for all rows.
  """
  if groups == 1:
    return function(rows)
  parts = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), rows)

  def body(sums, part):
    more, outputs = function(part)
    return jax.tree.map(jnp.add, sums, more), outputs

  first = jax.tree.map(lambda x: x[0], parts)
  shapes, _ = jax.eval_shape(function, first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  sums, outputs = lax.scan(body, mesh_context.vary_like(zeros, parts), parts)
  return sums, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
