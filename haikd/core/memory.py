"""What arrays take, by their shapes, and whether there is room for them."""

from collections.abc import Iterator, Sequence
import contextlib
import math
import os
import pathlib
import resource
import sys
from typing import Any, Optional

import jax

from haikd.core import cgroups
from haikd.core import checks

# Whose memory a peak is: a device's, or on CPU that of the process.
DEVICE, PROCESS = 'device', 'process'
# Of version 2, and of 1; below the folder of the group.
_LIMITS = ('memory.max', 'memory.limit_in_bytes')


def of_host() -> Optional[int]:
  """Returns the bytes that this process may use, None if they are unknown.

  They are those of this machine, or the limit of the container or the job of a
  cluster, such as Slurm's, where that is lower.
  """
  try:
    total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  except (ValueError, OSError):
    return None
  return min([total, *_limits(cgroups.GROUPS, cgroups.ROOT)])


def _limits(groups: pathlib.Path, root: pathlib.Path) -> Iterator[int]:
  """Yields the limits of the control groups of this process.

  Args:
    groups: as for `cgroups.folders`.
    root: likewise.
  """
  for folder in cgroups.folders('memory', groups, root):
    for name in _LIMITS:
      with contextlib.suppress(OSError, ValueError):  # `max` is no number.
        yield int((folder / name).read_text())


def of_device(devices: Sequence[Any]) -> Optional[float]:
  """Returns the bytes that one device may use, None if they are unknown.

  Args:
    devices: those of this process.
  """
  if devices[0].platform != 'cpu':
    stats = devices[0].memory_stats() or {}
    return stats.get('bytes_limit')
  total = of_host()
  return total and total / len(devices)  # The devices share one memory.


def peak(devices: Sequence[Any]) -> Optional[tuple[str, int]]:
  """Returns the most memory that was used at once so far.

  Args:
    devices: those of this process.

  Returns:
    DEVICE and the bytes of the device that has used most, or on CPU PROCESS and
    the peak of the process's resident set; None if it is not known.
  """
  if devices[0].platform == 'cpu':
    return PROCESS, peak_of_process()
  sizes = [(x.memory_stats() or {}).get('peak_bytes_in_use', 0)
           for x in devices]
  return (DEVICE, max(sizes)) if any(sizes) else None


def peak_of_process() -> int:
  """Returns the most bytes of this process that were resident so far."""
  status = pathlib.Path('/proc/self/status')
  if status.exists():  # On Linux, ru_maxrss includes the parent's memory.
    for line in status.read_text().splitlines():
      if line.startswith('VmHWM:'):
        return int(line.split()[1]) * 2**10
  size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return size if sys.platform == 'darwin' else size * 2**10


def bytes_per_device(tree: Any) -> int:
  """Returns the bytes that a device holds of a tree.

  Args:
    tree: ShapeDtypeStructs, with or without shardings, PRNG keys among them.

  Returns:
    The sum over its leaves, without the compiler's padding.
  """
  total = 0
  for leaf in jax.tree.leaves(tree):
    shape = leaf.shape
    if getattr(leaf, 'sharding', None) is not None:
      shape = leaf.sharding.shard_shape(shape)
    total += math.prod(shape) * _item_size(leaf.dtype)
  return total


def check(field: str, size: int, what: str,
          available: Optional[float] = None) -> None:
  """Refuses what there is no room for, before it is made.

  Args:
    field: the config field that decides the size, for messages.
    size: bytes that it takes.
    what: what takes them, with a verb: 'a batch takes'.
    available: bytes that there are; those of this machine by default.

  Raises:
    ConfigError: it takes more than there is.
  """
  available = of_host() if available is None else available
  if available is not None and size > available:
    raise checks.ConfigError(
        f'{field} must be so small that memory has room; got a value with '
        f'which {what} {size / 2**30:,.1f} GiB of {available / 2**30:,.1f} GiB.'
        ' Choose a smaller one, or a machine with more.')


def check_batch(field: str, batch: Any) -> None:
  """Refuses batches that the host has no room for.

  Args:
    field: the config field that decides their size, for messages.
    batch: of all processes, of ShapeDtypeStructs.

  Raises:
    ConfigError: a batch takes more than there is.
  """
  check(field, bytes_per_device(batch) // jax.process_count(), 'a batch takes')


def _item_size(dtype):
  if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
    return jax.eval_shape(
        jax.random.key_data, jax.ShapeDtypeStruct((), dtype)).size * 4
  return dtype.itemsize
