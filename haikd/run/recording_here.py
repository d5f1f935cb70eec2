"""Predicts what is recorded with the devices of the run."""

from collections.abc import Mapping
import math
from typing import Any

import jax
import numpy as np

from haikd import config as config_lib
from haikd.core import base
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.engine import record as record_lib
from haikd.run import recording
from haikd.teacher_records import recipe as recipe_lib


class Predictor:
  """A teacher on the devices of the run, as a `recording.Predictor`.

  Attributes:
    share: which part of every batch this process has.
    size: how many rows a part has, of this process.

  Args:
    recipe: of the records.
    config: of the run, with its teacher.
    program: likewise.
    frozen: the teacher, on the mesh.
    rows: of the training split.
  """

  def __init__(self, recipe: recipe_lib.Recipe, config: config_lib.ConfigDict,
               program: program_lib.Program, frozen: base.Variables, rows: int):
    self._mesh, self._frozen = program.mesh, frozen
    self.share = mesh_lib.batch_share(self._mesh)
    unit = math.lcm(mesh_lib.batch_shards(self._mesh), self.share.count)
    limit = program_lib.evaluated_rows(config, self._mesh)
    size = min(config.evaluation.batch_size,
               recipe.shard_rows * self.share.count, rows * self.share.count)
    if limit is not None:
      size = min(size, limit * mesh_lib.batch_shards(self._mesh))
    self.size = -(-size // unit) * unit // self.share.count
    self._step = record_lib.build_step(
        program, recipe.codec(), program_lib.chunk_bytes(config))

  def start(self, part: recording.Part) -> Any:
    """Begins to predict a part; returns global arrays."""
    batch = collectives.shard_batch(self._mesh, (part.batch, part.uniform))
    return self._step(self._frozen, *batch)

  def finish(self, started: Any) -> Mapping[str, np.ndarray]:
    """Returns what was begun, the rows of this process."""
    return jax.tree.map(_local_rows, started)


def _local_rows(array):
  """Returns the rows that `collectives.shard_batch` took from this process."""
  parts = {shard.index[0].indices(array.shape[0])[0]: shard.data
           for shard in array.addressable_shards}
  return np.concatenate([np.asarray(parts[row]) for row in sorted(parts)])
