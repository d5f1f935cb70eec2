"""The folder of one checkpoint: whether it is complete, and what it holds.

    <step>/state/             the leaves: `leaves.safetensors`, or as Orbax
                              saves them
    <step>/metadata/metadata  what was saved beside them, as JSON
    <step>/amended.json       what counts in its place, with its checksum
    <step>/checksums.json     of the files of the first two; on disk only
    <step>/commit_success.txt in a bucket only, and written last

On disk, a folder gets its name when it is complete. A bucket cannot rename
anything; there, one more object says that a checkpoint is complete.
"""

from collections.abc import Iterator
import contextlib
import functools
import itertools
import pathlib
from typing import Any, Optional

from haikd.core import checks
from haikd.core import notes
from haikd.storage import checksums
from haikd.storage import extra as extra_lib
from haikd.storage import files
from haikd.storage import leaves as leaves_lib
from haikd.storage import one_file
from haikd.storage import orbax_arrays
from haikd.storage import paths

STATE, METADATA = 'state', 'metadata'
AMENDED = 'amended.json'
COMMITTED = 'commit_success.txt'


def find(folder: paths.ConcretePath) -> Optional[paths.ConcretePath]:
  """Returns the newest complete checkpoint.

  Args:
    folder: a folder of checkpoints that are named by their steps, or one
      checkpoint.

  Returns:
    The folder of the checkpoint, or None. A damaged one is left out, which is
    said.

  Raises:
    DataError: the folder is in a bucket that cannot be reached.
  """
  if folder.name.isdigit() and is_complete(folder):
    return folder if _is_whole(folder) else None
  return next(filter(_is_whole, complete(folder)), None)


def complete(folder: paths.ConcretePath) -> Iterator[paths.ConcretePath]:
  """Yields the complete checkpoints in a folder, the newest first."""
  steps = [name for name in paths.names(folder) if name.isdigit()]
  for name in sorted(steps, key=int, reverse=True):
    if is_complete(folder / name):
      yield folder / name


def damaged(folder: paths.ConcretePath) -> list[paths.ConcretePath]:
  """Returns the checkpoints that are newer than `find` returns, newest first.

  Those before that one are not read.
  """
  return list(itertools.takewhile(problem, complete(folder)))


def problem(folder: paths.ConcretePath) -> Optional[str]:
  """Returns what is wrong with a complete checkpoint, or None.

  Nothing is known to be wrong in a bucket, which checks what it stores. The
  files are read once in a process.
  """
  if paths.is_remote(folder):
    return None
  path = pathlib.Path(folder)
  changed = [(path / name).stat().st_mtime_ns if (path / name).exists() else 0
             for name in (checksums.FILE, AMENDED)]
  return _problem(path, *changed)


@functools.cache
def _problem(folder, *changed):
  del changed  # A checkpoint of the same step that was saved anew is read anew.
  names = paths.names(folder)
  # One that was copied from a bucket has no checksums.
  if checksums.FILE in names or COMMITTED not in names:
    if found := checksums.problem(folder):
      return found
  try:
    found = extra_lib.problem(_read_extra(folder))
  except (OSError, checks.DataError) as err:
    return checks.one_line(err)
  return found and f'what is beside the arrays has {found}'


def is_complete(folder: paths.ConcretePath) -> bool:
  """Returns whether the checkpoint in a step's folder is complete.

  One on disk was, even if a file of it is gone.
  """
  items = set(paths.names(folder))
  if not paths.is_remote(folder):
    return checksums.FILE in items or {STATE, METADATA} <= items
  # One that was copied into a bucket has the checksums in place of COMMITTED.
  # They may be the first that was copied.
  return {STATE, METADATA} <= items and not items.isdisjoint(
      {COMMITTED, checksums.FILE})


def metadata_of(folder: paths.ConcretePath) -> paths.ConcretePath:
  """Returns the file with what was saved beside the leaves."""
  return folder / METADATA / METADATA


def read_shapes(folder: paths.ConcretePath) -> leaves_lib.Leaves:
  """Returns the `jax.ShapeDtypeStruct`s of a checkpoint's leaves by name."""
  with _reading(folder):
    return _format(folder).read_shapes(folder / STATE)


def read_leaves(folder: paths.ConcretePath,
                requested: leaves_lib.Leaves,
                *,
                as_numpy: bool = False) -> leaves_lib.Leaves:
  """Reads the requested leaves of a checkpoint and no others.

  Args:
    folder: the folder of the checkpoint.
    requested: `jax.ShapeDtypeStruct`s by name. Each array is returned with the
      dtype and sharding requested here.
    as_numpy: whether to return NumPy arrays with the dtypes that were saved,
      ignoring those requested.

  Returns:
    `{name: array}`.

  Raises:
    DataError: the checkpoint cannot be read.
  """
  with _reading(folder):
    return _format(folder).read(folder / STATE, requested, as_numpy)


def read_extra(folder: paths.ConcretePath) -> dict[str, Any]:
  """Returns what was saved beside the leaves, or amended since.

  Returns:
    `iterator`, `metadata` and `best_step`, which may be None.

  Raises:
    DataError: it cannot be read, or it has values of other types.
  """
  with _reading(folder):
    extra = _read_extra(folder)
  if found := extra_lib.problem(extra):
    raise checks.DataError(
        f'checkpoint must have its metadata as it was saved; got {found} in '
        f'{folder}. Remove that folder to go on from an earlier checkpoint.')
  return dict(iterator=extra['iterator'], metadata=extra['metadata'],
              best_step=extra.get('best_step'))


def amend_extra(folder: paths.ConcretePath, extra: Any) -> None:
  """Writes anew what was saved beside the leaves, which stay as they are.

  It is one file more, which appears complete. A kill at any moment therefore
  leaves the checkpoint with the old content or with the new one.

  Args:
    folder: of a complete checkpoint.
    extra: as `read_extra` returns it; JSON must be able to hold it.
  """
  checksums.write_sealed(folder / AMENDED, extra)


def _read_extra(folder):
  if AMENDED in paths.names(folder):
    return checksums.read_sealed(folder / AMENDED)
  return files.read_json(metadata_of(folder))


def _format(folder):
  """Returns the module that reads the leaves in a checkpoint."""
  if one_file.NAME in paths.names(folder / STATE):
    return one_file
  return orbax_arrays


def _is_whole(folder):
  """Returns whether no file of a checkpoint is damaged; says one that is."""
  found = problem(folder)
  if found:
    notes.say(f'{folder} is left out, since it is damaged: {found}.')
  return not found


@contextlib.contextmanager
def _reading(folder):
  try:
    yield
  except Exception as err:  # Orbax and TensorStore raise many kinds.
    raise checks.DataError(
        f'checkpoint must be complete; got {folder} '
        f'({checks.describe(err)}). Remove that folder to go on from an '
        'earlier checkpoint.') from err
