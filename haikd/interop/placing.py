"""Arrays on devices, filled block by block from what is mapped on the host.

A host never holds more of an array than one block of some megabytes: devices
are given memory for their shards first, and blocks are written into it.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import math
from typing import NamedTuple, Optional

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

_BLOCK = 4 * 2**20  # Bytes that are read at once, about.

Bounds = tuple[tuple[int, int], ...]  # First and last plus 1 along each axis.


class View(NamedTuple):
  """A part of an array as it lies in a file.

  Attributes:
    array: a mapped array with the axes of the part, as large or larger; what is
      beyond the part is not read.
    ids: integers, what to take along `axis`, or None for what comes first.
    axis: see `ids`.
  """

  array: np.ndarray
  ids: Optional[np.ndarray] = None
  axis: int = 0

  def read(self, bounds: Bounds, dtype: np.dtype) -> np.ndarray:
    """Returns a copy of what is between bounds, contiguous, in a dtype."""
    index = [slice(*pair) for pair in bounds]
    if self.ids is not None:
      index[self.axis] = self.ids[index[self.axis]]
    return np.array(self.array[tuple(index)], dtype, order='C')


def fill(like: jax.ShapeDtypeStruct, parts: Sequence[Callable[[], View]], *,
         stacked: bool) -> jax.Array:
  """Returns an array whose parts are read one after another.

  Each process reads what its own devices hold, and no more.

  Args:
    like: shape, dtype and sharding.
    parts: functions that open a part of the array: the whole of it or, if it is
      stacked, one entry of its leading axis each.
    stacked: whether it is.

  Returns:
    The array, complete on its devices.
  """
  shards = _shards(like)
  begun = {}  # What has been written of each device's shard.
  for number, open_part in enumerate(parts):
    view = open_part()
    for shard, devices in shards.items():
      inner, at = shard, ()
      if stacked:
        (first, last), *inner = shard
        if not first <= number < last:
          continue
        at = (number - first,)
      shape = tuple(last - first for first, last in shard)
      for block in _blocks(view, inner, like.dtype):
        values = view.read(block, like.dtype)
        values = values[(None,) * len(at)]
        starts = (*at, *(b[0] - a[0] for a, b in zip(inner, block)))
        for device in devices:
          if values.shape == shape:
            begun[device] = jax.device_put(values, device)
            continue
          if device not in begun:
            begun[device] = jnp.zeros(shape, like.dtype, device=device)
          begun[device] = _write(begun[device], values, starts)
        # The block is freed before the next is read.
        jax.block_until_ready([begun[device] for device in devices])
        del values
  return jax.make_array_from_single_device_arrays(
      like.shape, like.sharding, list(begun.values()), dtype=like.dtype)


@functools.partial(jax.jit, donate_argnums=0)
def _write(array, block, starts):
  """Returns an array with a block written to it, in the same memory."""
  return lax.dynamic_update_slice(array, block, starts)


def _shards(like) -> dict[Bounds, list[jax.Device]]:
  """Returns which of this process's devices hold what of an array."""
  shards = {}
  where = like.sharding.addressable_devices_indices_map(like.shape)
  for device, index in where.items():
    bounds = tuple(
        part.indices(size)[:2] for part, size in zip(index, like.shape))
    shards.setdefault(bounds, []).append(device)
  return shards


def _blocks(view, bounds, dtype) -> Iterator[Bounds]:
  """Cuts what is between bounds along the axis that is slowest in the file."""
  bounds = tuple(bounds)
  sizes = [last - first for first, last in bounds]
  if not bounds:
    yield bounds
    return
  axis = max(range(len(sizes)), key=lambda i: abs(view.array.strides[i]))
  row = math.prod(sizes) // max(sizes[axis], 1) * dtype.itemsize
  count = max(1, -(-sizes[axis] * row // _BLOCK))
  rows = max(1, -(-sizes[axis] // count))
  first, last = bounds[axis]
  for start in range(first, max(last, first + 1), rows):
    cut = (start, min(start + rows, last))
    yield (*bounds[:axis], cut, *bounds[axis + 1:])
