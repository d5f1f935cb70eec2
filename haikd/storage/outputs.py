"""Files that are written by libraries, and what is kept of others for the user.

Both are local, wherever the result lies.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import tempfile

from haikd.storage import paths


@contextlib.contextmanager
def staged(path: paths.Path) -> Iterator[pathlib.Path]:
  """Yields a local path to write a file at, which appears at the end.

  Args:
    path: where it appears, at once; local or in a bucket.

  Raises:
    OSError: a local file cannot be written.
    DataError: the path is in a bucket that cannot be written to.
  """
  if not paths.is_remote(path):
    temporary = paths.temporary(pathlib.Path(path))
    try:
      yield temporary
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)
    return
  with tempfile.TemporaryDirectory(prefix='haikd-') as folder:
    temporary = pathlib.Path(folder) / paths.as_path(path).name
    yield temporary
    paths.replace(path, temporary.read_bytes())


def cache(name: str) -> pathlib.Path:
  """Returns a folder for what can be made or fetched again.

  Args:
    name: of the folder, below that of haikd in XDG_CACHE_HOME or ~/.cache.

  Raises:
    RuntimeError: there is no home folder.
  """
  root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(root) / 'haikd' / name
