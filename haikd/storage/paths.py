"""Where files lie: in a local folder, or in a bucket of Google Cloud Storage.

A bucket has objects and no folders. An object appears in one piece, nothing can
be appended to it, and there are no locks. All that follows from this is in
here, save for the lock of a workdir and for when a checkpoint is complete.
"""

import contextlib
import functools
import importlib.util
import os
import pathlib
import re
import shutil
import tempfile
import time
from typing import Union
import uuid

from haikd.core import checks

Path = Union[str, os.PathLike]

_SCHEME = 'gs://'
_SECONDS = 30  # Between two uploads of what is being written.
_SHARE = 20  # One part in so many of the time is spent on them at most.
_LEFTOVER = 86400  # Seconds: what is being written is not as old.


def is_remote(path: Path) -> bool:
  """Returns whether a path begins with gs://."""
  return os.fspath(path).startswith(_SCHEME)


def as_path(path: Path) -> pathlib.PurePath:
  """Returns a path to work with.

  Args:
    path: of a local file or folder, or one that begins with gs://.

  Returns:
    A `pathlib.Path`, or for a bucket an `epath.Path`, which keeps both slashes
    of gs:// where pathlib makes them one.

  Raises:
    ConfigError: some other URL.
    DataError: gcsfs, which talks to buckets, is not installed.
  """
  text = os.fspath(path)
  if is_remote(text):
    return _epath()(text)
  if match := re.match(r'[A-Za-z][A-Za-z0-9+.-]*://', text):
    raise checks.ConfigError(
        'paths.as_path: path must be a local one or begin with gs://; got '
        f'path={text!r}. Mount what {match[0]} stands for, and give the folder '
        'where it is mounted.')
  return pathlib.Path(text)


def absolute(path: Path) -> pathlib.PurePath:
  """Returns what `as_path` does, from the root of the filesystem or bucket."""
  path = as_path(path)
  return path if is_remote(path) else path.absolute()


def make_folder(path: Path) -> None:
  """Makes a folder and those above it; a bucket has none to be made."""
  if not is_remote(path):
    pathlib.Path(path).mkdir(parents=True, exist_ok=True)


def names(folder: Path) -> list[str]:
  """Returns what lies in a folder, by name; nothing if there is no folder.

  Args:
    folder: local or in a bucket.

  Raises:
    DataError: it is in a bucket that cannot be reached. This is never taken for
      an empty folder, where a run would begin anew.
  """
  folder = as_path(folder)
  try:
    with _reaching('paths.names', folder):
      return [path.name for path in folder.iterdir()]
  except (FileNotFoundError, NotADirectoryError):
    return []


def exists(path: Path) -> bool:
  """Returns whether there is a file or folder; raises as `names` does."""
  path = as_path(path)
  # Of an object that is asked for by itself, gcsfs takes any error for absence.
  return path.name in names(path.parent) if is_remote(path) else path.exists()


def read(path: Path) -> bytes:
  """Returns the content of a file.

  Args:
    path: local or in a bucket.

  Raises:
    OSError: a local file cannot be read.
    FileNotFoundError: there is no such file or object.
    DataError: it is in a bucket that cannot be reached.
  """
  path = as_path(path)
  with _reaching('paths.read', path):
    return path.read_bytes()


