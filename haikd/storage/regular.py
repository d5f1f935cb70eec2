"""Files that end: a pipe or a device is refused before it is opened."""

import os
import stat

from haikd.core import checks

_KINDS = ((stat.S_ISFIFO, 'a pipe'), (stat.S_ISSOCK, 'a socket'),
          (stat.S_ISCHR, 'a device'), (stat.S_ISBLK, 'a device'))


def check(path: os.PathLike | str) -> None:
  """Refuses what is neither a file nor a folder.

  Opening a pipe waits for somebody who writes to it, and a device may never
  end. A folder passes: opening it fails at once.

  Args:
    path: local.

  Raises:
    OSError: it is missing, or cannot be reached.
    DataError: it is a pipe, a socket or a device.
  """
  mode = os.stat(path).st_mode
  for is_kind, name in _KINDS:
    if is_kind(mode):
      raise checks.DataError(
          f'{str(path)!r} must be a file; got {name}. Copy its content into a '
          'file.')
