"""The files of a table, and the columns in them."""

from collections.abc import Sequence
import functools
import os
from typing import Any, Optional

from haikd.core import checks
from haikd.data import reading as reading_lib
from haikd.data import splits as splits_lib
from haikd.data.records import file_names
from haikd.data.records import hints
from haikd.data.tables import arrow_columns
from haikd.data.tables import column as column_lib
from haikd.data.tables import text_columns
from haikd.storage import paths

_ALONE = 'train'  # The split of a file that is given itself.
_TYPED = ('.parquet', '.arrow')
_HOW = ("Give a folder with a file <split>.csv, .tsv, .jsonl, .json or "
        ".parquet for each split, one that `datasets` has saved, or one file, "
        "which is the split 'train' and is cut, as 'train[:90%]'.")

Columns = dict[str, column_lib.Column]


class TableFiles:
  """Where the splits of a table are.

  Attributes:
    splits: their names.

  Args:
    source_dir: a folder, or one file.
    channels: of images.
    reading: the limits of its files.
  """

  def __init__(self, source_dir: Optional[str], channels: int,
               reading: reading_lib.Reading):
    if source_dir is None:
      raise checks.ConfigError(
          'config.data.source_dir must be the folder of a table, or its file; '
          f'got None. {_HOW}')
    self._channels = channels
    self._reading = reading
    self._path = paths.as_path(os.path.expanduser(source_dir))
    self._name = (None if self._path.is_dir() else
                  file_names.parse(self._path))
    self.splits = ([_ALONE] if self._name and self._path.exists() else
                   file_names.splits(self._path))
    if not self.splits:
      kind = hints.of_file(self._path.name)
      got = f'is {kind}' if kind else 'has none or is not there'
      raise checks.DataError(
          f'config.data.source_dir must hold a table; got {str(self._path)!r}, '
          f'which {got}. {_HOW}')

  def columns(self, split: str) -> tuple[str, ...]:
    """Returns the names of the columns of a split."""
    files = self._files(split)
    return _module(files).names(files)

  def read(self, split: str, requested: Sequence[str],
           labels: Sequence[str]) -> Columns:
    """Reads some columns, each once for all who ask for it.

    Args:
      split: the name of a split.
      requested: the names of the columns.
      labels: those of them that may hold names of classes.

    Raises:
      DataError: an unknown split or column, or files that cannot be read.
    """
    files = self._files(split)
    known = _known(tuple(files), _stamps(files), self._channels,
                   self._reading.tolerated)
    keys = {name: (name, name in labels) for name in requested}
    missing = [name for name, key in keys.items() if key not in known]
    if missing:
      read = (arrow_columns.read(files, missing, self._channels, self._reading)
              if _module(files) is arrow_columns else
              text_columns.read(files, missing, labels, self._reading))
      known.update({keys[name]: column for name, column in read.items()})
    return {name: known[key] for name, key in keys.items()}

  def _files(self, split) -> file_names.Files:
    """Returns the files of a split; refuses files without columns."""
    splits_lib.check(split, self.splits)
    found = ([(self._path, self._name)] if self._name else
             file_names.find(self._path, split))
    for path, name in found:
      if name.format == '.txt':
        raise checks.DataError(
            f'{str(path)!r} must have columns; got a text by its suffix. '
            f'{_HOW}')
    return found


def _module(files) -> Any:
  """Returns the module that reads these files."""
  formats = {name.format in _TYPED for _, name in files}
  if len(formats) > 1:
    raise checks.DataError(
        f'{str(files[0][0].parent)!r} must have files of one format; got '
        f'{sorted({name.format for _, name in files})}. Convert them.')
  return arrow_columns if formats == {True} else text_columns


@functools.lru_cache(maxsize=8)  # Splits: all that name their classes alike.
def _known(files, stamps, channels, tolerated) -> dict[tuple[str, bool], Any]:
  """Returns the columns that were read before, by (name, whether a label)."""
  del files, stamps, channels, tolerated  # What changed is read again.
  return {}


def _stamps(files):
  return tuple(() if paths.is_remote(path) else
               (os.stat(path).st_size, os.stat(path).st_mtime_ns)
               for path, _ in files)
