"""Evaluation in which every example counts exactly once.

The last batch is padded and masked, sums and counts are added up over batches
and devices, and the division comes at the end. What is no sum, such as a
correlation, is told from a row for every example.
"""

import collections
from collections.abc import Callable, Iterable
from typing import Optional

import jax
import jax.numpy as jnp
import numpy as np

from haikd import metrics as metrics_lib
from haikd.core import base
from haikd.core import checks
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import step as step_lib
from haikd.network import network as network_lib
from haikd.objective import pairs as pairs_lib

_IN_FLIGHT = 2  # Batches that wait for the device, which so never waits.


def evaluate(eval_step: Callable, own: base.Variables,
             frozen: Optional[base.Variables], batches: Iterable[base.Batch],
             mesh: jax.sharding.Mesh) -> dict[str, float]:
  """Evaluates a network on a split.

  Args:
    eval_step: from `build_eval_step`.
    own: what is evaluated.
    frozen: the teacher it is compared with, or None.
    batches: this process's part of the split, NumPy arrays.
    mesh: where to run.

  Returns:
    `{metric: value}` over the split, see `metrics`; none of those for which a
    network has nothing to be compared with.

  Raises:
    DataError: the split is empty.
  """
  total = _Total()
  pending = collections.deque()
  for batch in batches:
    pending.append(eval_step(own, frozen, collectives.shard_batch(mesh, batch)))
    if len(pending) > _IN_FLIGHT:
      total.add(pending.popleft())
  for results in pending:
    total.add(results)
  if not total.columns:
    raise checks.DataError('evaluate.evaluate: split must hold at least one '
                           'example; got none.')
  columns = jax.tree.map(lambda *parts: np.concatenate(parts), *total.columns)
  return metrics_lib.finish(total.sums, columns)


def build_eval_step(network: network_lib.Network,
                    teacher: Optional[network_lib.Network],
                    mesh: jax.sharding.Mesh, own: base.Variables,
                    frozen: Optional[base.Variables],
                    *,
                    rows: Optional[int] = None,
                    chunk_bytes: Optional[int] = None) -> Callable:
  """Builds the compiled evaluation step.

  Args:
    network: what is evaluated.
    teacher: what it is compared with, or None; where it is `network` itself,
      that runs only once.
    mesh: where it runs.
    own: NamedShardings of the network.
    frozen: NamedShardings of the teacher, or None.
    rows: how many examples a device works on at once at most; None for all.
    chunk_bytes: of the logits of a large vocabulary that it holds at once; None
      for what suits it.

  Returns:
    `(own, frozen, batch) -> (sums, columns)` over the whole batch, for
    `metrics.finish`, with `own` and `frozen` the parameters and state of the
    network and of the teacher.
  """
  gather = collectives.build_gather(mesh)
  sizes = collectives.chunk_sizes(mesh, chunk_bytes)

  def run(network, frozen, batch):
    logits = network.infer(frozen, batch, gather).logits
    if isinstance(logits, base.LinearLogits):
      return logits
    return jax.tree.map(lambda x: x.astype(jnp.float32), logits)

  def measure(own, frozen, batch):
    output = run(network, own, batch)
    if teacher is network:
      target = output
    else:
      target = run(teacher, frozen, batch) if teacher is not None else None
    return metrics_lib.measure(
        output,
        target,
        mask=pairs_lib.target_mask(batch, output),
        labels=batch.labels,
        sizes=sizes)

  def local(own, frozen, batch):
    size = batch.mask.shape[0]
    count = next(n for n in range(1, size + 1)
                 if size % n == 0 and size // n <= (rows or size))
    parts = jax.tree.map(lambda x: x.reshape((count, -1) + x.shape[1:]), batch)
    _, (sums, columns) = step_lib.scan_parts(
        lambda carry, part: (carry, measure(own, frozen, part)), (), parts)
    sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
    columns = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), columns)
    return collectives.sum_over_batch(sums), columns

  specs = jax.tree.map(lambda x: x.spec, (own, frozen))
  return jax.jit(
      collectives.over_shards(
          local,
          mesh,
          in_specs=(*specs, mesh_lib.BATCH_SPEC),
          out_specs=(mesh_lib.whole(mesh).spec, mesh_lib.BATCH_SPEC)),
      # Columns leave each device with its own rows; every process wants all.
      out_shardings=mesh_lib.whole(mesh))


class _Total:
  """What was measured so far.

  Attributes:
    sums: of all batches, in float64: float32 stops counting at 2^24.
    columns: of each batch.
  """

  def __init__(self):
    self.sums = None
    self.columns = []

  def add(self, results):
    """Adds a batch."""
    sums, columns = jax.device_get(results)
    sums = jax.tree.map(np.float64, sums)
    if self.sums is not None:
      sums = jax.tree.map(np.add, self.sums, sums)
    self.sums = sums
    self.columns.append(columns)
