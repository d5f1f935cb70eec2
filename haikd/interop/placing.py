"""Fills arrays on devices block by block from arrays mapped on the host.

A host never holds more of an array than one block of some megabytes: devices
allocate their shards first, and blocks are written into them.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import math
from typing import Any, NamedTuple, Optional

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

_BLOCK = 4 * 2**20  # Bytes, about, of one read.

Bounds = tuple[tuple[int, int], ...]  # (start, stop) along each axis.


class NotFiniteError(ValueError):
  """A block holds NaN or infinity.

  Attributes:
    value: a number of the block that is not finite in `dtype`, as it is stored.
    dtype: that the block was read as.
    is_overflow: whether all stored numbers are finite.
    part: the number of the part that holds the block.

  Args:
    stored: the block as it is stored.
    dtype: see above.
  """

  def __init__(self, stored: np.ndarray, dtype: np.dtype):
    super().__init__('a block must be finite')
    self.is_overflow = bool(np.isfinite(stored).all())
    wrong = np.abs(stored).max() if self.is_overflow else stored[
        ~np.isfinite(stored)][0]
    self.value, self.dtype, self.part = float(wrong), dtype, 0


class MappedPart(NamedTuple):
  """A part of an array as it is stored in a file.

  Attributes:
    array: a mapped array with the axes of the part, as large or larger; what is
      beyond the part is not read.
    ids: integers, the entries along `axis` that make the part; None for the
      first ones.
    axis: see `ids`.
  """

  array: Any
  ids: Optional[np.ndarray] = None
  axis: int = 0

  def read(self, bounds: Bounds, dtype: np.dtype) -> np.ndarray:
    """Returns a contiguous copy of what is within bounds.

    Args:
      bounds: of a block in the part.
      dtype: of the copy.

    Raises:
      NotFiniteError: it holds NaN or infinity.
    """
    index: list[Any] = [slice(*pair) for pair in bounds]
    if self.ids is not None:
      index[self.axis] = self.ids[index[self.axis]]
    stored = self.array[tuple(index)]
    with np.errstate(over='ignore', invalid='ignore'):
      values = np.array(stored, dtype, order='C')
    if not _are_finite(values):
      raise NotFiniteError(np.asarray(stored, np.float32), values.dtype)
    return values


def fill(template: jax.ShapeDtypeStruct,
         parts: Sequence[Callable[[], MappedPart]], *,
         stacked: bool) -> jax.Array:
  """Returns an array whose parts are read one after another.

  Each process reads only what its own devices hold.

  Args:
    template: shape, dtype and sharding.
    parts: functions that open a part of the array: all of it or, if it is
      stacked, one entry of its leading axis each.
    stacked: whether each part is an entry of the leading axis.

  Returns:
    The array, complete on its devices.
  """
  device_shards: dict[jax.Device, jax.Array] = {}
  devices_of = _devices_by_bounds(template)
  for number, open_part in enumerate(parts):
    part = open_part()
    for bounds, devices in devices_of.items():
      shape = tuple(stop - start for start, stop in bounds)
      inner: Sequence[tuple[int, int]] = bounds  # Of the shard in the part.
      offset: tuple[int, ...] = ()  # Of the part in the shard.
      if stacked:
        (start, stop), *inner = bounds
        if not start <= number < stop:
          continue
        offset = (number - start,)
      for block in _blocks(part, inner, template.dtype):
        try:
          values = part.read(block, template.dtype)
        except NotFiniteError as err:
          err.part = number
          raise
        values = values[(None,) * len(offset)]
        starts = (*offset, *(b[0] - a[0] for a, b in zip(inner, block)))
        for device in devices:
          if values.shape == shape:
            device_shards[device] = jax.device_put(values, device)
            continue
          if device not in device_shards:
            device_shards[device] = jnp.zeros(
                shape, template.dtype, device=device)
          device_shards[device] = _write(device_shards[device], values, starts)
        # The block is freed before the next is read.
        jax.block_until_ready([device_shards[device] for device in devices])
        del values
  return jax.make_array_from_single_device_arrays(
      template.shape, template.sharding, list(device_shards.values()),
      dtype=template.dtype)


def _are_finite(values: np.ndarray) -> bool:
  """Returns whether contiguous numbers are finite, in two passes of integers.

  `np.isfinite` of bfloat16 takes ten times as long.
  """
  bits = values.view(f'u{values.itemsize}')
  without_sign = bits & np.iinfo(bits.dtype).max // 2
  largest = jnp.finfo(values.dtype).max.view(bits.dtype)
  return not bits.size or bool(without_sign.max() <= largest)


@functools.partial(jax.jit, donate_argnums=0)
def _write(array, block, starts):
  """Returns an array with a block written to it, in the same memory."""
  return lax.dynamic_update_slice(array, block, starts)


def _devices_by_bounds(template) -> dict[Bounds, list[jax.Device]]:
  """Returns the devices of this process that hold each part of an array."""
  devices_of: dict[Bounds, list[jax.Device]] = {}
  indices = template.sharding.addressable_devices_indices_map(template.shape)
  for device, index in indices.items():
    bounds = tuple(
        axis.indices(size)[:2] for axis, size in zip(index, template.shape))
    devices_of.setdefault(bounds, []).append(device)
  return devices_of


def _blocks(part, bounds, dtype) -> Iterator[Bounds]:
  """Cuts bounds into blocks along the axis that is slowest in the file."""
  bounds = tuple(bounds)
  sizes = [stop - start for start, stop in bounds]
  if not bounds:
    yield bounds
    return
  axis = max(range(len(sizes)), key=lambda i: abs(part.array.strides[i]))
  row = math.prod(sizes) // max(sizes[axis], 1) * dtype.itemsize
  count = max(1, -(-sizes[axis] * row // _BLOCK))
  rows = max(1, -(-sizes[axis] // count))
  first, last = bounds[axis]
  for start in range(first, max(last, first + 1), rows):
    cut = (start, min(start + rows, last))
    yield (*bounds[:axis], cut, *bounds[axis + 1:])
