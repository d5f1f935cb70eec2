"""Texts made into rows of numbers once, and read by index from then on.

Rows are written shard by shard, so that a preparation that is interrupted goes
on with the shard it was at. A shard appears in one piece, and what is in it
depends on the texts alone: where two processes prepare at once, one replaces
the files of the other by the same.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
import contextlib
import functools
import hashlib
import itertools
import os
import pathlib
import sys
from typing import Any, NamedTuple, Optional

import numpy as np

from haikd import checks
from haikd import files
from haikd import paths
from haikd import tokenizer as tokenizer_lib
from haikd.data import pruning
from haikd.data import source
from haikd.data import text_files

VERSION = 1  # Of what rows look like; another one prepares everything anew.
SHARD_CHARACTERS = 2**23  # Of text, in a shard.
BATCH_CHARACTERS = 2**18  # Of text, tokenised at a time.

_INFO = 'info.json'
_KEPT = 'kept_ids.npy'


class Recipe(NamedTuple):
  """How records become rows.

  Attributes:
    name: of the data set.
    options: all that rows depend on, beside records and tokenizer.
    dtype: of a row.
    rows: from batches of records to rows; counts `tokens` in its second
      argument, and what else it has to say.
  """

  name: str
  options: Mapping[str, Any]
  dtype: np.dtype
  rows: Callable[[Iterator[list[text_files.Record]], Counter],
                 Iterator[np.ndarray]]


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


def root(data_dir: Optional[str]) -> pathlib.Path:
  """Returns the folder of all that is prepared here.

  Args:
    data_dir: where prepared files lie; None for where tfds has them.

  Raises:
    DataError: it is in a bucket.
  """
  if data_dir is None:
    from tensorflow_datasets.core import constants
    data_dir = constants.DATA_DIR
  if paths.is_remote(data_dir):
    raise checks.DataError(
        'text_prepared.root: data_dir must be a local folder for texts; got '
        f'data_dir={data_dir!r}. Set config.data.data_dir to one that all '
        'processes see, or to one on each machine.')
  return pathlib.Path(data_dir).expanduser() / 'haikd_text'


def load_tokenizer(path: str) -> tokenizer_lib.Tokenizer:
  """Loads a tokenizer, once for all splits of a run."""
  file = pathlib.Path(path.removeprefix(tokenizer_lib.GGUF)).expanduser()
  stamps = [(p.stat().st_size, p.stat().st_mtime_ns)
            for p in (file, *sorted(file.glob('*.json'))) if p.exists()]
  return _load_tokenizer(path, tuple(stamps))


@functools.lru_cache(maxsize=2)
def _load_tokenizer(path, stamps):
  del stamps  # They make a changed file a new argument.
  return tokenizer_lib.load(path)


def keep_tokenizer(
    tokenizer: tokenizer_lib.Tokenizer, data_dir: Optional[str],
    kept_ids: Optional[np.ndarray] = None) -> source.TextInfo:
  """Writes a tokenizer beside what is prepared with it.

  Args:
    tokenizer: maybe pruned.
    data_dir: where prepared files lie, as for `root`.
    kept_ids: which ids of the whole tokenizer its ids were; None if it is
      whole.

  Returns:
    Where it is.

  Raises:
    DataError: it cannot be written.
  """
  key = hashlib.sha256(tokenizer.digest.encode())
  if kept_ids is not None:
    key.update(kept_ids.tobytes())
  folder = root(data_dir) / 'tokenizers' / key.hexdigest()[:16]
  if not (folder / 'tokenizer.json').exists():
    with _writing(folder):
      tokenizer.save(folder)
  return source.TextInfo(str(folder), kept_ids)


def prune(tokenizer: tokenizer_lib.Tokenizer, recipe: Recipe,
          where: text_files.Where) -> tuple[tokenizer_lib.Tokenizer,
                                            np.ndarray]:
  """Returns a tokenizer of what the split 'train' is made of.

  Args:
    tokenizer: the whole one, which `recipe` uses.
    recipe: rows with `tokens`.
    where: where the texts are.

  Returns:
    As `pruning.prune`.

  Raises:
    DataError: as `prepare`.
  """
  folder = prepare(recipe, tokenizer, where, 'train')
  kept = folder / _KEPT
  if not kept.exists():
    used = np.zeros(tokenizer.size, bool)
    rows = Rows(folder, recipe.dtype, _tokens_only, None, None)
    for start in range(0, len(rows), 1024):
      stop = min(start + 1024, len(rows))
      for row in rows.__getitems__(list(range(start, stop))):
        used[row['tokens']] = True
    _, kept_ids = pruning.prune(tokenizer, np.flatnonzero(used))
    with _writing(folder):
      temporary = folder / f'.{os.getpid()}.{_KEPT}'
      np.save(temporary, kept_ids)
      os.replace(temporary, kept)
  # What was kept holds all that it takes to come out the same again.
  return pruning.prune(tokenizer, np.load(kept))


def _tokens_only(rows):
  return dict(tokens=rows['tokens'])


def prepare(recipe: Recipe, tokenizer: tokenizer_lib.Tokenizer,
            where: text_files.Where, split: str) -> pathlib.Path:
  """Makes the rows of a split unless that has been done.

  Args:
    recipe: how.
    tokenizer: the one that it uses.
    where: where the texts are.
    split: 'train', 'validation' or what else there is.

  Returns:
    The folder of the rows, whose name depends on the texts, the tokenizer and
    the options, so that nothing stale is ever read.

  Raises:
    ConfigError: what `where` says cannot be.
    DataError: a text that cannot be used, a split without rows, or a folder
      that cannot be written.
  """
  top = root(where.data_dir)
  with _writing(top):
    corpus = text_files.find(where, split, top / 'digests')
  key = dict(version=VERSION, texts=corpus.digest, tokenizer=tokenizer.digest,
             options=recipe.options, documents=where.documents,
             shard=SHARD_CHARACTERS)
  digest = hashlib.sha256(files.encode(key, sort_keys=True).encode())
  folder = top / recipe.name / digest.hexdigest()[:16]
  if not (folder / _INFO).exists():
    with _writing(folder), _progress(f'preparing {split}') as show:
      folder.mkdir(parents=True, exist_ok=True)
      _write_shards(folder, recipe, corpus, show)
  if not files.read_json(folder / _INFO)['rows']:
    raise checks.DataError(
        f'text_prepared.prepare: split {split!r} must hold texts; got none. '
        'Choose another split, or look at its files.')
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
          folder / name, recipe,
          _batches(itertools.chain([first], records), show))
      files.write_json(written, shard)
    counts.update(shard)
    if shard['rows']:
      names.append(name)
  files.write_json(folder / _INFO, dict(counts, files=names))


def _batches(records, show):
  """Yields the records of one shard, a list at a time."""
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
      if total >= SHARD_CHARACTERS:
        return
  if batch:
    yield batch


def _write_shard(path, recipe, batches):
  """Writes one shard, and returns what is in it."""
  from array_record.python import array_record_module
  counts = Counter(documents=0, tokens=0, rows=0)

  def counted():
    for batch in batches:
      counts['documents'] += len(batch)
      yield batch

  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  # Records are read in any order: each is compressed by itself.
  writer = array_record_module.ArrayRecordWriter(str(temporary),
                                                 'group_size:1')
  try:
    for row in recipe.rows(counted(), counts):
      writer.write(row.tobytes())
      counts['rows'] += 1
    writer.close()
    os.replace(temporary, path)
  finally:
    if writer.is_open():
      writer.close()
    temporary.unlink(missing_ok=True)
  return counts


@contextlib.contextmanager
def _writing(folder):
  """Makes what goes wrong with the disk one line."""
  try:
    yield
  except (OSError, RuntimeError) as err:  # array_record has the second.
    raise checks.DataError(
        'text_prepared.prepare: data_dir must be a folder that can be written, '
        f'with room; got {str(folder)!r} ({checks.one_line(err)}). Set '
        'config.data.data_dir.') from err


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
