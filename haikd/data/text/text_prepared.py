"""Texts that are turned into rows of token ids once, then read by index."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import hashlib
import io
import pathlib
import sys
from typing import NamedTuple, Optional, Protocol

import numpy as np

from haikd.core import notes
from haikd.data import source
from haikd.data.text import affixes
from haikd.data.text import pruning
from haikd.data.text import shards
from haikd.data.text import text_ahead
from haikd.data.text import text_files
from haikd.data.text import text_records
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.storage import files
from haikd.storage import paths

_PRUNED_BY = 'train'  # The split whose texts say which tokens are kept.
_VERSION = 4  # The version of the rows' format: a new one prepares anew.
_SKIPPED = 'cannot be used and are left out (config.data.on_error).'


class RowFormat(Protocol):
  """How the records of a split become rows, and rows become examples."""

  def recipe(self) -> shards.Recipe:
    """Returns how records become rows."""

  def expand(self, rows: np.ndarray) -> Mapping[str, np.ndarray]:
    """Returns the columns of examples, from `[B]` rows.

    A format whose examples are random also has `vary`; see `source.Source`.
    """


MakeFormat = Callable[[tokenizer_lib.Tokenizer, text_files.Corpus], RowFormat]


class PreparedRows:
  """A Source of prepared rows.

  Attributes:
    num_classes: V, or None.
    class_names: the names of the classes, or None.
    text: the tokenizer.
    info: the statistics of the preparation.
    vary: that of its format; absent if examples are not random.
  """

  def __init__(self, folder: pathlib.Path, row_format: RowFormat,
               num_classes: Optional[int], text: source.TextInfo):
    from array_record.python import array_record_data_source
    self.num_classes = num_classes
    self.class_names: Optional[Sequence[str]] = None
    self.text = text
    self.info = shards.read_info(folder)
    self._dtype = row_format.recipe().dtype
    self._expand = row_format.expand
    if hasattr(row_format, 'vary'):
      self.vary = row_format.vary
    self._rows = array_record_data_source.ArrayRecordDataSource(
        [str(folder / name) for name in self.info['files']])

  def __len__(self) -> int:
    return self.info['rows']

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return self.__getitems__([index])[0]

  def __getitems__(self, indices: list[int]) -> list[dict[str, np.ndarray]]:
    """Returns several examples, which is faster than one by one."""
    raw = b''.join(self._rows.__getitems__([int(i) for i in indices]))
    columns = self._expand(np.frombuffer(raw, self._dtype))
    return [{key: value[i] for key, value in columns.items()}
            for i in range(len(indices))]


def open_rows(
    make_format: MakeFormat,
    tokenizer: str,
    location: text_files.Location,
    split: str,
    *,
    prune: bool = False,
    adapt: Callable[[tokenizer_lib.Tokenizer],
                    tokenizer_lib.Tokenizer] = lambda loaded: loaded,
    num_classes: Callable[[tokenizer_lib.Tokenizer], Optional[int]],
) -> PreparedRows:
  """Opens a split; prepares it unless that has been done.

  Args:
    make_format: returns the RowFormat of a split, given its tokenizer.
    tokenizer: as for `haikd.data.text.tokenizer.load`.
    location: where the texts lie.
    split: 'train', 'validation' or another split of the data set.
    prune: whether to keep only the tokens that the split 'train' uses.
    adapt: changes the tokenizer that is loaded.
    num_classes: returns the number of classes, given the tokenizer after
      pruning.

  Returns:
    A Source.

  Raises:
    ConfigError: a `location` with an option out of its range.
    DataError: a text or a tokenizer that cannot be used, an unknown or empty
      split, or a folder that cannot be written.
  """
  opened = _open(make_format, tokenizer, location, split, prune, adapt)
  opened.prepare(_progress_bar(f'preparing {split}'))
  return PreparedRows(opened.folder, opened.row_format,
                      num_classes(opened.tokenizer), opened.text)


def open_ahead(
    make_format: MakeFormat,
    tokenizer: str,
    location: text_files.Location,
    split: str,
    *,
    num_classes: Callable[[tokenizer_lib.Tokenizer], Optional[int]],
) -> text_ahead.GrowingRows:
  """Opens a split as `open_rows` does, but prepares it in a thread.

  Args:
    make_format: as for `open_rows`; likewise all other arguments.
    tokenizer: likewise.
    location: likewise.
    split: likewise.
    num_classes: likewise.

  Returns:
    A GrowingSource.

  Raises:
    ConfigError: as `open_rows`.
    DataError: as `open_rows`; of a text, where its rows are read.
  """
  opened = _open(make_format, tokenizer, location, split)
  # Training has a bar of its own.
  no_bar = contextlib.nullcontext(lambda done: None)
  return text_ahead.GrowingRows(
      opened.folder, opened.row_format.recipe().dtype,
      opened.row_format.expand, num_classes(opened.tokenizer), opened.text,
      functools.partial(opened.prepare, no_bar))


class _Opened(NamedTuple):
  """A split that may have to be prepared."""

  row_format: RowFormat
  tokenizer: tokenizer_lib.Tokenizer
  corpus: text_files.Corpus
  data_dir: Optional[str]
  folder: pathlib.Path
  text: source.TextInfo
  full: Optional[pathlib.Path]  # Its rows with all ids, to be renumbered.

  def prepare(
      self, bar: contextlib.AbstractContextManager[shards.ShowProgress]
  ) -> None:
    """Prepares the split unless that has been done."""
    recipe = self.row_format.recipe()
    if not shards.is_complete(self.folder):
      with text_tokenizers.explaining_write_errors(self.folder), bar as show:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Temporary files of killed preparations, of any split.
        paths.remove_leftovers(text_tokenizers.root(self.data_dir))
        if self.full and shards.is_complete(self.full) and recipe.renumber:
          shards.renumber(self.full, self.folder, recipe,
                          np.asarray(self.text.kept_ids), show)
        else:
          shards.write(self.folder, recipe, self.corpus, show)
    info = shards.read_info(self.folder)
    # The limit may have been another one when it was prepared.
    text_files.broken_of(self.corpus).add(info.get(text_records.SKIPPED, 0))
    if not info['rows']:
      raise text_files.empty(self.corpus, info, {
          **recipe.notices, text_records.SKIPPED: _SKIPPED})
    if number := info.get(text_records.SKIPPED):
      notes.say(f'split {self.corpus.split!r}: {number:,} records {_SKIPPED}')
    for statistic, predicate in recipe.notices.items():
      if number := info.get(statistic):
        notes.say(f'split {self.corpus.split!r}, of {info["documents"]:,} '
                  f'records: {number:,} {predicate}')


def _open(make_format, tokenizer, location, split, prune=False,
          adapt=lambda loaded: loaded):
  """Opens a split, and saves its tokenizer."""
  own, kept_ids, full = text_tokenizers.load(tokenizer), None, None
  loaded = adapt(own)
  if prune:
    loaded, kept_ids, full = _prune(make_format, loaded, location)
  corpus = open_corpus(location, split)
  row_format = make_format(loaded, corpus)
  recipe = row_format.recipe()
  if recipe.adds_special_tokens:
    for sentence in affixes.contradictions(loaded):
      notes.say(f'{tokenizer}: {sentence}')
  text = text_tokenizers.save_beside_data(loaded, location.data_dir, kept_ids,
                                          recipe.ends)
  if loaded.templates != own.templates:
    text = text._replace(own=text_tokenizers.save_beside_data(
        own, location.data_dir).tokenizer)
  return _Opened(
      row_format, loaded, corpus, location.data_dir,
      _folder(recipe, loaded, corpus, location.data_dir), text,
      full if split == _PRUNED_BY else None)


def open_corpus(location: text_files.Location,
                split: str) -> text_files.Corpus:
  """Opens a split as `text_files.open_corpus` does; caches beside the data."""
  root = text_tokenizers.root(location.data_dir)
  return text_files.open_corpus(location, split, root / 'digests')


def _prune(
    make_format: MakeFormat,
    tokenizer: tokenizer_lib.Tokenizer,
    location: text_files.Location,
) -> tuple[tokenizer_lib.Tokenizer, np.ndarray, pathlib.Path]:
  """Returns a tokenizer for what 'train' uses, the ids it keeps, and a folder.

  The folder has the rows of 'train' with all ids, unless it is not complete.
  """
  corpus = open_corpus(location, _PRUNED_BY)
  recipe = make_format(tokenizer, corpus).recipe()
  if recipe.full_ids is None:
    raise TypeError(f'The recipe of {recipe.name!r} must have full_ids to be '
                    'pruned; got None.')
  folder = _folder(recipe, tokenizer, corpus, location.data_dir)
  cached = folder / 'kept_ids.npy'
  if not cached.exists():
    used = np.zeros(tokenizer.size, bool)
    with (text_tokenizers.explaining_write_errors(folder),
          _progress_bar(f'counting {corpus.split}') as show):
      folder.mkdir(parents=True, exist_ok=True)
      for ids in _all_ids(folder, recipe, corpus, show):
        used[ids] = True
      if not used.any():
        raise text_files.empty(corpus)
      pruned, kept_ids = pruning.prune(tokenizer, np.flatnonzero(used))
      np.save(content := io.BytesIO(), kept_ids)
      paths.replace(cached, content.getvalue())
    return pruned, kept_ids, folder
  # Pruning to the kept ids keeps exactly these.
  with files.explaining_damage(cached, 'Remove it: it is written again'):
    return *pruning.prune(
        tokenizer, np.lib.format.open_memmap(cached, mode='r')), folder


def _all_ids(folder, recipe, corpus, show) -> Iterator[np.ndarray]:
  """Yields all ids of texts; where rows have them, they stay in the folder."""
  if recipe.ids_of is not None:
    if not shards.is_complete(folder):
      shards.write(folder, recipe, corpus, show)
    yield from map(recipe.ids_of, shards.read(folder, recipe.dtype))
    return
  records = corpus.records()
  while batches := list(
      shards.batches(records, show, shards.BATCH_CHARACTERS)):
    yield from recipe.full_ids(iter(batches))


def _folder(recipe, tokenizer, corpus, data_dir):
  """Returns the folder of a prepared split.

  Its name is a hash of the texts, the tokenizer and the options, so that stale
  rows are never read.
  """
  key = dict(version=_VERSION, texts=corpus.digest, tokenizer=tokenizer.digest,
             options=recipe.options, shard=shards.SHARD_CHARACTERS)
  digest = hashlib.sha256(files.encode(key, sort_keys=True).encode())
  return (text_tokenizers.root(data_dir) / recipe.name /
          digest.hexdigest()[:16])


@contextlib.contextmanager
def _progress_bar(title: str) -> Iterator[shards.ShowProgress]:
  """Yields a function that shows progress: a bar on a terminal."""
  if not (sys.stderr and sys.stderr.isatty()):
    yield lambda done: None
    return
  import rich.console
  import rich.progress
  console = rich.console.Console(stderr=True)
  with rich.progress.Progress(console=console, transient=True) as bar:
    task = bar.add_task(title, total=1.0)
    yield lambda done: bar.update(task, completed=done)
