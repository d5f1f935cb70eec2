"""Checksums of a checkpoint's files, which tell a damaged one from a good one.

They lie in the checkpoint itself, and are written before it gets its name: a
checkpoint that is complete has them. In a bucket there are none, since a
bucket checks what it stores.
"""

from collections.abc import Mapping
import hashlib
import os
import pathlib
from typing import Any, Optional

from haikd.core import checks
from haikd.storage import files

FILE = 'checksums.json'


def of(content: bytes) -> str:
  """Returns the SHA-256 of bytes, in hex."""
  return hashlib.sha256(content).hexdigest()


def write(folder: pathlib.Path, known: Mapping[str, str]) -> None:
  """Writes the checksums of all files below a folder.

  Args:
    folder: of a checkpoint, on disk.
    known: those of files that need not be read for it, by name.
  """
  files.write_json(folder / FILE, {
      name: known.get(name) or files.checksum(folder / name)
      for name in _names(folder)})


def problem(folder: pathlib.Path) -> Optional[str]:
  """Returns what is wrong with the files that have a checksum, or None.

  Args:
    folder: of a complete checkpoint, on disk.
  """
  try:
    if not (folder / FILE).exists():
      return f'{FILE} is missing'
    found = set(_names(folder))
    saved = files.read_json(folder / FILE)
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


def write_sealed(path: files.Path, value: Any) -> None:
  """Writes a value as JSON with its own checksum, in one file, atomically."""
  files.write_json(path, dict(
      sha256=of(files.encode(value).encode()), content=value))


def read_sealed(path: files.Path) -> Any:
  """Reads a file of `write_sealed`.

  Raises:
    DataError: it cannot be read, or has changed since it was written.
  """
  sealed = files.read_json(path)
  if not isinstance(sealed, dict) or sealed.get('sha256') != of(
      files.encode(sealed.get('content')).encode()):
    raise checks.DataError(
        f'{path} must be as it was written; got another checksum. Remove or '
        'restore the file.')
  return sealed['content']


def _names(folder):
  found = (pathlib.PurePath(os.path.relpath(inner, folder), name).as_posix()
           for inner, _, names in os.walk(folder) for name in names
           if os.path.isfile(os.path.join(inner, name)))
  return sorted(name for name in found if name != FILE)
