"""Checksums of a checkpoint's files, which tell a damaged one from a good one.

They lie in the checkpoint itself, and are written before it gets its name: a
checkpoint that is complete has them. In a bucket there are none, since a
bucket checks what it stores.
"""

import functools
import pathlib
from typing import Optional

from haikd.core import checks
from haikd.storage import files
from haikd.storage import paths

FILE = 'checksums.json'
# Orbax writes when it has committed, which is later.
_LATER = '_CHECKPOINT_METADATA'


def write(folder: pathlib.Path) -> None:
  """Writes the checksums of all files below a folder.

  Args:
    folder: of a checkpoint, on disk.
  """
  files.write_json(folder / FILE, {
      name: files.checksum(folder / name) for name in _names(folder)})


def add(folder: pathlib.Path, name: str) -> None:
  """Adds the checksum of a file that was written after the others.

  Args:
    folder: of a checkpoint, on disk.
    name: of the file, in the folder.
  """
  path = folder / FILE
  if path.exists():
    files.write_json(path, {
        **files.read_json(path), name: files.checksum(folder / name)})


def problem(folder: paths.ConcretePath) -> Optional[str]:
  """Returns what is wrong with a checkpoint's files, or None.

  The files are read once in a process.

  Args:
    folder: of a complete checkpoint. Without checksums, as in a bucket, nothing
      is known to be wrong.
  """
  if paths.is_remote(folder) or FILE not in paths.names(folder):
    return None
  path = pathlib.Path(folder)
  return _problem(path, (path / FILE).stat().st_mtime_ns)


@functools.cache
def _problem(folder, changed):
  del changed  # A checkpoint of the same step that was saved anew is read anew.
  try:
    saved = files.read_json(folder / FILE)
    found = set(_names(folder))
    if not isinstance(saved, dict):
      return f'{FILE} is damaged'
    for name, checksum in saved.items():
      if name not in found:
        return f'{name} is missing'
      if files.checksum(folder / name) != checksum:
        return f'{name} has changed since it was saved'
  except (OSError, checks.DataError) as err:
    return checks.one_line(err)
  return None


def _names(folder):
  return sorted(
      path.relative_to(folder).as_posix() for path in folder.rglob('*')
      if path.is_file() and path.name not in (FILE, _LATER))
