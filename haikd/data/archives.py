"""Arrays in NumPy archives, `.npz`, as a data set."""

import functools
import math
import os
import pathlib
from typing import Optional

import numpy as np

from haikd.core import checks
from haikd.core import registry
from haikd.data import arrays
from haikd.data import reading as reading_lib
from haikd.data import source
from haikd.storage import archive as archive_lib

_SUFFIX = '.npz'
_ALONE = 'train'  # The split of an archive that is given itself.
_HOW = ("Write np.savez('train.npz', x=…, label=…) for each split, or one "
        "file, which is the split 'train' and is cut, as 'train[:90%]'.")


@registry.register_dataset()
def npz(split: str, *, num_classes: Optional[int] = None,
        source_dir: Optional[str] = None,
        reading: reading_lib.Reading = reading_lib.Reading()) -> source.Source:
  """Arrays in NumPy archives, one for each split.

  The names of the arrays are the keys of examples: `label`, `mask`, `image`, or
  any name of an input. Labels that are text are the names of classes.

  Args:
    split: the name of an archive without `.npz`, or a slice of one.
    num_classes: as for `haikd.data.from_arrays`.
    source_dir: the folder of the archives, or one archive, which is the split
      'train'.
    reading: how much memory an archive may take.

  Returns:
    A Source in memory.

  Raises:
    ConfigError: no folder is given.
    DataError: an unknown split, or an archive that is damaged or holds
      something else than arrays of one length.
  """
  if source_dir is None:
    raise checks.ConfigError(
        'config.data.source_dir must be a folder of archives, or an archive; '
        f'got None. {_HOW}')
  given = pathlib.Path(os.path.expanduser(source_dir))
  if given.is_dir():
    paths = {path.stem: path for path in sorted(given.glob(f'*{_SUFFIX}'))}
  else:
    paths = {_ALONE: given} if given.is_file() else {}
  if not paths:
    raise checks.DataError(
        f'config.data.source_dir must hold {_SUFFIX} files; got '
        f'{str(given)!r}, which has none or is not there. {_HOW}')
  stamps = tuple(os.stat(path).st_mtime_ns for path in paths.values())
  return _open(tuple(paths.items()), stamps, num_classes, reading)(split)


@functools.lru_cache(maxsize=1)
def _open(paths, stamps, num_classes, reading):
  """Reads all archives once for all splits of a run."""
  del stamps  # Keys of the cache: a changed file is read again.
  return arrays.from_arrays(
      num_classes=num_classes,
      **{split: _read(path, reading) for split, path in paths})


def _read(path: pathlib.Path,
          reading: reading_lib.Reading) -> dict[str, np.ndarray]:
  """Returns the arrays of an archive by name."""
  with archive_lib.opened(
      path, 'config.data.source_dir must hold archives of arrays',
      'Write it with np.savez') as archive:
    headers = [archive_lib.header(archive, name) for name in archive.files]
    size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in headers)
    reading.check_memory(size, f'the arrays of {str(path)!r}')
    columns = {name: archive[name] for name in archive.files}
  sizes = {name: value.shape[0] if value.ndim else None
           for name, value in columns.items()}
  if None in sizes.values() or len(set(sizes.values())) != 1:
    raise checks.DataError(
        f'{str(path)!r} must have arrays with the same number of examples; got '
        f'{sizes or "no arrays"}. Give every array one entry per example.')
  return columns
