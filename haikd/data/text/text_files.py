"""Records of texts from files or from tfds."""

from collections.abc import Iterable, Iterator, Mapping
import hashlib
import itertools
import os
import pathlib
import reprlib
from typing import Any, NamedTuple, Optional, Protocol

from haikd.core import checks
from haikd.data import prepared
from haikd.data import reading as reading_lib
from haikd.data.records import file_names
from haikd.data.records import hints
from haikd.data.records import streams
from haikd.data.text import overlap
from haikd.data.text import text_lines
from haikd.storage import files
from haikd.storage import inputs
from haikd.storage import paths

_AT_ONCE = 4  # Files of a bucket that are read at a time.
_IN_LIST = 64  # Records that a thread passes on at a time.


class Record(NamedTuple):
  """One document, line or row of a split.

  Attributes:
    values: `{field: value}`.
    place: the file and line, for messages.
    done: the fraction of the split that is read after it, from 0 to 1.
    untyped: whether its numbers are written as texts, as in CSV.
  """

  values: Mapping[str, Any]
  place: str
  done: float
  untyped: bool = False


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
    column_groups: which columns of a parquet or Arrow file are read: the first
      of these groups whose columns the file has, or all columns if it has no
      group.
    reading: the limits of its files, and what is done about broken records.
  """

  source_dir: Optional[str]
  data_dir: Optional[str]
  tfds: Optional[str]
  documents: str
  field: str
  column_groups: tuple[tuple[str, ...], ...] = ()
  reading: reading_lib.Reading = reading_lib.Reading()


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
  folder = paths.as_path(os.path.expanduser(location.source_dir))
  return _FileCorpus(split, file_names.find(folder, split), location, cache)


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
    value = streams.decode(value, record.place)
  if not isinstance(value, str):
    raise checks.DataError(
        f'{record.place} must have a text in the field {field!r}; got '
        f'{reprlib.repr(value)}. Remove the record, or choose another field in '
        'config.data.options.')
  return value


def texts_of(records: Iterable[Record], field: str) -> list[str]:
  """Returns `text_of` each record."""
  return [text_of(record, field) for record in records]


def value_of(record: Record, field: str) -> Any:
  """Returns a field.

  Args:
    record: the record.
    field: its field.

  Raises:
    DataError: the field is missing, or a text in it has half a character, which
      no tokenizer takes. JSON can write such a text.
  """
  if field not in record.values:
    raise checks.DataError(
        f'{record.place} must have the field {field!r}; got '
        f'{sorted(record.values)}. {checks.suggest(field, record.values)} '
        f'{_remedy(record)}')
  value = record.values[field]
  half = _half_character(value)
  if half:
    raise checks.DataError(
        f'{record.place} must have whole characters in the field {field!r}; '
        f'got the lone surrogate {half!r}. Remove the record, or replace the '
        'character.')
  return value


def _remedy(record):
  """Returns what to do about a field that is missing."""
  hint = hints.of_record(record.values)
  if not hint and record.untyped:
    hint = 'The first row of the file must name its columns.'
  return f'config.data.options sets its name. {hint}'.rstrip()


def number_of(record: Record, field: str) -> Any:
  """Returns `value_of` a field; of CSV, as a number if it can be one."""
  value = value_of(record, field)
  if record.untyped:
    for kind in (int, float):
      try:
        return kind(value)
      except ValueError:
        continue
  return value


def _half_character(value: Any) -> str:
  """Returns the first lone surrogate in a value, or ''."""
  if isinstance(value, str):
    try:
      if not value.isascii():
        value.encode()
    except UnicodeEncodeError as err:
      return value[err.start]
  elif isinstance(value, Mapping):
    return _half_character([*value, *value.values()])
  elif isinstance(value, (list, tuple)):
    return next(filter(None, map(_half_character, value)), '')
  return ''


class _FileCorpus:
  """A Corpus of files."""

  def __init__(self, split: str, inside: file_names.Files, location: Location,
               cache: pathlib.Path):
    self.split = split
    self._files = inside
    self._location = location
    digest = hashlib.sha256()
    for path, name in inside:
      documents = location.documents if name.format == '.txt' else ''
      content = text_lines.digest(path, cache)
      digest.update(f'{name.suffix} {documents} {content}\n'.encode())
    if location.reading.on_error == reading_lib.SKIP:
      digest.update(b'without broken records')
    self.digest = digest.hexdigest()

  def records(self) -> Iterator[Record]:
    """Yields the records, file by file; files in a bucket are read at once."""
    sizes = [inputs.size(path) for path, _ in self._files]
    befores, total = itertools.accumulate(sizes, initial=0), max(sum(sizes), 1)
    readers = (self._read(path, name, before, total)
               for (path, name), before in zip(self._files, befores))
    if not any(paths.is_remote(path) for path, _ in self._files):
      yield from itertools.chain.from_iterable(readers)
      return
    for records in overlap.in_order(map(_in_lists, readers), _AT_ONCE):
      yield from records

  def _read(self, path: paths.ConcretePath, name: file_names.Name, before: int,
            total: int) -> Iterator[Record]:
    """Yields the records of a file.

    Args:
      path: the file.
      name: the parts of its name.
      before: the size of the files before it, in bytes.
      total: that of all files.
    """
    untyped = name.format in ('.csv', '.tsv')
    for values, place, done in text_lines.read(
        path, name, documents=self._location.documents,
        field=self._location.field,
        column_groups=self._location.column_groups,
        reading=self._location.reading):
      yield Record(values, place, (before + done) / total, untyped)


def _in_lists(records: Iterator[Record]) -> Iterator[list[Record]]:
  """Yields records in lists, which threads pass on faster."""
  return iter(lambda: list(itertools.islice(records, _IN_LIST)), [])


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
