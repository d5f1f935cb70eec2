"""Texts as they lie in files: plain, JSON lines, parquet, or a set of tfds."""

from collections.abc import Iterator, Mapping
import hashlib
import pathlib
from typing import Any, NamedTuple, Optional, Protocol

from haikd.core import checks
from haikd.data import prepared
from haikd.data.text import text_lines
from haikd.storage import files
from haikd.storage import paths

_HOW = ('A split is a file <split>.txt, <split>.jsonl or <split>.parquet, or a '
        'folder <split> of such files.')


class Record(NamedTuple):
  """One document, or whatever else a line or row holds.

  Attributes:
    values: `{field: value}`.
    place: where it stands, for messages.
    done: how much of the split is read after it, from 0 to 1.
  """

  values: Mapping[str, Any]
  place: str
  done: float


class Corpus(Protocol):
  """The records of one split.

  Attributes:
    split: its name.
    digest: a hash of their content, and of how it is read.
  """

  split: str
  digest: str

  def records(self) -> Iterator[Record]:
    """Yields them in their order."""


class Where(NamedTuple):
  """Where a data set of texts lies, and how it is read.

  Attributes:
    source_dir: the folder of its files, or None.
    data_dir: the folder of prepared files, or None for that of tfds.
    tfds: what tfds calls it, or None.
    documents: what a document is in a `.txt` file, one of text_lines.DOCUMENTS.
    field: what the text of a `.txt` file is called.
    fields: which columns of a parquet file are read: the first of these groups
      that it has as a whole, or all that it has.
  """

  source_dir: Optional[str]
  data_dir: Optional[str]
  tfds: Optional[str]
  documents: str
  field: str
  fields: tuple[tuple[str, ...], ...] = ()


def find(where: Where, split: str, cache: pathlib.Path) -> Corpus:
  """Returns one split of a data set of texts.

  Args:
    where: what a user has said about it.
    split: 'train', 'validation' or what else there is.
    cache: a folder for the digests of files, which take long to compute.

  Returns:
    A Corpus.

  Raises:
    ConfigError: both a folder and a data set of tfds, or none of them, or an
      option out of its range.
    DataError: an unknown split.
  """
  if where.documents not in text_lines.DOCUMENTS:
    raise checks.ConfigError(
        'text_files.find: documents must say what a .txt file holds; got '
        f'documents={where.documents!r}. '
        f'{checks.suggest(where.documents, text_lines.DOCUMENTS)}')
  if (where.source_dir is None) == (where.tfds is None):
    raise checks.ConfigError(
        'text_files.find: either config.data.source_dir must be a folder of '
        'files, or config.data.options.tfds a data set of tfds; got '
        f'source_dir={where.source_dir!r}, tfds={where.tfds!r}.')
  if where.tfds is not None:
    return _Tfds(where.tfds, split, where.data_dir)
  if paths.is_remote(where.source_dir):
    raise checks.DataError(
        'text_files.find: source_dir must be a local folder; got '
        f'source_dir={where.source_dir!r}. Mount the bucket, or copy it.')
  inside = _files_of(pathlib.Path(where.source_dir).expanduser(), split)
  return _Files(split, inside, where, cache)


def text_of(record: Record, field: str) -> str:
  """Returns a field that has to be a text.

  Args:
    record: of any kind.
    field: its name.

  Raises:
    DataError: there is no such field, or it is no text.
  """
  value = value_of(record, field)
  if isinstance(value, bytes):
    value = text_lines.decode(value, record.place)
  if not isinstance(value, str):
    raise checks.DataError(
        f'text_files.text_of: {record.place} must have a text in {field!r}; got'
        f' {value!r}. Leave it out, or choose another field in '
        'config.data.options.')
  return value


def value_of(record: Record, field: str) -> Any:
  """Returns a field; raises DataError if there is none."""
  if field not in record.values:
    raise checks.DataError(
        f'text_files.value_of: {record.place} must have the field {field!r}; '
        f'got {sorted(record.values)}. {checks.suggest(field, record.values)} '
        'Its name is set in config.data.options.')
  return record.values[field]


def _files_of(folder, split):
  """Returns the files of a split, in their order."""
  found = [path for suffix in text_lines.SUFFIXES
           if (path := folder / f'{split}{suffix}').is_file()]
  if (folder / split).is_dir():
    found.append(folder / split)
  if not found:
    known = {path.stem for path in folder.glob('*')
             if path.suffix in text_lines.SUFFIXES or path.is_dir()}
    raise checks.DataError(
        f'text_files.find: a split must be a file or folder; got {split!r} in '
        f'{str(folder)!r}, where it is not. {checks.suggest(split, known)} '
        f'{_HOW}')
  if len(found) > 1:
    raise checks.DataError(
        f'text_files.find: a split must be one file or one folder; got '
        f'{", ".join(path.name for path in found)} in {str(folder)!r}. Move '
        'one of them away.')
  if found[0].is_file():
    return found
  inside = sorted(path for path in found[0].iterdir()
                  if path.suffix in text_lines.SUFFIXES)
  if not inside:
    raise checks.DataError(
        f'text_files.find: a split must have files; got {str(found[0])!r}, '
        f'where there is none. {_HOW}')
  return inside


class _Files:
  """A Corpus of files."""

  def __init__(self, split: str, inside: list[pathlib.Path], where: Where,
               cache: pathlib.Path):
    self.split = split
    self._files = inside
    self._where = where
    digest = hashlib.sha256()
    for path in inside:
      how = where.documents if path.suffix == '.txt' else ''
      content = text_lines.digest(path, cache)
      digest.update(f'{path.suffix} {how} {content}\n'.encode())
    self.digest = digest.hexdigest()

  def records(self) -> Iterator[Record]:
    sizes = [path.stat().st_size for path in self._files]
    before, whole = 0, max(sum(sizes), 1)
    for path, size in zip(self._files, sizes):
      for values, place, done in text_lines.read(
          path, documents=self._where.documents, field=self._where.field,
          fields=self._where.fields):
        yield Record(values, place, (before + done) / whole)
      before += size


class _Tfds:
  """A Corpus that tfds has prepared."""

  def __init__(self, name: str, split: str, data_dir: Optional[str]):
    self.split = split
    self._name = name
    self._source, stamp = prepared.open_whole(name, split, data_dir)
    self.digest = hashlib.sha256(files.encode(stamp).encode()).hexdigest()

  def records(self) -> Iterator[Record]:
    size = len(self._source)
    for i in range(size):
      place = f'example {i} of split {self.split!r} of {self._name!r}'
      yield Record(self._source[i], place, (i + 1) / size)
