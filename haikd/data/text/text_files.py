"""Records of texts from files or from tfds."""

from collections.abc import Callable, Iterator, Mapping
import hashlib
import itertools
import os
import pathlib
from typing import Any, NamedTuple, Optional, Protocol, TypeVar

from haikd.core import checks
from haikd.data import prepared
from haikd.data import reading as reading_lib
from haikd.data.records import broken as broken_lib
from haikd.data.records import file_names
from haikd.data.text import overlap
from haikd.data.text import text_lines
from haikd.data.text import text_records
from haikd.storage import files
from haikd.storage import inputs
from haikd.storage import paths

_AT_ONCE = 4  # Files of a bucket that are read at a time.
_IN_LIST = 64  # Records that a thread passes on at a time.
_Read = TypeVar('_Read')


class Corpus(Protocol):
  """The records of one split.

  Attributes:
    split: its name.
    digest: a hash of its content, and of how it is read.
    reading: the limits of its files, and what is done about broken records.
  """

  split: str
  digest: str
  reading: reading_lib.Reading

  def records(
      self, broken: Optional[broken_lib.Broken] = None
  ) -> Iterator[text_records.Record]:
    """Yields the records in order.

    Args:
      broken: counts those that cannot be used; None for a count of its own.
    """


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
    return _TfdsCorpus(location, split)
  if location.source_dir is None or location.tfds is not None:
    raise checks.ConfigError(
        'Either config.data.source_dir must be a folder of files, or '
        'config.data.options.tfds a data set of tfds; got '
        f'source_dir={location.source_dir!r}, tfds={location.tfds!r}. Set one '
        'of the two.')
  folder = paths.as_path(os.path.expanduser(location.source_dir))
  return _FileCorpus(split, file_names.find(folder, split), location, cache)


def read_first(corpus: Corpus,
               read: Callable[[text_records.Record], _Read]) -> _Read:
  """Returns what is read of the first record of a split that can be used.

  Args:
    corpus: the split.
    read: raises DataError for a record that cannot be used.

  Raises:
    DataError: the split is empty, or the first error if there is no record to
      go on with.
  """
  reading, first = corpus.reading, None
  last = reading.max_skipped if reading.on_error == reading_lib.SKIP else 0
  for number, record in enumerate(corpus.records()):
    try:
      return read(record)
    except checks.DataError as err:
      first = first or err
      if number >= last:
        break
  raise first or empty(corpus)


def empty(corpus: Corpus, info: Optional[Mapping[str, Any]] = None,
          notices: Optional[Mapping[str, str]] = None) -> checks.DataError:
  """Returns the error of a split that gives no rows.

  Args:
    corpus: the split.
    info: its statistics, or None.
    notices: what is said of them, or None.
  """
  reasons = [f'{info[statistic]:,} {predicate}'
             for statistic, predicate in (notices or {}).items()
             if info and info.get(statistic)]
  got = f'none: {" ".join(reasons)}' if reasons else 'none.'
  return checks.DataError(
      f'Split {corpus.split!r} must hold texts; got {got} Choose another '
      'split, or check its files.')


class _FileCorpus:
  """A Corpus of files."""

  def __init__(self, split: str, inside: file_names.Files, location: Location,
               cache: pathlib.Path):
    self.split = split
    self.reading = location.reading
    self._files = inside
    self._location = location
    digest = hashlib.sha256()
    for path, name in inside:
      documents = location.documents if name.format == '.txt' else ''
      content = text_lines.digest(path, cache)
      digest.update(f'{name.suffix} {documents} {content}\n'.encode())
    digest.update(_skips(location.reading).encode())
    self.digest = digest.hexdigest()

  def records(
      self, broken: Optional[broken_lib.Broken] = None
  ) -> Iterator[text_records.Record]:
    """Yields the records, file by file; files in a bucket are read at once."""
    broken = broken or broken_of(self)
    sizes = [inputs.size(path) for path, _ in self._files]
    befores, total = itertools.accumulate(sizes, initial=0), max(sum(sizes), 1)
    readers = (self._read(path, name, before, total, broken)
               for (path, name), before in zip(self._files, befores))
    if not any(paths.is_remote(path) for path, _ in self._files):
      yield from itertools.chain.from_iterable(readers)
      return
    for records in overlap.in_order(map(_in_lists, readers), _AT_ONCE):
      yield from records

  def _read(self, path: paths.ConcretePath, name: file_names.Name, before: int,
            total: int, broken: broken_lib.Broken
            ) -> Iterator[text_records.Record]:
    """Yields the records of a file.

    Args:
      path: the file.
      name: the parts of its name.
      before: the size of the files before it, in bytes.
      total: that of all files.
      broken: counts broken records.
    """
    untyped = name.format in ('.csv', '.tsv')
    for values, place, done in text_lines.read(
        path, name, documents=self._location.documents,
        field=self._location.field,
        column_groups=self._location.column_groups,
        reading=self.reading, broken=broken):
      yield text_records.Record(values, place, (before + done) / total,
                                untyped, broken)


def _in_lists(records: Iterator[text_records.Record]
              ) -> Iterator[list[text_records.Record]]:
  """Yields records in lists, which threads pass on faster."""
  return iter(lambda: list(itertools.islice(records, _IN_LIST)), [])


class _TfdsCorpus:
  """A Corpus that tfds has prepared."""

  def __init__(self, location: Location, split: str):
    assert location.tfds is not None, 'it has a name'
    self.split = split
    self.reading = location.reading
    self._name = location.tfds
    self._source, stamp = prepared.open_whole(
        self._name, split, location.data_dir)
    self.digest = hashlib.sha256(
        (files.encode(stamp) + _skips(self.reading)).encode()).hexdigest()

  def records(
      self, broken: Optional[broken_lib.Broken] = None
  ) -> Iterator[text_records.Record]:
    """Yields the examples of the split."""
    broken = broken or broken_of(self)
    size = len(self._source)
    for i in range(size):
      place = f'example {i} of split {self.split!r} of {self._name!r}'
      yield text_records.Record(self._source[i], place, (i + 1) / size,
                                broken=broken)


def broken_of(corpus: Corpus) -> broken_lib.Broken:
  """Returns a count of the broken records of a split."""
  return broken_lib.Broken(f'split {corpus.split!r}', corpus.reading)


def _skips(reading: reading_lib.Reading) -> str:
  """Returns what a digest has of that records are skipped, or ''."""
  is_skipping = reading.on_error == reading_lib.SKIP
  return 'without broken records' if is_skipping else ''
