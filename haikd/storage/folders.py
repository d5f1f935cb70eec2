"""Folders that are written for others: complete, or not there."""

from collections.abc import Iterator
import contextlib
import pathlib
import shutil
import tempfile
from typing import Any

from haikd.core import checks
from haikd.storage import files
from haikd.storage import paths

# What an export lists its files in, with their checksums.
MANIFEST = 'export_manifest.json'


def check_free(folder: paths.Path, kind: str) -> None:
  """Refuses a folder that cannot be written, or that holds something else.

  Args:
    folder: the folder to write.
    kind: the format to export; an earlier export of the same one is replaced,
      as long as the folder holds nothing but its files, as they were written.

  Raises:
    ConfigError: it is in a bucket, or holds anything but an earlier export.
  """
  if paths.is_remote(folder):
    raise checks.ConfigError(
        f'--output must be a local folder; got {folder}. Export to this '
        'machine, and copy the folder.')
  path = pathlib.Path(folder)
  problem = _problem(path, kind)
  if problem:
    raise checks.ConfigError(
        '--output must be empty, missing or an earlier export of this '
        f'--format, with nothing added; got {folder}, {problem}. Move what is '
        'yours, or choose another.')


def _problem(folder, kind):
  """Returns what is not of an earlier export in a folder, or None."""
  if not folder.exists():
    return None
  if not folder.is_dir():
    return 'which is a file'
  names = {path.relative_to(folder).as_posix() for path in folder.rglob('*')
           if not path.is_dir() or path.is_symlink()}
  if not names:
    return None
  written: Any = None
  if MANIFEST in names:
    with contextlib.suppress(checks.DataError):
      written = files.read_json(folder / MANIFEST)
  if not isinstance(written, dict) or not isinstance(
      written.get('files'), dict):
    return f'which has no {MANIFEST}'
  if written.get('format') != kind:
    return f'an export of the format {written.get("format")}'
  listed = written['files']
  for name in sorted(names - {MANIFEST}):
    if name not in listed:
      return f'where {name} is no part of it'
    if files.checksum(folder / name) != listed[name]:
      return f'where {name} has changed'
  return None


def _write_manifest(folder, kind):
  names = sorted(path.relative_to(folder).as_posix()
                 for path in folder.rglob('*') if path.is_file())
  files.write_json(folder / MANIFEST, dict(
      format=kind,
      files={name: files.checksum(folder / name) for name in names}))


@contextlib.contextmanager
def appearing(folder: pathlib.Path, kind: str) -> Iterator[pathlib.Path]:
  """Yields a folder to write in, which replaces `folder` at the end.

  Args:
    folder: a local folder that is missing, or may be replaced.
    kind: as for `check_free`.

  Yields:
    A folder beside it.

  Raises:
    DataError: it cannot be written.
    ConfigError: as `check_free`, which it may have become in the meantime.
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
    _write_manifest(temporary, kind)
    check_free(folder, kind)
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
