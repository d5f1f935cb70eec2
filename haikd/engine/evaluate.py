"""Evaluation in which every example counts exactly once.

The last batch is padded and masked, sums and counts are added up over batches
and devices, and the division comes at the end. A metric that is not a sum, such
as a correlation, is computed from one row per example.
"""

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Optional

import jax
import jax.numpy as jnp
import numpy as np

from haikd import metrics as metrics_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import loops
from haikd.core import tasks
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.metrics import own as own_lib
from haikd.network import network as network_lib
from haikd.objective import pairs as pairs_lib
from haikd.processes import watchdog

_IN_FLIGHT = 2  # Batches queued on the device, so that it never waits.


def evaluate(eval_step: Callable, evaluated: base.Variables,
             frozen: Optional[base.Variables], batches: Iterable[base.Batch],
             mesh: jax.sharding.Mesh,
             own: Sequence[own_lib.Own] = ()) -> dict[str, float]:
  """Evaluates a network on a split.

  Args:
    eval_step: from `build_eval_step`.
    evaluated: the network's parameters and state.
    frozen: those of the teacher it is compared with, or None.
    batches: this process's part of the split, NumPy arrays.
    mesh: where to run.
    own: metrics of the user's own, as for `build_eval_step`.

  Returns:
    `{metric: value}` over the split, see `metrics`. Metrics that lack what they
    compare the network with are left out.

  Raises:
    DataError: the split is empty.
  """
  total = Total()
  pending: collections.deque = collections.deque()
  with watchdog.during(watchdog.EVALUATION):
    for batch in batches:
      watchdog.alive()
      pending.append(
          eval_step(evaluated, frozen, collectives.shard_batch(mesh, batch)))
      if len(pending) > _IN_FLIGHT:
        total.add(pending.popleft())
    for results in pending:
      watchdog.alive()
      total.add(results)
  if not total.columns:
    raise checks.DataError(
        'The evaluated split must hold at least one example; got none.')
  columns = jax.tree.map(lambda *parts: np.concatenate(parts), *total.columns)
  return metrics_lib.finish(total.sums, columns, own)


def build_eval_step(network: network_lib.Network,
                    teacher: Optional[network_lib.Network],
                    mesh: jax.sharding.Mesh, evaluated: base.Variables,
                    frozen: Optional[base.Variables],
                    *,
                    task: str = tasks.CLASSIFICATION,
                    has_labels: bool = True,
                    own: Sequence[own_lib.Own] = (),
                    rows: Optional[int] = None,
                    chunk_bytes: Optional[int] = None) -> Callable:
  """Builds the compiled evaluation step.

  Args:
    network: what is evaluated.
    teacher: what it is compared with, or None; if it is `network` itself, that
      runs only once.
    mesh: where it runs.
    evaluated: NamedShardings of the network.
    frozen: NamedShardings of the teacher, or None.
    task: what labels are, one of `tasks.OF_LABELS`.
    has_labels: whether labels, if there are any, are what the network predicts.
    own: metrics of the user's own.
    rows: the most examples that a device works on at once; None for all.
    chunk_bytes: of the logits of a large vocabulary that a device holds at
      once; None for what suits it.

  Returns:
    `(evaluated, frozen, batch) -> (sums, columns)` over the global batch, for
    `metrics.finish`. `evaluated` and `frozen` are the parameters and state of
    the network and of the teacher.
  """
  gather = collectives.build_gather(mesh)
  sizes = collectives.chunk_sizes(mesh, chunk_bytes)

  def logits_of(network, variables, batch):
    logits = network.infer(variables, batch, gather).logits
    if isinstance(logits, base.LinearLogits):
      return logits
    return jax.tree.map(lambda x: x.astype(jnp.float32), logits)

  def measure(evaluated, frozen, batch):
    logits = logits_of(network, evaluated, batch)
    teacher_logits = None
    if teacher is network:
      teacher_logits = logits
    elif teacher is not None:
      teacher_logits = logits_of(teacher, frozen, batch)
    return metrics_lib.measure(
        logits,
        teacher_logits,
        mask=pairs_lib.target_mask(batch, logits),
        labels=batch.labels if has_labels else None,
        weight=batch.weight,
        task=task,
        own=own,
        sizes=sizes)

  def local(evaluated, frozen, batch):
    sums, columns = measure_in_parts(
        lambda part: measure(evaluated, frozen, part), batch, rows)
    return collectives.sum_over_batch(sums), columns

  specs = jax.tree.map(lambda x: x.spec, (evaluated, frozen))
  replicated = mesh_lib.replicated(mesh)
  over_shards = collectives.over_shards(
      local,
      mesh,
      in_specs=(*specs, mesh_lib.BATCH_SPEC),
      out_specs=(replicated.spec, mesh_lib.BATCH_SPEC))

  def eval_step(evaluated, frozen, batch):
    return over_shards(evaluated, frozen, batch)

  # Each device computes the columns of its rows; every process needs all.
  return jax.jit(eval_step, out_shardings=replicated)


def measure_in_parts(measure: Callable, batch: base.Batch,
                     rows: Optional[int]) -> tuple[Any, Any]:
  """Measures a shard of a batch part by part.

  Args:
    measure: `batch -> (sums, columns)`.
    batch: the shard.
    rows: the most examples of a part; None for all.

  Returns:
    The sums over the parts, and the columns of all rows.
  """
  examples = batch.mask.shape[0]
  count = next(n for n in range(1, examples + 1)
               if examples % n == 0 and examples // n <= (rows or examples))
  parts = jax.tree.map(lambda x: x.reshape((count, -1) + x.shape[1:]), batch)
  _, (sums, columns) = loops.scan_parts(
      lambda carry, part: (carry, measure(part)), (), parts)
  sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
  columns = jax.tree.map(lambda x: x.reshape(examples, *x.shape[2:]), columns)
  return sums, columns


class Total:
  """What was measured so far.

  Attributes:
    sums: of all batches, in float64: float32 stops counting at 2^24.
    columns: a list with those of each batch.
  """

  def __init__(self) -> None:
    self.sums: Any = None
    self.columns: list[Any] = []

  def add(self, results):
    """Adds a batch."""
    sums, columns = jax.device_get(results)
    sums = jax.tree.map(np.float64, sums)
    if self.sums is not None:
      sums = jax.tree.map(np.add, self.sums, sums)
    self.sums = sums
    self.columns.append(columns)
