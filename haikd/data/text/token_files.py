"""Files of token ids, mapped into memory and cut into rows."""

import pathlib
from typing import Optional

import numpy as np

from haikd.core import checks
from haikd.core import registry
from haikd.data import source
from haikd.data import spec as spec_lib
from haikd.data.text import packing
from haikd.data.text import token_formats
from haikd.data.text import tokens as tokens_lib
from haikd.storage import paths

DOCUMENTS = ('joined', 'apart')
_SUFFIXES = ('.npy', '.bin')


class MappedRows:
  """A Source of rows of equal length, read from a file on demand.

  Attributes:
    num_classes: the size of the vocabulary.

  Args:
    opened: the ids of the split; documents are kept apart if it has `starts`.
    path: their file, for messages.
    length: N.
    vocabulary: V.
  """

  def __init__(self, opened: token_formats.Ids, path: pathlib.Path, length: int,
               vocabulary: int):
    self.num_classes: Optional[int] = vocabulary
    self._ids = opened.ids
    self._starts = opened.starts
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
          f'{ids[position]} at index {start + position} of {ids.dtype}, '
          f'vocabulary={self._vocabulary}. Set config.data.options.vocabulary '
          "to the tokenizer's, or config.data.options.dtype to that of the "
          'file.')
    ids = ids.astype(np.int32)
    mask = np.ones(self._length, bool)
    segments = self._segments(start)
    label, target_mask = tokens_lib.next_token(ids, mask, segments=segments)
    columns = dict(tokens=ids, mask=mask, label=label, target_mask=target_mask)
    if segments is not None:
      columns.update(segments=segments, positions=packing.positions(segments))
    return columns

  def _segments(self, start: int) -> Optional[np.ndarray]:
    """Returns the document of each position, numbered from 1 in a row."""
    if self._starts is None:
      return None
    document = np.searchsorted(
        self._starts, np.arange(start, start + self._length), side='right')
    return (document - document[0] + 1).astype(np.int32)


def _spec(*, length, vocabulary, dtype=None, documents='joined'):
  _check_options(length, vocabulary, dtype, documents)
  columns = tokens_lib.columns(length)
  if documents == 'apart':
    row = spec_lib.Column((length,), np.int32)
    columns.update(segments=row, positions=row)
  return spec_lib.Spec(columns, vocabulary)


@registry.register_dataset(spec=_spec, tasks=('causal_lm',))
def tokens(split: str,
           *,
           length: int,
           vocabulary: int,
           dtype: Optional[str] = None,
           documents: str = 'joined',
           source_dir: Optional[str] = None) -> source.Source:
  """Token ids in files `source_dir/<split>.npy` or `<split>.bin`.

  A `.npy` file has one axis. A `.bin` file is one of Megatron, with its index
  `<split>.idx` beside it; one of llm.c, with a header; or nothing but ids, as
  nanoGPT writes it.

  The file is mapped into memory: only the rows of a batch are read, however
  large the file is. Rows are cut end to end and may hold parts of several
  documents; a remainder shorter than a row is dropped. Each position predicts
  the next token of its row; the last position predicts nothing.

  Args:
    split: 'train', 'validation' or another file of the folder, or a slice of
      one.
    length: N, the number of tokens in a row.
    vocabulary: V; ids are below it.
    dtype: 'uint16' or 'uint32', for a `.bin` file that does not say it.
    documents: 'joined', or 'apart' to keep the documents of a row apart, which
      takes Megatron's index: then none sees or predicts its neighbour.
    source_dir: the folder of the files.

  Returns:
    A Source of `tokens`, `mask`, `label` and `target_mask`; with documents
    apart also of `segments` and `positions`, as the data set `text` has them.

  Raises:
    ConfigError: an option out of its range, or missing for the file.
    DataError: a file that is missing, or that does not hold integers along one
      axis; when a row is read, an id outside the vocabulary.
  """
  _check_options(length, vocabulary, dtype, documents)
  if source_dir is None:
    raise checks.DataError(
        'config.data.source_dir must be the folder of the files of token ids; '
        'got None. Set config.data.source_dir.')
  if paths.is_remote(source_dir):
    raise checks.DataError(
        'config.data.source_dir must be a local folder, since files of token '
        f'ids are mapped into memory; got {source_dir!r}. Mount the bucket, or '
        'copy it to the disk of every machine.')
  path = _find(pathlib.Path(source_dir), split)
  opened = token_formats.read(path, dtype)
  if len(opened.ids) < length:
    raise checks.DataError(
        f'{str(path)!r} must hold a row or more; got {len(opened.ids)} tokens, '
        f'length={length}. {token_formats.HOW_TO_MAKE}')
  if documents == 'joined':
    opened = opened._replace(starts=None)
  elif opened.starts is None:
    raise checks.ConfigError(
        "config.data.options.documents must be 'joined' for a file that does "
        f'not say where documents begin; got {documents!r} and {str(path)!r}. '
        "Megatron's .idx file says it.")
  return MappedRows(opened, path, length, vocabulary)


def _find(folder: pathlib.Path, split: str) -> pathlib.Path:
  """Returns the file of a split."""
  found = [path for suffix in _SUFFIXES
           if (path := folder / f'{split}{suffix}').is_file()]
  if len(found) > 1:
    raise checks.DataError(
        f'Split {split!r} must be one file of token ids; got '
        f'{" and ".join(path.name for path in found)} in {str(folder)!r}. Move '
        'one of them away.')
  if not found:
    splits = {path.stem for path in folder.glob('*')
              if path.suffix in _SUFFIXES}
    raise checks.DataError(
        f'Split {split!r} must be a file of token ids, {split}.npy or '
        f'{split}.bin; got neither in {str(folder)!r}. '
        f'{checks.suggest(split, splits)} {token_formats.HOW_TO_MAKE}')
  return found[0]


def _check_options(length: int, vocabulary: int, dtype: Optional[str],
                   documents: str) -> None:
  for option, value, minimum in (('length', length, 2),
                                 ('vocabulary', vocabulary, 1)):
    if value < minimum:
      raise checks.ConfigError(
          f'config.data.options.{option} must be at least {minimum}; got '
          f'{value}.')
  if dtype is not None and dtype not in token_formats.DTYPES:
    raise checks.ConfigError(
        'config.data.options.dtype must be None, or the dtype of ids in a .bin '
        f'file; got {dtype!r}. {checks.suggest(dtype, token_formats.DTYPES)}')
  if documents not in DOCUMENTS:
    raise checks.ConfigError(
        f"config.data.options.documents must be 'joined' or 'apart'; got "
        f'{documents!r}. {checks.suggest(documents, DOCUMENTS)}')
