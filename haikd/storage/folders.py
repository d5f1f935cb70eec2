"""Folders that are written for others: complete, or not there."""

from collections.abc import Callable, Iterator
import contextlib
import pathlib
import shutil
import tempfile

from haikd.core import checks
from haikd.storage import paths


def check_free(folder: paths.Path,
               is_ours: Callable[[pathlib.Path], bool]) -> None:
  """Refuses a folder that cannot be written, or that holds something else.

  Args:
    folder: the folder to write.
    is_ours: returns whether a folder is an earlier export of the same format.

  Raises:
    ConfigError: it is in a bucket, or holds anything but an earlier export.
  """
  if paths.is_remote(folder):
    raise checks.ConfigError(
        f'--output must be a local folder; got {folder}. Export to this '
        'machine, and copy the folder.')
  path = pathlib.Path(folder)
  if not path.exists() or path.is_dir() and (
      not any(path.iterdir()) or is_ours(path)):
    return
  raise checks.ConfigError(
      '--output must be empty, missing or an earlier export of this --format; '
      f'got {folder}. Choose another, or remove it.')


@contextlib.contextmanager
def appearing(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a folder to write in, which replaces `folder` at the end.

  Args:
    folder: a local folder that is missing, or may be replaced.

  Yields:
    A folder beside it.

  Raises:
    DataError: it cannot be written.
  """
  folder = folder.absolute()
  private = None
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # `mkdtemp` makes a folder that only this user can open; a folder inside it
    # has the permissions of any other.
    private = pathlib.Path(
        tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    temporary, old = private / 'new', private / 'old'
    temporary.mkdir()
    yield temporary
    if folder.exists():
      folder.rename(old)
    try:
      temporary.rename(folder)
    except OSError:
      if old.exists():
        old.rename(folder)
      raise
  except OSError as err:
    raise checks.DataError(
        f'--output must be writable; got {folder} ({checks.one_line(err)}). '
        'Make room, or choose another.') from err
  finally:
    if private is not None:
      shutil.rmtree(private, ignore_errors=True)
