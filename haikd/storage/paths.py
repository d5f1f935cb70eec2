"""Where files lie: in a local folder, or in a bucket of Google Cloud Storage.

A bucket has objects but no folders. An object is written atomically, cannot be
appended to, and cannot be locked. This module hides these differences, but for
the lock of a workdir (`run/workdir`) and whether a checkpoint is complete.
"""

from collections.abc import Iterator
import contextlib
import functools
import importlib.util
import os
import pathlib
import re
import shutil
import tempfile
import time
from typing import TYPE_CHECKING, Union
import uuid

from haikd.core import checks
from haikd.core import secrets
from haikd.storage import regular

if TYPE_CHECKING:
  from etils import epath

Path = Union[str, os.PathLike]
# With the methods of pathlib that access files.
ConcretePath = Union[pathlib.Path, 'epath.Path']

_SCHEME = 'gs://'
_UPLOAD_INTERVAL = 30  # Seconds between two uploads, at least.
_UPLOAD_SHARE = 20  # Uploads take at most 1/_UPLOAD_SHARE of the time.
_REASON = 200  # Letters of what another library says is wrong.
_LEFTOVER_AGE = 86400  # Seconds; a file that is being written is younger.


def is_remote(path: Path) -> bool:
  """Returns whether a path begins with gs://."""
  return os.fspath(path).startswith(_SCHEME)


def as_path(path: Path) -> ConcretePath:
  """Returns a path as an object with the methods of pathlib.

  Args:
    path: of a local file or folder, or one that begins with gs://.

  Returns:
    A `pathlib.Path`, or for a bucket an `epath.Path`, which keeps both slashes
    of gs:// where pathlib merges them into one.

  Raises:
    ConfigError: the path is another kind of URL.
    DataError: gcsfs, which accesses buckets, is not installed.
  """
  text = os.fspath(path)
  if is_remote(text):
    return _epath()(text)
  if match := re.match(r'[A-Za-z][A-Za-z0-9+.-]*://', text):
    raise checks.ConfigError(
        f'{secrets.masked(text)!r} must be a local path or begin with gs://; '
        f'got {match[0]}. '
        'Mount that storage and give the folder of the mount.')
  return pathlib.Path(text)


def absolute(path: Path) -> ConcretePath:
  """Returns `as_path(path)`, made absolute if it is local."""
  concrete = as_path(path)
  return concrete if is_remote(path) else pathlib.Path(concrete).absolute()


def make_folder(path: Path) -> None:
  """Makes a folder and its parents; does nothing in a bucket."""
  if not is_remote(path):
    pathlib.Path(path).mkdir(parents=True, exist_ok=True)


def names(folder: Path) -> list[str]:
  """Returns the names of a folder's entries; a missing folder has none.

  Args:
    folder: local or in a bucket.

  Raises:
    DataError: the folder is in a bucket that cannot be reached. Such a folder
      is never taken for an empty one, in which a run would begin anew.
  """
  try:
    with reaching(folder):
      return [path.name for path in as_path(folder).iterdir()]
  except (FileNotFoundError, NotADirectoryError):
    return []


def exists(path: Path) -> bool:
  """Returns whether a file or folder exists; raises as `names` does."""
  concrete = as_path(path)
  if is_remote(path):
    # If asked for one object, gcsfs reports any error as its absence.
    return concrete.name in names(concrete.parent)
  return concrete.exists()


def unwritable(workdir: Path, err: Exception) -> checks.DataError:
  """Returns the error of a workdir that cannot be written to."""
  # TensorStore and Orbax say where in their code, and every step to it.
  reason = re.split(r' \[source|Traceback', checks.one_line(err))[0]
  return checks.DataError(
      f'--workdir must be a folder that can be written to; got {workdir} '
      f'({reason[:_REASON]}). Make room, or choose another --workdir.')


def read(path: Path) -> bytes:
  """Returns the content of a file.

  Args:
    path: local or in a bucket.

  Raises:
    OSError: a local file cannot be read.
    FileNotFoundError: the file or object does not exist.
    DataError: it is no regular file, or in a bucket that cannot be reached.
  """
  with reaching(path):
    if not is_remote(path):
      regular.check(path)
    return as_path(path).read_bytes()


