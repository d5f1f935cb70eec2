"""A sample of a split: a part of its examples, whatever the mesh."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.data import batches
from haikd.data import pipeline
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.processes import distributed


def choose(size: int, limit: int) -> np.ndarray:
  """Returns indices from all parts of a split, in an order of no meaning.

  Args:
    size: of the split.
    limit: how many at most.
  """
  count = min(size, limit)
  spread = np.arange(count, dtype=np.int64) * size // count
  return np.random.default_rng(0).permutation(spread)


def read(data: pipeline.Data, split: str, indices: np.ndarray,
         mesh: jax.sharding.Mesh,
         **options: Any) -> Iterator[tuple[base.Batch, Any]]:
  """Yields examples in batches on the mesh, as evaluation sees them.

  All processes must read to the end.

  Args:
    data: the data.
    split: the name of a split.
    indices: of the examples, in the split.
    mesh: the devices.
    **options: of `batches.Evaluation`, such as `batch_size`.

  Yields:
    A batch, and the index of each of its examples, -1 for padding.

  Raises:
    DataError: an example cannot be read, by this or another process.
  """
  share = mesh_lib.batch_share(mesh)
  numbered = data.pick(split, indices=indices, **options)
  for i in range(len(numbered)):
    batch = _read(numbered, i)
    rows = len(batch.mask)
    places = (i * share.count + share.index) * rows + np.arange(rows)
    # An example without a position, as one of weight 0 has none, is padding.
    real = (places < len(indices)) & batch.mask.reshape(rows, -1).any(axis=1)
    numbers = np.where(real, indices[np.minimum(places, len(indices) - 1)],
                       -1).astype(np.int32)
    yield collectives.shard_batch(mesh, (batch, numbers))


def over_shards(local: Callable, mesh: jax.sharding.Mesh,
                networks: Any) -> Callable:
  """Returns a function of networks and a batch, of arrays on the mesh.

  Args:
    local: `(*networks, batch, numbers) -> (sums, rows)` of a device's part of
      a batch; the sums are those of the whole batch.
    mesh: the devices.
    networks: a tuple of variables as `jax.ShapeDtypeStruct`s with shardings.

  Returns:
    A function that returns the sums and the rows of all devices.
  """
  specs = jax.tree.map(lambda x: x.sharding.spec, networks)
  rows = mesh_lib.BATCH_SPEC
  return collectives.over_shards(
      local, mesh, in_specs=(*specs, rows, rows),
      out_specs=(mesh_lib.replicated(mesh).spec, rows))


def _read(numbered: batches.Evaluation, number: int) -> base.Batch:
  """Returns a batch; raises on all processes if one cannot read it."""
  batch: Any = None
  error: Any = checks.DataError('Another process could not read its examples.')
  try:
    batch = numbered[number]
  except Exception as err:  # Whatever a user's data raises.
    error = err
  # One that goes on would wait for the others.
  if not distributed.all_can(batch is not None):
    raise error
  return batch