def replace(path: Path, content: bytes) -> None:
  """Writes a file in one piece: it has the old content or the new one.

  Args:
    path: where; a local folder has to be there.
    content: the new content.

  Raises:
    OSError: a local file cannot be written.
    DataError: it is in a bucket that cannot be written to.
  """
  path = as_path(path)
  if is_remote(path):
    try:
      with _reaching('paths.replace', path):
        path.write_bytes(content)
    except FileNotFoundError as err:
      raise _out_of_reach('paths.replace', path, err) from err
    return
  hidden = temporary(path)
  try:
    with open(hidden, 'wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(hidden, path)
  finally:
    hidden.unlink(missing_ok=True)


def temporary(path: pathlib.Path) -> pathlib.Path:
  """Returns a hidden name beside a local file, to write it under.

  It is never the same twice: processes of two hosts or containers that share a
  folder may well have the same number.
  """
  return path.with_name(f'.{path.name}.{uuid.uuid4().hex}')


def remove_leftovers(folder: pathlib.Path) -> None:
  """Removes what killed processes left under a name of `temporary`.

  Args:
    folder: a local one; it is done in the folders below, too. What was written
      to within a day stays, and what cannot be removed.
  """
  for path in folder.rglob('.*'):
    if re.fullmatch(r'\..+\.[0-9a-f]{32}', path.name):
      with contextlib.suppress(OSError):  # It is gone, or somebody else's.
        if time.time() - path.stat().st_mtime > _LEFTOVER:
          path.unlink()


class Staging:
  """A local folder for files that grow, and are to appear in another.

  For a local folder it is that folder itself. For a bucket it is a temporary
  one: whatever changes in it is uploaded as a whole, now and then and by
  `flush`. A process that is killed loses what it wrote after the last upload,
  half a minute or a twentieth of the run; flush before a checkpoint is saved,
  and nothing is lost that a new start does not write again.

  Attributes:
    folder: where to write.

  Args:
    target: where the files are to appear.
    known: names of files that may be there already, and are to be gone on with.

  Raises:
    DataError: the target is in a bucket that cannot be reached.
  """

  def __init__(self, target: Path, known: tuple[str, ...] = ()):
    self._target = as_path(target)
    if not is_remote(target):
      make_folder(target)
      self.folder = self._target
      return
    self.folder = pathlib.Path(tempfile.mkdtemp(prefix='haikd-'))
    self._uploaded = {}  # What was seen of a file when it was uploaded last.
    self._due = time.monotonic() + _SECONDS
    for name in set(known).intersection(names(target)):
      (self.folder / name).write_bytes(read(self._target / name))
      self._uploaded[name] = _version(self.folder / name)

  def flush_if_due(self) -> None:
    """Uploads what has changed, if the last time is long enough ago."""
    if is_remote(self._target) and time.monotonic() >= self._due:
      self.flush()

  def flush(self) -> None:
    """Uploads what has changed; returns when it is there."""
    if not is_remote(self._target):
      return
    start = time.monotonic()
    for path in sorted(self.folder.iterdir()):
      version = _version(path)
      if self._uploaded.get(path.name) != version:
        replace(self._target / path.name, path.read_bytes())
        self._uploaded[path.name] = version
    now = time.monotonic()
    self._due = now + max(_SECONDS, _SHARE * (now - start))

  def close(self) -> None:
    """Uploads what has changed, and removes the temporary folder."""
    if is_remote(self._target):
      try:
        self.flush()
      finally:
        shutil.rmtree(self.folder)


def _version(path):
  """Returns what tells a file from itself when more was written to it."""
  stat = path.stat()
  return stat.st_size, stat.st_mtime_ns, stat.st_ino


@functools.cache
def _epath():
  """Returns the class of remote paths, made fit for what haikd does."""
  if importlib.util.find_spec('gcsfs') is None:
    raise checks.DataError(
        "paths.as_path: gcsfs must be installed to use gs://; got none. Run "
        "`pip install 'haikd[gcs]'`.")
  # Both count for the whole process, and only before a bucket is first used:
  # epath prefers TensorFlow where it is installed, and gcsfs remembers listings
  # that Orbax, which writes past it, makes wrong.
  os.environ.setdefault('EPATH_USE_TF', 'false')
  import fsspec
  fsspec.config.conf.setdefault('gcs', {}).setdefault('use_listings_cache',
                                                      False)
  from etils import epath
  return epath.Path


@contextlib.contextmanager
def _reaching(where, path):
  """Makes an error of a bucket a DataError, save that an object is not there.

  Errors of local paths are left as they are.
  """
  try:
    yield
  except FileNotFoundError:
    raise
  except Exception as err:  # gcsfs, aiohttp and google.auth have many.
    if not is_remote(path):
      raise
    raise _out_of_reach(where, path, err) from err


def _out_of_reach(where, path, err):
  return checks.DataError(
      f'{where}: bucket must be there and open to you; got path={path} '
      f'({type(err).__name__}: {checks.one_line(err)}). Check its name, the '
      'network, your rights, and `gcloud auth application-default login`.')
