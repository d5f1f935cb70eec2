"""How many cores this process may keep busy."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import re

from haikd.core import cgroups

# Of a launcher: how many processes it has started on this machine. Slurm gives
# those of each machine, such as `4(x2),3`.
_TASKS = ('SLURM_STEP_TASKS_PER_NODE', 'OMPI_COMM_WORLD_LOCAL_SIZE')


def of_process() -> int:
  """Returns the cores for this process, which is one of several on its machine.

  They are those that it may run on, or the quota of its container where that is
  lower, divided by the processes that a launcher has started here.
  """
  cores = (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else
           os.cpu_count() or 1)
  quota = min([cores, *_quotas(cgroups.GROUPS, cgroups.ROOT)])
  return max(int(quota) // _processes(), 1)


def _processes() -> int:
  """Returns how many processes a launcher has started on this machine."""
  counts = re.findall(r'(?<![x\d])\d+', ','.join(
      os.environ.get(name, '') for name in _TASKS))
  return max([1, *map(int, counts)])


def _quotas(groups: pathlib.Path, root: pathlib.Path) -> Iterator[float]:
  """Yields the quotas of the control groups of this process, in cores.

  Args:
    groups: as for `cgroups.folders`.
    root: likewise.
  """
  for folder in cgroups.folders('cpu', groups, root):
    # Without a quota, version 2 says `max` and 1 says -1.
    with contextlib.suppress(OSError, ValueError):
      quota, period = map(int, (folder / 'cpu.max').read_text().split())
      yield quota / period
    with contextlib.suppress(OSError, ValueError):
      quota, period = (int((folder / f'cpu.cfs_{name}_us').read_text())
                       for name in ('quota', 'period'))
      if quota > 0:
        yield quota / period
