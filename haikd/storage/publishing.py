"""Writes and removes checkpoints, so that a kill leaves none that is half."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import re
import shutil
from typing import Any

from haikd.core import checks
from haikd.storage import checksums
from haikd.storage import paths
from haikd.storage import step_folder

# On disk, what is written or removed has such a name, which only haikd gives.
_SAVING, _REMOVED = '.haikd-saving', '.haikd-removed'
_LEFTOVER = re.compile(rf'\d+({re.escape(_SAVING)}|{re.escape(_REMOVED)})')
# In a bucket, it has the name of a step, and inside such names and no others.
_UNFINISHED = re.compile(
    rf'{step_folder.STATE}(\.orbax-checkpoint-tmp.*)?|{step_folder.METADATA}|'
    rf'{re.escape(step_folder.AMENDED)}')


def begin(folder: paths.ConcretePath) -> paths.ConcretePath:
  """Returns the folder in which to write a checkpoint; on disk it is made.

  Args:
    folder: of the checkpoint, when it is complete.
  """
  if paths.is_remote(folder):
    return folder
  unfinished = pathlib.Path(unfinished_of(folder))
  unfinished.mkdir()
  return unfinished


def unfinished_of(folder: paths.ConcretePath) -> paths.ConcretePath:
  """Returns the folder that `begin` returns."""
  return (folder if paths.is_remote(folder) else
          folder.with_name(f'{folder.name}{_SAVING}'))


def publish(folder: paths.ConcretePath, extra: str,
            sums: dict[str, str]) -> None:
  """Completes a checkpoint whose leaves are written.

  Args:
    folder: of the checkpoint, which gets its name last.
    extra: what is saved beside the leaves, as JSON.
    sums: checksums of files below the folder that are known already, by name.
  """
  unfinished, content = unfinished_of(folder), extra.encode()
  metadata = step_folder.metadata_of(unfinished)
  if paths.is_remote(folder):
    paths.replace(metadata, content)
    paths.replace(folder / step_folder.COMMITTED, b'')
    return
  path = pathlib.Path(unfinished)
  metadata.parent.mkdir()
  paths.replace(metadata, content)
  name = pathlib.Path(metadata).relative_to(path).as_posix()
  checksums.write(path, {**sums, name: checksums.of(content)})
  for inner in (*path.iterdir(), path):
    if inner.is_dir():
      _sync(inner)
  path.rename(folder)
  _sync(path.parent)


def remove(folder: paths.ConcretePath) -> None:
  """Removes a complete checkpoint; a kill leaves none that looks complete.

  One that is gone already is removed. Of one on disk files may be left, under
  another name, which the next start removes: on NFS those that others read.
  """
  if paths.is_remote(folder):
    for name in (step_folder.COMMITTED, checksums.FILE):
      (folder / name).unlink(missing_ok=True)
    _remove_objects(folder)
    return
  path = pathlib.Path(folder)
  with contextlib.suppress(FileNotFoundError):
    shutil.rmtree(path.rename(path.with_name(f'{path.name}{_REMOVED}')),
                  ignore_errors=True)


def discard(folder: paths.ConcretePath) -> None:
  """Removes what was written of a checkpoint that could not be completed."""
  unfinished = unfinished_of(folder)
  if not paths.is_remote(unfinished):
    shutil.rmtree(unfinished, ignore_errors=True)
  elif _is_leftover(unfinished):
    _remove_objects(unfinished)


def remove_leftovers(folder: paths.ConcretePath) -> list[str]:
  """Removes what kills have left of saves and removals in a folder.

  Returns:
    The names of what is there and is no complete checkpoint either: others
    have written it.
  """
  others = []
  for name in sorted(paths.names(folder)):
    path = folder / name
    if not _is_leftover(path):
      if not step_folder.is_complete(path):
        others.append(name)
    elif paths.is_remote(path):
      _remove_objects(path)
    else:  # What was removed may stay once more.
      shutil.rmtree(path, ignore_errors=name.endswith(_REMOVED))
  return others


@contextlib.contextmanager
def writing(folder: paths.Path) -> Iterator[None]:
  """Turns any error inside into a DataError that names the folder."""
  try:
    yield
  except checks.DataError:
    raise
  except Exception as err:  # Orbax and TensorStore raise many kinds.
    raise paths.unwritable(folder, err) from err


def _is_leftover(folder: paths.ConcretePath) -> bool:
  """Returns whether a kill has left a folder with such a name and content."""
  if not paths.is_remote(folder):
    return _LEFTOVER.fullmatch(folder.name) is not None
  return folder.name.isdigit() and all(
      map(_UNFINISHED.fullmatch, paths.names(folder)))


def _remove_objects(folder: Any) -> None:
  """Removes what is in a folder of a bucket; it may be missing."""
  folder.rmtree(missing_ok=True)


def _sync(folder):
  """Returns when the names in a folder would survive a crash of the system."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
