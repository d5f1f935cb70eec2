"""Writes the rows of a split shard by shard.

A preparation that is interrupted resumes with the shard it was writing. A shard
appears atomically, and its content depends on the texts alone: if two processes
prepare at once, both use the shard that appeared first.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
import contextlib
import itertools
import os
import pathlib
import threading
from typing import Any, NamedTuple, Optional

import numpy as np

from haikd.core import garbage
from haikd.data.records import streams
from haikd.data.text import text_files
from haikd.data.text import text_records
from haikd.storage import files
from haikd.storage import paths

SHARD_CHARACTERS = 2**23  # Characters of text in a shard, about.
BATCH_CHARACTERS = 2**18  # Characters of text that are tokenised at a time.

Batches = Iterator[list[text_records.Record]]
ShowProgress = Callable[[float], None]  # Takes the fraction that is done.

_INFO = 'info.json'  # Written last: a folder with it is complete.


class Recipe(NamedTuple):
  """How records become rows.

  Attributes:
    name: the name of the data set.
    options: everything that rows depend on, besides records and tokenizer.
    dtype: the dtype of a row.
    rows: turns batches of records into rows. It adds `tokens`, and any other
      statistics, to its second argument.
    full_ids: turns batches of records into the ids of their texts before
      truncation, for pruning; None for a data set without pruning.
    ids_of: returns the ids of texts in an array of rows, for a data set whose
      rows have all of them; None for others. With pruning its texts are then
      tokenised once, and rows renumbered.
    renumber: changes an array of rows of the tokenizer before pruning, given
      each id's id there, to what `rows` gives; None without `ids_of`.
    notices: `{statistic: what to say if it is above 0}`, a predicate of what
      it counts, such as 'texts are longer than a row.'
    adds_special_tokens: whether texts get the special tokens that the tokenizer
      adds.
    ends: the ids of the tokens at which whoever generates such texts stops.
  """

  name: str
  options: Mapping[str, Any]
  dtype: np.dtype
  rows: Callable[[Batches, Counter], Iterator[np.ndarray]]
  full_ids: Optional[Callable[[Batches], Iterator[np.ndarray]]] = None
  notices: Mapping[str, str] = {}
  adds_special_tokens: bool = True
  ends: tuple[int, ...] = ()
  ids_of: Optional[Callable[[np.ndarray], np.ndarray]] = None
  renumber: Optional[Callable[[np.ndarray, np.ndarray], None]] = None


def is_complete(folder: pathlib.Path) -> bool:
  """Returns whether all shards of a split are written."""
  return (folder / _INFO).exists()


def read_info(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the statistics of a split, and the names of its `files`."""
  return files.read_json(folder / _INFO)


def rows_of(folder: pathlib.Path, number: int) -> Optional[int]:
  """Returns the number of rows in a shard; None if it is not written yet."""
  _, statistics = _paths(folder, number)
  return files.read_json(statistics)['rows'] if statistics.exists() else None


def open_shard(folder: pathlib.Path, number: int) -> Any:
  """Returns the rows of a shard that has rows; `__getitems__` reads several."""
  from array_record.python import array_record_data_source
  shard, _ = _paths(folder, number)
  return array_record_data_source.ArrayRecordDataSource([str(shard)])


def write(folder: pathlib.Path, recipe: Recipe, corpus: text_files.Corpus,
          show: ShowProgress) -> None:
  """Writes the shards of a split that are missing, and then its statistics.

  Args:
    folder: an existing folder.
    recipe: how the records of the split become rows.
    corpus: the split.
    show: called with the fraction of the split that is done.
  """
  names = []
  counts = Counter(documents=0, tokens=0, rows=0)
  broken = text_files.broken_of(corpus)
  records = corpus.records(broken)
  for number in itertools.count():
    shard, statistics = _paths(folder, number)
    if statistics.exists():
      shard_counts = Counter(files.read_json(statistics))
      for record in itertools.islice(records, shard_counts['documents']):
        show(record.done)
      broken.add(shard_counts[text_records.SKIPPED])
    else:
      first = next(records, None)
      if first is None:
        break
      shard_counts = Counter(documents=0, tokens=0)
      shard_counts = _write_shard(
          shard, statistics, shard_counts, recipe.rows(
              _counted(batches(itertools.chain([first], records), show,
                               SHARD_CHARACTERS), shard_counts), shard_counts))
    counts.update(shard_counts)
    if shard_counts['rows']:
      names.append(shard.name)
  # Those that could not be parsed are among them.
  if broken.count:
    counts[text_records.SKIPPED] = broken.count
  if not counts['rows']:
    broken.refuse_rest()
  files.write_json(folder / _INFO, dict(counts, files=names))


