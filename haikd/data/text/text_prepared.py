"""Texts made into rows of numbers once, and read by index from then on.

Rows are written shard by shard, so that a preparation that is interrupted goes
on with the shard it was at. A shard appears in one piece, and what is in it
depends on the texts alone: where two processes prepare at once, both use what
appeared first.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
import contextlib
import hashlib
import io
import itertools
import os
import pathlib
import sys
from typing import Any, NamedTuple, Optional, Protocol

import numpy as np

from haikd.core import checks
from haikd.data import source
from haikd.data.text import pruning
from haikd.data.text import text_files
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.storage import files
from haikd.storage import paths

VERSION = 1  # Of what rows look like; another one prepares everything anew.
SHARD_CHARACTERS = 2**23  # Of text, in a shard.
BATCH_CHARACTERS = 2**18  # Of text, tokenised at a time.

_INFO = 'info.json'

Tokenizer = tokenizer_lib.Tokenizer


class Recipe(NamedTuple):
  """How records become rows.

  Attributes:
    name: of the data set.
    options: all that rows depend on, beside records and tokenizer.
    dtype: of a row.
    rows: from batches of records to rows; counts `tokens` in its second
      argument, and what else it has to say.
    uncut: from batches of records to the ids of their texts before anything is
      cut off, for pruning; None where nothing is pruned.
  """

  name: str
  options: Mapping[str, Any]
  dtype: np.dtype
  rows: Callable[[Iterator[list[text_files.Record]], Counter],
                 Iterator[np.ndarray]]
  uncut: Optional[Callable[[Iterator[list[text_files.Record]]],
                           Iterator[np.ndarray]]] = None


class Made(Protocol):
  """How the records of a split become rows, and rows examples."""

  def recipe(self) -> Recipe:
    """Returns how records become rows."""

  def expand(self, rows: np.ndarray) -> Mapping[str, np.ndarray]:
    """Returns the columns of examples, from `[B]` rows."""


class Rows:
  """A Source of rows that are prepared.

  Attributes:
    num_classes: V, or None.
    text: the tokenizer.
    info: the statistics of the preparation.
  """

  def __init__(self, folder: pathlib.Path, dtype: np.dtype,
               expand: Callable[[np.ndarray], Mapping[str, np.ndarray]],
               num_classes: Optional[int], text: source.TextInfo):
    from array_record.python import array_record_data_source
    self.num_classes = num_classes
    self.text = text
    self.info = files.read_json(folder / _INFO)
    self._dtype = dtype
    self._expand = expand
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


def open_rows(make: Callable[[Tokenizer, text_files.Corpus], Made],
              tokenizer: str,
              where: text_files.Where,
              split: str,
              *,
              prune: bool = False,
              classes: Callable[[Tokenizer], Optional[int]]) -> Rows:
  """Opens a split, and prepares it unless that has been done.

  Args:
    make: how the records of a split become rows, with which tokenizer.
    tokenizer: as for `haikd.data.text.tokenizer.load`.
    where: where the texts are.
    split: 'train', 'validation' or what else there is.
    prune: whether only those tokens are kept that the split 'train' uses.
    classes: the number of classes there are then.

  Returns:
    A Source.

  Raises:
    ConfigError: what `where` says cannot be.
    DataError: a text or a tokenizer that cannot be used, a split that is not
      there or has no rows, or a folder that cannot be written.
  """
  loaded, kept_ids = text_tokenizers.load(tokenizer), None
  if prune:
    loaded, kept_ids = _prune(make, loaded, where)
  corpus = find(where, split)
  made = make(loaded, corpus)
  folder = _prepare(made.recipe(), loaded, corpus, where.data_dir)
  return Rows(folder, made.recipe().dtype, made.expand, classes(loaded),
              text_tokenizers.keep(loaded, where.data_dir, kept_ids))


def find(where: text_files.Where, split: str) -> text_files.Corpus:
  """Returns one split, as `text_files.find` does."""
  top = text_tokenizers.root(where.data_dir)
  return text_files.find(where, split, top / 'digests')


def first_record(corpus: text_files.Corpus) -> text_files.Record:
  """Returns the first record of a split; raises DataError if it is empty."""
  for record in corpus.records():
    return record
  raise _empty(corpus)


def _empty(corpus):
  return checks.DataError(
      f'text_prepared.open_rows: split {corpus.split!r} must hold texts; got '
      'none. Choose another split, or look at its files.')


def _prune(make, tokenizer, where):
  """Returns a tokenizer of what 'train' is made of, and the ids it keeps."""
  corpus = find(where, 'train')
  recipe = make(tokenizer, corpus).recipe()
  kept = _folder(recipe, tokenizer, corpus, where.data_dir) / 'kept_ids.npy'
  if not kept.exists():
    used = np.zeros(tokenizer.size, bool)
    with _progress(f'counting {corpus.split}') as show:
      records = corpus.records()
      while batch := list(_batches(records, show, BATCH_CHARACTERS)):
        for ids in recipe.uncut(iter(batch)):
          used[ids] = True
    if not used.any():
      raise _empty(corpus)
    _, kept_ids = pruning.prune(tokenizer, np.flatnonzero(used))
    content = io.BytesIO()
    np.save(content, kept_ids)
    with text_tokenizers.writing(kept.parent):
      kept.parent.mkdir(parents=True, exist_ok=True)
      paths.replace(kept, content.getvalue())
  # All that was kept needs nothing else to be kept.
  return pruning.prune(tokenizer, np.load(kept))


def _folder(recipe, tokenizer, corpus, data_dir):
  """Returns where a split is prepared.

  The name depends on the texts, the tokenizer and the options, so that nothing
  stale is ever read.
  """
  key = dict(version=VERSION, texts=corpus.digest, tokenizer=tokenizer.digest,
             options=recipe.options, shard=SHARD_CHARACTERS)
  digest = hashlib.sha256(files.encode(key, sort_keys=True).encode())
  return (text_tokenizers.root(data_dir) / recipe.name /
          digest.hexdigest()[:16])


def _prepare(recipe, tokenizer, corpus, data_dir):
  """Makes the rows of a split unless that has been done; returns the folder."""
  folder = _folder(recipe, tokenizer, corpus, data_dir)
  if not (folder / _INFO).exists():
    with (text_tokenizers.writing(folder),
          _progress(f'preparing {corpus.split}') as show):
      folder.mkdir(parents=True, exist_ok=True)
      paths.remove_leftovers(text_tokenizers.root(data_dir))
      _write_shards(folder, recipe, corpus, show)
  if not files.read_json(folder / _INFO)['rows']:
    raise _empty(corpus)
  return folder


def _write_shards(folder, recipe, corpus, show):
  """Writes the shards that are not there, and what there is in all."""
  counts, names = Counter(documents=0, tokens=0, rows=0), []
  records = corpus.records()
  for number in itertools.count():
    name = f'{number:05d}.array_record'
    written = folder / f'{number:05d}.json'
    if written.exists():
      shard = Counter(files.read_json(written))
      for record in itertools.islice(records, shard['documents']):
        show(record.done)
    else:
      first = next(records, None)
      if first is None:
        break
      shard = _write_shard(
          folder / name, written, recipe,
          _batches(itertools.chain([first], records), show, SHARD_CHARACTERS))
    counts.update(shard)
    if shard['rows']:
      names.append(name)
  files.write_json(folder / _INFO, dict(counts, files=names))


def _batches(records, show, limit):
  """Yields records of so many characters, a list at a time."""
  batch, size, total = [], 0, 0
  for record in records:
    show(record.done)
    batch.append(record)
    size += sum(len(value) for value in record.values.values()
                if isinstance(value, (str, bytes)))
    if size >= BATCH_CHARACTERS:
      yield batch
      total += size
      batch, size = [], 0
      if total >= limit:
        return
  if batch:
    yield batch


def _write_shard(path, written, recipe, batches):
  """Writes one shard, unless another has by then; returns what is in it."""
  from array_record.python import array_record_module
  counts = Counter(documents=0, tokens=0, rows=0)

  def counted():
    for batch in batches:
      counts['documents'] += len(batch)
      yield batch

  temporary = paths.temporary(path)
  # Records are read in any order: each is compressed by itself.
  writer = array_record_module.ArrayRecordWriter(str(temporary),
                                                 'group_size:1')
  try:
    for row in recipe.rows(counted(), counts):
      writer.write(row.tobytes())
      counts['rows'] += 1
    writer.close()
    if written.exists():  # The other may be reading its file already.
      return Counter(files.read_json(written))
    os.replace(temporary, path)
  finally:
    if writer.is_open():
      writer.close()
    temporary.unlink(missing_ok=True)
  files.write_json(written, counts)
  return counts


@contextlib.contextmanager
def _progress(title):
  """Yields what shows how much is done: a bar if there is somebody to look."""
  if not sys.stderr.isatty():
    yield lambda done: None
    return
  import rich.console
  import rich.progress
  console = rich.console.Console(stderr=True)
  with rich.progress.Progress(console=console, transient=True) as bar:
    task = bar.add_task(title, total=1.0)
    yield lambda done: bar.update(task, completed=done)
