"""Files that are only read, in a local folder or in a bucket."""

import hashlib
import io
import os
import pathlib
from typing import Any, BinaryIO, cast, NamedTuple

from haikd.storage import paths
from haikd.storage import regular

Path = paths.Path

_BUFFER = 2**20  # Bytes that are asked of an open object at a time, at most.
# Fields that say what an object holds; one that was uploaded in parts has no
# MD5, and one that is written again has another tag.
_IDENTITIES = ('md5Hash', 'etag', 'generation')


class Entry(NamedTuple):
  """What is in a folder: a file, or a folder."""

  path: paths.ConcretePath
  is_folder: bool


def entries(folder: Path) -> list[Entry]:
  """Returns what is in a folder, by name; nothing if it is missing.

  Args:
    folder: local or in a bucket, which is asked once, however many files it
      has.

  Raises:
    DataError: the folder is in a bucket that cannot be reached.
  """
  concrete = paths.as_path(folder)
  if not paths.is_remote(concrete):
    return [Entry(path, path.is_dir())
            for path in sorted(cast(pathlib.Path, concrete).glob('*'))]
  try:
    with paths.reaching(folder):
      listed = _bucket().ls(os.fspath(concrete), detail=True)
  except FileNotFoundError:
    return []
  named = {info['name'].rstrip('/').rpartition('/')[2]: info
           for info in listed if info['size'] or not _marks_folder(info)}
  return [Entry(concrete / name, named[name]['type'] == 'directory')
          for name in sorted(named)]


def _marks_folder(info):
  """Returns whether an object is the empty one that stands for a folder."""
  return info['type'] == 'file' and info['name'].endswith('/')


def size(path: Path) -> int:
  """Returns the size of a file in bytes."""
  if not paths.is_remote(path):
    return os.stat(path).st_size
  with paths.reaching(path):
    return _bucket().info(os.fspath(path))['size']


def identity(path: Path) -> str:
  """Returns what changes if an object in a bucket does.

  Args:
    path: begins with gs://.

  Raises:
    FileNotFoundError: there is no such object.
    DataError: the bucket cannot be reached.
  """
  with paths.reaching(path):
    info = _bucket().info(os.fspath(path))
  found = next(f'{field} {info[field]}' for field in _IDENTITIES
               if info.get(field))
  return hashlib.sha256(f'{found} {info["size"]}'.encode()).hexdigest()


def open_file(path: Path) -> io.BufferedReader:
  """Opens a file; one in a bucket is fetched as it is read.

  Args:
    path: the file.

  Raises:
    OSError: a local file cannot be opened, or the object is missing.
    DataError: it is no regular file, or the bucket cannot be reached; later
      also where it is read.
  """
  if not paths.is_remote(path):
    regular.check(path)
    return open(path, 'rb')
  with paths.reaching(path):
    return io.BufferedReader(
        _Object(path, _bucket().open(os.fspath(path), 'rb')), _BUFFER)


class _Object(io.RawIOBase):
  """An open object whose errors are those of `paths`."""

  def __init__(self, path: Path, file: BinaryIO):
    super().__init__()
    self._path = path
    self._file = file

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    with paths.reaching(self._path):
      content = self._file.read(len(buffer))
    buffer[:len(content)] = content
    return len(content)

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    return self._file.seek(offset, whence)

  def tell(self) -> int:
    return self._file.tell()

  def close(self) -> None:
    self._file.close()
    super().close()


def _bucket():
  """Returns the file system of buckets."""
  paths.as_path('gs://')  # Configures it.
  import fsspec
  return fsspec.filesystem('gcs')