def batches(records: Iterator[text_records.Record], show: ShowProgress,
            limit: int) -> Batches:
  """Yields records in lists of BATCH_CHARACTERS or a little more.

  Args:
    records: the records; those beyond the limit stay in the iterator.
    show: called with the fraction of the split that is done.
    limit: stops after the batch that reaches so many characters.
  """
  batch, size, total = [], 0, 0
  for record in records:
    show(record.done)
    batch.append(record)
    size += streams.count_characters(record.values)
    if size >= BATCH_CHARACTERS:
      yield batch
      total += size
      batch, size = [], 0
      if total >= limit:
        return
  if batch:
    yield batch


def _paths(folder, number):
  """Returns the paths of a shard and of its statistics, written after it."""
  return (folder / f'{number:05d}.array_record', folder / f'{number:05d}.json')


def read(folder: pathlib.Path, dtype: np.dtype) -> Iterator[np.ndarray]:
  """Yields the rows of a complete split, `[rows]` of each shard at a time."""
  for number in itertools.count():
    rows = rows_of(folder, number)
    if rows is None:
      return
    yield _read_shard(folder, number, rows, dtype)


def renumber(source: pathlib.Path, folder: pathlib.Path, recipe: Recipe,
             kept_ids: np.ndarray, show: ShowProgress) -> None:
  """Writes a split as `write` would with a pruned tokenizer.

  Args:
    source: the complete rows that the tokenizer gives before it is pruned.
    folder: an existing folder.
    recipe: of the pruned tokenizer.
    kept_ids: `[V]`, each id's id before pruning.
    show: as for `write`.
  """
  info, change = read_info(source), recipe.renumber
  assert change is not None, f'{recipe.name} is tokenised for each vocabulary'
  for number in itertools.count():
    rows = rows_of(source, number)
    if rows is None:
      break
    show(number / max(len(info['files']), 1))
    shard, statistics = _paths(folder, number)
    if statistics.exists():
      continue
    counts = Counter(files.read_json(_paths(source, number)[1]))
    renumbered = _read_shard(source, number, rows, recipe.dtype)
    change(renumbered, kept_ids)
    _write_shard(shard, statistics, counts, iter(renumbered))
  files.write_json(folder / _INFO, info)


def _read_shard(folder, number, rows, dtype):
  """Returns the rows of a shard, as an array that may be changed."""
  content = open_shard(folder, number).__getitems__(
      list(range(rows))) if rows else []
  return np.frombuffer(bytearray(b''.join(content)), dtype)


def _counted(record_batches: Batches, counts: Counter) -> Batches:
  """Yields batches, and counts their records."""
  for batch in record_batches:
    counts['documents'] += len(batch)
    yield batch


def _write_shard(shard: pathlib.Path, statistics: pathlib.Path,
                 counts: Counter, rows: Iterator[np.ndarray]) -> Counter:
  """Writes a shard unless another process has; returns its statistics."""
  from array_record.python import array_record_module
  counts['rows'] = 0
  temporary = paths.temporary(shard)
  # Rows are read in random order: each is compressed on its own.
  writer = array_record_module.ArrayRecordWriter(str(temporary),
                                                 'group_size:1')
  try:
    with _uncollected():
      for row in rows:
        writer.write(row.tobytes())
        counts['rows'] += 1
    writer.close()
    # If another process has written the shard meanwhile, somebody may be
    # reading it: don't replace it.
    if statistics.exists():
      return Counter(files.read_json(statistics))
    os.replace(temporary, shard)
  finally:
    if writer.is_open():
      writer.close()
    temporary.unlink(missing_ok=True)
  files.write_json(statistics, counts)
  return counts


def _uncollected():
  """Leaves garbage alone: records have no cycles, and a search finds thousands.

  A thread that prepares ahead does not, since training goes on beside it.
  """
  is_alone = threading.current_thread() is threading.main_thread()
  return garbage.uncollected() if is_alone else contextlib.nullcontext()