def replace(path: Path, content: bytes) -> None:
  """Writes a file atomically: a reader sees the old content or the new one.

  Args:
    path: the file; if it is local, its folder must exist.
    content: the new content.

  Raises:
    OSError: a local file cannot be written.
    DataError: the path is in a bucket that cannot be written to.
  """
  if is_remote(path):
    try:
      with reaching(path):
        as_path(path).write_bytes(content)
    except FileNotFoundError as err:
      raise _unreachable(path, err) from err
    return
  hidden = temporary(pathlib.Path(path))
  try:
    with open(hidden, 'wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(hidden, path)
  finally:
    hidden.unlink(missing_ok=True)


def temporary(path: pathlib.Path) -> pathlib.Path:
  """Returns a hidden path beside a local file, to write the file under.

  Each call returns another path. A process id would not be enough: processes
  of two hosts or containers that share a folder may have the same one.
  """
  return path.with_name(f'.{path.name}.{uuid.uuid4().hex}')


def remove_leftovers(folder: pathlib.Path) -> None:
  """Removes the files that killed processes left under `temporary` paths.

  Files that were written to within a day stay, and so do files that cannot be
  removed.

  Args:
    folder: a local folder; its subfolders are cleaned, too.
  """
  for path in folder.rglob('.*'):
    if re.fullmatch(r'\..+\.[0-9a-f]{32}', path.name):
      with contextlib.suppress(OSError):  # It is gone, or another user's.
        if time.time() - path.stat().st_mtime > _LEFTOVER_AGE:
          path.unlink()


class Staging:
  """A local folder for growing files whose target may be a bucket.

  If the target is local, the folder is the target itself. If it is in a bucket,
  the folder is a temporary one, and each file that has changed is uploaded
  completely, now and then and by `flush`. A killed process loses what it wrote
  after the last upload: half a minute or a twentieth of the run. Flush before a
  checkpoint is saved; then a restart writes everything again that was lost.

  Attributes:
    folder: the folder to write to.

  Args:
    target: the folder in which the files appear.
    known: names of files to continue if they exist in the target.

  Raises:
    DataError: the target is in a bucket that cannot be reached.
  """

  def __init__(self, target: Path, known: tuple[str, ...] = ()):
    self._target = as_path(target)
    if not is_remote(target):
      make_folder(target)
      self.folder = pathlib.Path(target)
      return
    self.folder = pathlib.Path(tempfile.mkdtemp(prefix='haikd-'))
    self._uploaded = {}  # `_version` of each file at its last upload, by name.
    self._due = time.monotonic() + _UPLOAD_INTERVAL
    for name in set(known).intersection(names(target)):
      (self.folder / name).write_bytes(read(self._target / name))
      self._uploaded[name] = _version(self.folder / name)

  def flush_if_due(self) -> None:
    """Uploads what has changed if the last upload is long enough ago."""
    if is_remote(self._target) and time.monotonic() >= self._due:
      self.flush()

  def flush(self) -> None:
    """Uploads what has changed; returns when the upload is complete."""
    if not is_remote(self._target):
      return
    start = time.monotonic()
    for path in sorted(self.folder.iterdir()):
      version = _version(path)
      if self._uploaded.get(path.name) != version:
        replace(self._target / path.name, path.read_bytes())
        self._uploaded[path.name] = version
    now = time.monotonic()
    self._due = now + max(_UPLOAD_INTERVAL, _UPLOAD_SHARE * (now - start))

  def close(self) -> None:
    """Uploads what has changed, and removes the temporary folder."""
    if is_remote(self._target):
      try:
        self.flush()
      finally:
        shutil.rmtree(self.folder)


def _version(path):
  """Returns a value that changes whenever the file is written to."""
  stat = path.stat()
  return stat.st_size, stat.st_mtime_ns, stat.st_ino


@functools.cache
def _epath():
  """Returns the class of remote paths, after configuring its libraries."""
  if importlib.util.find_spec('gcsfs') is None:
    raise checks.DataError(
        "gcsfs must be installed to use gs:// paths; it is missing. Run `pip "
        "install 'haikd[gcs]'`.")
  # Both settings hold for the process and must precede the first use of a
  # bucket. epath would use TensorFlow if it is installed. gcsfs would cache
  # listings, which become stale because Orbax writes without gcsfs.
  os.environ.setdefault('EPATH_USE_TF', 'false')
  import fsspec
  fsspec.config.conf.setdefault('gcs', {}).setdefault('use_listings_cache',
                                                      False)
  from etils import epath
  return epath.Path


@contextlib.contextmanager
def reaching(path: Path) -> Iterator[None]:
  """Turns an error of a bucket into a DataError, except FileNotFoundError.

  Errors of local paths are raised unchanged.

  Args:
    path: what is accessed inside.
  """
  try:
    yield
  except FileNotFoundError:
    raise
  except Exception as err:  # gcsfs, aiohttp and google.auth have many.
    if not is_remote(path):
      raise
    raise _unreachable(path, err) from err


def _unreachable(path, err):
  """Returns the error of a bucket that is missing or closed to the user."""
  return checks.DataError(
      f'bucket must exist and be open to you; got path={path} '
      f'({checks.describe(err)}). Check its name, the network, your rights, '
      'and `gcloud auth application-default login`.')
