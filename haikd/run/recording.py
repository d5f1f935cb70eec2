"""Makes the shards of records that are missing, on all processes at once.

Each process makes every n-th of them. All take the same number of steps: one
that has fewer rows than another gives the teacher padding.
"""

from collections.abc import Iterator, Mapping
import concurrent.futures
from typing import Any, NamedTuple, Optional, Protocol

import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.data import pipeline
from haikd.engine import mesh as mesh_lib
from haikd.processes import distributed
from haikd.run import recording_progress
from haikd.storage import paths
from haikd.teacher_records import folder as folder_lib
from haikd.teacher_records import recipe as recipe_lib
from haikd.teacher_records import rows as rows_lib


class Part(NamedTuple):
  """Some rows of a shard, as a process reads them.

  Attributes:
    shard: its number; None if this process has no shard at this time.
    batch: as many rows as in all parts; what is too much is padding.
    digests: of the real rows.
    keep: bool, where predictions count.
    uniform: float32, with a last axis of copies.
    is_last: whether the shard ends with it.
  """

  shard: Optional[int]
  batch: base.Batch
  digests: list[bytes]
  keep: np.ndarray
  uniform: np.ndarray
  is_last: bool


class Predictor(Protocol):
  """What predicts the rows of parts: a teacher here, or on a server.

  Attributes:
    share: which part of the shards this process makes.
    size: how many rows a part has.
  """

  share: mesh_lib.Share
  size: int

  def start(self, part: Part) -> Any:
    """Begins to predict; returns before it is done."""

  def finish(self, started: Any) -> Mapping[str, np.ndarray]:
    """Returns what a codec's `make` returns, `[B, …]`, of what was begun."""


class Work:
  """Makes the shards that are missing.

  Attributes:
    folder: of the records.
    shards: how many there are.

  Args:
    folder: of the records.
    recipe: of the records.
    predictor: predicts the rows.
    data: of the run.
    split: of the data, which is recorded.
  """

  def __init__(self, folder: paths.ConcretePath, recipe: recipe_lib.Recipe,
               predictor: Predictor, data: pipeline.Data, split: str):
    self.folder = folder
    self._rows = data.sizes[split]
    self.shards = -(-self._rows // recipe.shard_rows)
    self._recipe, self._codec = recipe, recipe.codec()
    self._predictor, self._share = predictor, predictor.share
    self._data, self._split = data, split

  def run(self) -> None:
    """Makes the shards that are missing; call it on all processes."""
    distributed.first(lambda: folder_lib.begin(self.folder, self._recipe))
    missing = distributed.first(
        lambda: folder_lib.missing(self.folder, self.shards))
    if not missing:
      return
    progress = recording_progress.Progress(
        self._rows_of(missing), self._rows_of(range(self.shards)),
        processes=self._share.count, enabled=distributed.is_first())
    records: list[tuple[bytes, bytes]] = []
    positions = 0
    with progress, concurrent.futures.ThreadPoolExecutor(1) as pool:
      parts = self._parts(missing)
      ahead = pool.submit(next, parts, None)
      running: Any = None
      while True:
        part = self._agree(ahead)
        if part is not None:
          ahead = pool.submit(next, parts, None)
          started = part, self._predictor.start(part)
        else:
          started = None
        if running:  # While the next part is predicted.
          done, begun = running
          made = self._encode(done, self._predictor.finish(begun))
          records += made
          made_positions = int(done.keep.sum()) * self._recipe.copies
          positions += made_positions
          progress.add(len(done.digests), made_positions,
                       sum(len(content) for _, content in made))
          if done.shard is not None and done.is_last:
            folder_lib.write_shard(self.folder, done.shard, records, positions)
            records, positions = [], 0
        running = started
        if running is None:
          break
        if distributed.stop_requested():
          raise checks.StoppedError(
              f'stopped by SIGTERM; complete shards of {self.folder} are kept. '
              'Start it again to go on.')
    # The others may still be writing theirs.
    distributed.all_can(True)

  def _agree(self, ahead) -> Optional[Part]:
    """Returns the next part; raises on all processes if one cannot read it."""
    part: Optional[Part] = None
    error: Any = checks.DataError('Another process could not read its rows.')
    is_read = False
    try:
      part, is_read = ahead.result(), True
    except Exception as err:  # Whatever a user's data raises.
      error = err
    if not distributed.all_can(is_read):
      raise error
    return part

  def _rows_of(self, numbers) -> int:
    size = self._recipe.shard_rows
    return sum(min(size, self._rows - number * size) for number in numbers)

  def _parts(self, missing) -> Iterator[Part]:
    """Yields the parts of this process's shards, as many as every other's."""
    share, size = self._share, self._recipe.shard_rows
    for first in range(0, len(missing), share.count):
      group = missing[first:first + share.count]
      longest = max(self._rows_of([number]) for number in group)
      number = group[share.index] if share.index < len(group) else None
      rows = range(0) if number is None else range(
          number * size, number * size + self._rows_of([number]))
      starts = range(0, longest, self._predictor.size)
      for start in starts:
        yield self._part(number, rows[start:start + self._predictor.size],
                         is_last=start == starts[-1])

  def _part(self, shard, rows, is_last) -> Part:
    """Reads some rows."""
    count, size = len(rows), self._predictor.size
    indices = np.zeros(size, np.int64)
    indices[:count] = rows
    batch = self._data.pick(
        self._split, indices=indices, batch_size=size, shards=1,
        process_index=0, process_count=1)[0]
    is_real = np.arange(size) < count

    def blank(mask):
      return mask & is_real.reshape(-1, *(1,) * (mask.ndim - 1))

    digests = rows_lib.digests(batch)[:count]
    batch = batch._replace(
        mask=blank(batch.mask),
        target_mask=None if batch.target_mask is None else blank(
            batch.target_mask))
    keep = rows_lib.kept(batch, self._recipe.axes)
    copies = self._recipe.copies
    uniform = np.zeros((*keep.shape, copies), np.float32)
    for row, digest in enumerate(digests):
      uniform[row] = rows_lib.uniform(
          digest, copies, keep[row].size).reshape(*keep[row].shape, copies)
    return Part(shard, batch, digests, keep, uniform, is_last)

  def _encode(self, part, arrays) -> list[tuple[bytes, bytes]]:
    """Returns the records of a part, all copies of a row after one another."""
    records = []
    for row, digest in enumerate(part.digests):
      keep = np.atleast_1d(part.keep[row])
      kept = {name: values[row].reshape(*keep.shape, *values.shape[
          part.keep.ndim:])[keep] for name, values in arrays.items()}
      records += [(digest, self._codec.encode(kept, copy))
                  for copy in range(self._recipe.copies)]
    return records
