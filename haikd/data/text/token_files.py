"""Text as it is trained on: files of token ids, end to end, cut into rows."""

import pathlib
from typing import Any, Optional

import numpy as np

from haikd.core import checks
from haikd.core import registry
from haikd.data import source
from haikd.data import spec as spec_lib
from haikd.data.text import tokens as tokens_lib
from haikd.storage import paths

_HOW = ("Make one with `numpy.save('train.npy', ids.astype('uint32'))`, the "
        'documents joined end to end.')


class Rows:
  """A Source of rows of equal length, read from a file as they are needed.

  Attributes:
    num_classes: the size of the vocabulary.
  """

  def __init__(self, ids: np.ndarray, path: pathlib.Path, length: int,
               vocabulary: int):
    self.num_classes = vocabulary
    self._ids = ids
    self._path = path
    self._length = length

  def __len__(self) -> int:
    return len(self._ids) // self._length

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    start = index * self._length
    # What is read of the file is read here.
    ids = np.array(self._ids[start:start + self._length])
    wrong = (ids < 0) | (ids >= self.num_classes)
    if wrong.any():
      place = int(wrong.argmax())
      raise checks.DataError(
          f'token_files.tokens: ids must lie between 0 and vocabulary - 1; got '
          f'{ids[place]} at index {start + place} of {str(self._path)!r}, '
          f'vocabulary={self.num_classes}. Set config.data.options.vocabulary '
          "to the tokenizer's.")
    ids = ids.astype(np.int32)
    mask = np.ones(self._length, bool)
    label, target_mask = tokens_lib.next_token(ids, mask)
    return dict(tokens=ids, mask=mask, label=label, target_mask=target_mask)


def _spec(*, length, vocabulary):
  _check(length, vocabulary)
  return spec_lib.Spec(tokens_lib.columns(length), vocabulary)


@registry.register_dataset(spec=_spec)
def tokens(split: str,
           *,
           length: int,
           vocabulary: int,
           source_dir: Optional[str] = None) -> source.Source:
  """Token ids in NumPy files, `source_dir/<split>.npy`, one axis each.

  A file is mapped into memory, so that only the rows of a batch are read of it,
  however large it is. Rows are cut end to end and may hold parts of several
  documents; what is left over at the end is not used. Each position predicts
  the next token of its row, the last one nothing.

  Args:
    split: 'train', 'validation' or what other files there are, or a slice of
      one.
    length: N, the number of tokens in a row.
    vocabulary: V; ids are below it.
    source_dir: the folder of the files.

  Returns:
    A Source of `tokens`, `mask`, `label` and `target_mask`.

  Raises:
    ConfigError: an option out of its range.
    DataError: a file that is missing, or that is not of integers along one
      axis; when a row is read, an id outside the vocabulary.
  """
  _check(length, vocabulary)
  if source_dir is None:
    raise checks.DataError(
        'token_files.tokens: source_dir must be the folder of the files of '
        'token ids; got source_dir=None. Set config.data.source_dir.')
  if paths.is_remote(source_dir):
    raise checks.DataError(
        'token_files.tokens: source_dir must be a local folder, since files '
        f'are mapped into memory; got source_dir={source_dir!r}. Mount the '
        'bucket, or copy it to the disk of every machine.')
  path = pathlib.Path(source_dir, f'{split}.npy')
  ids = _open(path)
  if ids.ndim != 1 or ids.dtype.kind not in 'iu':
    raise checks.DataError(
        f'token_files.tokens: {str(path)!r} must hold integers along one axis; '
        f'got shape={ids.shape}, dtype={ids.dtype}. {_HOW}')
  if len(ids) < length:
    raise checks.DataError(
        f'token_files.tokens: {str(path)!r} must hold a row or more; got '
        f'{len(ids)} tokens, length={length}. {_HOW}')
  return Rows(ids, path, length, vocabulary)


def _open(path: pathlib.Path) -> Any:
  if not path.is_file():
    found = sorted(other.stem for other in path.parent.glob('*.npy'))
    raise checks.DataError(
        f'token_files.tokens: a split must be a file of token ids; got '
        f'{str(path)!r}, which is not there. '
        f'{checks.suggest(path.stem, found)} {_HOW}')
  try:
    return np.load(path, mmap_mode='r')
  except (OSError, ValueError) as err:
    raise checks.DataError(
        f'token_files.tokens: {str(path)!r} must be an array that NumPy can map'
        f' into memory; got {checks.one_line(err)}. {_HOW}') from err


def _check(length, vocabulary):
  for name, value, least in (('length', length, 2),
                             ('vocabulary', vocabulary, 1)):
    if value < least:
      raise checks.ConfigError(f'token_files.tokens: {name} must be at least '
                               f'{least}; got {name}={value}.')
