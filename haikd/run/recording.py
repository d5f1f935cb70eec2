"""Makes the shards of records that are missing, on all processes at once.

Each process makes every n-th of them. All take the same number of steps: one
that has fewer rows than another gives the teacher padding.
"""

from collections.abc import Iterator
import concurrent.futures
import math
import pathlib
from typing import Any, NamedTuple, Optional

import jax
import numpy as np

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.data import pipeline
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.engine import record as record_lib
from haikd.processes import distributed
from haikd.run import recording_progress
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


class Work:
  """Makes the shards that are missing.

  Attributes:
    folder: of the records.
    shards: how many there are.

  Args:
    folder: of the records.
    recipe: of the records.
    config: of the run, with its teacher.
    program: likewise.
    data: likewise.
    rows: of the training split.
  """

  def __init__(self, folder: pathlib.Path, recipe: recipe_lib.Recipe,
               config: config_lib.ConfigDict, program: program_lib.Program,
               data: pipeline.Data, rows: int):
    self.folder = folder
    self.shards = -(-rows // recipe.shard_rows)
    self._recipe, self._codec = recipe, recipe.codec()
    self._program, self._data, self._rows = program, data, rows
    self._split = config.data.train
    mesh = program.mesh
    self._share = mesh_lib.batch_share(mesh)
    unit = math.lcm(mesh_lib.batch_shards(mesh), self._share.count)
    limit = program_lib.evaluated_rows(config, mesh)
    size = min(config.evaluation.batch_size,
               recipe.shard_rows * self._share.count, rows * self._share.count)
    if limit is not None:
      size = min(size, limit * mesh_lib.batch_shards(mesh))
    # Rows of a part, of this process.
    self._size = -(-size // unit) * unit // self._share.count
    self._step = record_lib.build_step(
        program, self._codec, program_lib.chunk_bytes(config))

  def run(self, frozen: base.Variables) -> None:
    """Makes the shards that are missing; call it on all processes.

    Args:
      frozen: the teacher, on the mesh.
    """
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
          batch = collectives.shard_batch(
              self._program.mesh, (part.batch, part.uniform))
          started = part, self._step(frozen, *batch)
        else:
          started = None
        if running:  # While the device works on the next part.
          done, arrays = running
          made = self._encode(done, jax.tree.map(local_rows, arrays))
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
      starts = range(0, longest, self._size)
      for start in starts:
        yield self._part(number, rows[start:start + self._size],
                         is_last=start == starts[-1])

  def _part(self, shard, rows, is_last) -> Part:
    """Reads some rows."""
    count = len(rows)
    indices = np.zeros(self._size, np.int64)
    indices[:count] = rows
    batch = self._data.pick(
        self._split, indices=indices, batch_size=self._size, shards=1,
        process_index=0, process_count=1)[0]
    is_real = np.arange(self._size) < count

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


def local_rows(array: jax.Array) -> np.ndarray:
  """Returns the rows that `collectives.shard_batch` took from this process.

  Args:
    array: a global array, split over the batch axes.
  """
  parts = {shard.index[0].indices(array.shape[0])[0]: shard.data
           for shard in array.addressable_shards}
  return np.concatenate([np.asarray(parts[row]) for row in sorted(parts)])
