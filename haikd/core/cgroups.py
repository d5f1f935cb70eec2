"""The control groups of this process, by which Linux limits what it may use."""

from collections.abc import Iterator
import pathlib

GROUPS = pathlib.Path('/proc/self/cgroup')
ROOT = pathlib.Path('/sys/fs/cgroup')


def folders(controller: str, groups: pathlib.Path = GROUPS,
            root: pathlib.Path = ROOT) -> Iterator[pathlib.Path]:
  """Yields the folders of this process's groups, and of those above them.

  The limit of a group above holds as well.

  Args:
    controller: 'memory' or 'cpu'.
    groups: has a line `number:controllers:path` for each group. A container may
      see itself as the path `/`, or a path that is not there.
    root: where the groups are mounted.
  """
  try:
    lines = groups.read_text().splitlines()
  except OSError:  # Another system than Linux.
    return
  for line in lines:
    _, controllers, path = line.split(':', 2)
    if controllers and controller not in controllers.split(','):
      continue  # Version 2 names none, and has all in one folder.
    mount = root / controller if controllers else root
    inner = mount / path.lstrip('/')
    for folder in (inner, *inner.parents):
      if mount in (folder, *folder.parents):
        yield folder
