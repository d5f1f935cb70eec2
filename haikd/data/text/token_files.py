"""Files of token ids, mapped into memory and cut into rows."""

import pathlib
from typing import Optional

import numpy as np

from haikd.core import checks
from haikd.core import registry
from haikd.data import source
from haikd.data import spec as spec_lib
from haikd.data.text import tokens as tokens_lib
from haikd.storage import paths

_HOW_TO_MAKE = (
    "Make one with `numpy.save('train.npy', ids.astype('uint32'))`, with the "
    'documents joined end to end.')


class MappedRows:
  """A Source of rows of equal length, read from a file on demand.

  Attributes:
    num_classes: the size of the vocabulary.
  """

  def __init__(self, ids: np.ndarray, path: pathlib.Path, length: int,
               vocabulary: int):
    self.num_classes: Optional[int] = vocabulary
    self._ids = ids
    self._path = path
    self._length = length
    self._vocabulary = vocabulary

  def __len__(self) -> int:
    return len(self._ids) // self._length

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    start = index * self._length
    # The copy reads this row of the file, and no other.
    ids = np.array(self._ids[start:start + self._length])
    wrong = (ids < 0) | (ids >= self._vocabulary)
    if wrong.any():
      position = int(wrong.argmax())
      raise checks.DataError(
          f'{str(self._path)!r} must hold ids from 0 to vocabulary - 1; got '
          f'{ids[position]} at index {start + position}, '
          f'vocabulary={self._vocabulary}. Set config.data.options.vocabulary '
          "to the tokenizer's.")
    ids = ids.astype(np.int32)
    mask = np.ones(self._length, bool)
    label, target_mask = tokens_lib.next_token(ids, mask)
    return dict(tokens=ids, mask=mask, label=label, target_mask=target_mask)


def _spec(*, length, vocabulary):
  _check_options(length, vocabulary)
  return spec_lib.Spec(tokens_lib.columns(length), vocabulary)


@registry.register_dataset(spec=_spec)
def tokens(split: str,
           *,
           length: int,
           vocabulary: int,
           source_dir: Optional[str] = None) -> source.Source:
  """Token ids in NumPy files `source_dir/<split>.npy` of one axis.

  The file is mapped into memory: only the rows of a batch are read, however
  large the file is. Rows are cut end to end and may hold parts of several
  documents; a remainder shorter than a row is dropped. Each position predicts
  the next token of its row; the last position predicts nothing.

  Args:
    split: 'train', 'validation' or another file of the folder, or a slice of
      one.
    length: N, the number of tokens in a row.
    vocabulary: V; ids are below it.
    source_dir: the folder of the files.

  Returns:
    A Source of `tokens`, `mask`, `label` and `target_mask`.

  Raises:
    ConfigError: an option out of its range.
    DataError: a file that is missing, or that does not hold integers along one
      axis; when a row is read, an id outside the vocabulary.
  """
  _check_options(length, vocabulary)
  if source_dir is None:
    raise checks.DataError(
        'config.data.source_dir must be the folder of the files of token ids; '
        'got None. Set config.data.source_dir.')
  if paths.is_remote(source_dir):
    raise checks.DataError(
        'config.data.source_dir must be a local folder, since files of token '
        f'ids are mapped into memory; got {source_dir!r}. Mount the bucket, or '
        'copy it to the disk of every machine.')
  path = pathlib.Path(source_dir, f'{split}.npy')
  ids = _map(path)
  if ids.ndim != 1 or ids.dtype.kind not in 'iu':
    raise checks.DataError(
        f'{str(path)!r} must hold integers along one axis; got '
        f'shape={ids.shape}, dtype={ids.dtype}. {_HOW_TO_MAKE}')
  if len(ids) < length:
    raise checks.DataError(
        f'{str(path)!r} must hold a row or more; got {len(ids)} tokens, '
        f'length={length}. {_HOW_TO_MAKE}')
  return MappedRows(ids, path, length, vocabulary)


def _map(path: pathlib.Path) -> np.ndarray:
  """Returns the array of a file, mapped into memory."""
  if not path.is_file():
    splits = sorted(other.stem for other in path.parent.glob('*.npy'))
    raise checks.DataError(
        f'Split {path.stem!r} must be a file of token ids; got {str(path)!r}, '
        f'which is missing. {checks.suggest(path.stem, splits)} {_HOW_TO_MAKE}')
  try:
    return np.load(path, mmap_mode='r')
  except (OSError, ValueError) as err:
    raise checks.DataError(
        f'{str(path)!r} must be an array that NumPy can map into memory; got '
        f'{checks.one_line(err)}. {_HOW_TO_MAKE}') from err


def _check_options(length: int, vocabulary: int) -> None:
  for option, value, minimum in (('length', length, 2),
                                 ('vocabulary', vocabulary, 1)):
    if value < minimum:
      raise checks.ConfigError(
          f'config.data.options.{option} must be at least {minimum}; got '
          f'{value}.')
