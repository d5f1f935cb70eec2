"""Records of texts from files (plain, JSON lines, parquet) or from tfds."""

from collections.abc import Iterable, Iterator, Mapping
import hashlib
import pathlib
from typing import Any, NamedTuple, Optional, Protocol

from haikd.core import checks
from haikd.data import prepared
from haikd.data.text import text_lines
from haikd.storage import files
from haikd.storage import paths

_HOW_TO_NAME = (
    'A split is a file <split>.txt, <split>.jsonl or <split>.parquet, or a '
    'folder <split> of such files.')


class Record(NamedTuple):
  """One document, line or row of a split.

  Attributes:
    values: `{field: value}`.
    place: the file and line, for messages.
    done: the fraction of the split that is read after it, from 0 to 1.
  """

  values: Mapping[str, Any]
  place: str
  done: float


class Corpus(Protocol):
  """The records of one split.

  Attributes:
    split: its name.
    digest: a hash of its content, and of how it is read.
  """

  split: str
  digest: str

  def records(self) -> Iterator[Record]:
    """Yields the records in order."""


class Location(NamedTuple):
  """Where a data set of texts lies, and how it is read.

  Attributes:
    source_dir: the folder of its files, or None.
    data_dir: the folder of prepared files; None for that of tfds.
    tfds: its name in tfds, or None.
    documents: what a document is in a `.txt` file, one of text_lines.DOCUMENTS.
    field: the name that the text of a `.txt` file gets.
    column_groups: which columns of a parquet file are read: the first of these
      groups whose columns the file has, or all columns if it has no group.
  """

  source_dir: Optional[str]
  data_dir: Optional[str]
  tfds: Optional[str]
  documents: str
  field: str
  column_groups: tuple[tuple[str, ...], ...] = ()


def open_corpus(location: Location, split: str, cache: pathlib.Path) -> Corpus:
  """Opens one split of a data set of texts.

  Args:
    location: where the data set lies.
    split: 'train', 'validation' or another split of the data set.
    cache: a folder for the digests of files, which take long to compute.

  Returns:
    A Corpus.

  Raises:
    ConfigError: both a folder and a data set of tfds, or neither of them, or an
      option out of its range.
    DataError: an unknown split.
  """
  if location.documents not in text_lines.DOCUMENTS:
    raise checks.ConfigError(
        'config.data.options.documents must say what a document of a .txt file '
        f'is; got {location.documents!r}. '
        f'{checks.suggest(location.documents, text_lines.DOCUMENTS)}')
  if location.tfds is not None and location.source_dir is None:
    return _TfdsCorpus(location.tfds, split, location.data_dir)
  if location.source_dir is None or location.tfds is not None:
    raise checks.ConfigError(
        'Either config.data.source_dir must be a folder of files, or '
        'config.data.options.tfds a data set of tfds; got '
        f'source_dir={location.source_dir!r}, tfds={location.tfds!r}. Set one '
        'of the two.')
  if paths.is_remote(location.source_dir):
    raise checks.DataError(
        'config.data.source_dir must be a local folder for texts; got '
        f'{location.source_dir!r}. Mount the bucket, or copy it.')
  folder = pathlib.Path(location.source_dir).expanduser()
  return _FileCorpus(split, _files_of(folder, split), location, cache)


def text_of(record: Record, field: str) -> str:
  """Returns a field that must be a text.

  Args:
    record: the record.
    field: its field.

  Raises:
    DataError: the field is missing, or it is not a text.
  """
  value = value_of(record, field)
  if isinstance(value, bytes):
    value = text_lines.decode(value, record.place)
  if not isinstance(value, str):
    raise checks.DataError(
        f'{record.place} must have a text in the field {field!r}; got '
        f'{value!r}. Remove the record, or choose another field in '
        'config.data.options.')
  return value


def texts_of(records: Iterable[Record], field: str) -> list[str]:
  """Returns `text_of` each record."""
  return [text_of(record, field) for record in records]


def value_of(record: Record, field: str) -> Any:
  """Returns a field; raises DataError if it is missing."""
  if field not in record.values:
    raise checks.DataError(
        f'{record.place} must have the field {field!r}; got '
        f'{sorted(record.values)}. {checks.suggest(field, record.values)} '
        'config.data.options sets its name.')
  return record.values[field]


def _files_of(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
  """Returns the files of a split, in order."""
  candidates = [path for suffix in text_lines.SUFFIXES
                if (path := folder / f'{split}{suffix}').is_file()]
  if (folder / split).is_dir():
    candidates.append(folder / split)
  if not candidates:
    splits = {path.stem for path in folder.glob('*')
              if path.suffix in text_lines.SUFFIXES or path.is_dir()}
    raise checks.DataError(
        f'Split {split!r} must be a file or folder in {str(folder)!r}; got '
        f'neither. {checks.suggest(split, splits)} {_HOW_TO_NAME}')
  if len(candidates) > 1:
    raise checks.DataError(
        f'Split {split!r} must be one file or one folder; got '
        f'{", ".join(path.name for path in candidates)} in {str(folder)!r}. '
        'Move one of them away.')
  path, = candidates
  if path.is_file():
    return [path]
  inside = sorted(file for file in path.iterdir()
                  if file.suffix in text_lines.SUFFIXES)
  if not inside:
    raise checks.DataError(
        f'Split {split!r} must have files; got the folder {str(path)!r} '
        f'without any. {_HOW_TO_NAME}')
  return inside


class _FileCorpus:
  """A Corpus of files."""

  def __init__(self, split: str, inside: list[pathlib.Path], location: Location,
               cache: pathlib.Path):
    self.split = split
    self._files = inside
    self._location = location
    digest = hashlib.sha256()
    for path in inside:
      documents = location.documents if path.suffix == '.txt' else ''
      content = text_lines.digest(path, cache)
      digest.update(f'{path.suffix} {documents} {content}\n'.encode())
    self.digest = digest.hexdigest()

  def records(self) -> Iterator[Record]:
    """Yields the records, file by file."""
    sizes = [path.stat().st_size for path in self._files]
    before, total = 0, max(sum(sizes), 1)
    for path, size in zip(self._files, sizes):
      for values, place, done in text_lines.read(
          path, documents=self._location.documents, field=self._location.field,
          column_groups=self._location.column_groups):
        yield Record(values, place, (before + done) / total)
      before += size


class _TfdsCorpus:
  """A Corpus that tfds has prepared."""

  def __init__(self, name: str, split: str, data_dir: Optional[str]):
    self.split = split
    self._name = name
    self._source, stamp = prepared.open_whole(name, split, data_dir)
    self.digest = hashlib.sha256(files.encode(stamp).encode()).hexdigest()

  def records(self) -> Iterator[Record]:
    """Yields the examples of the split."""
    size = len(self._source)
    for i in range(size):
      place = f'example {i} of split {self.split!r} of {self._name!r}'
      yield Record(self._source[i], place, (i + 1) / size)
