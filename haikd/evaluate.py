"""Evaluation in which every example counts exactly once.

The last batch is padded and masked, sums and counts are added up over batches
and devices, and the division comes at the end.
"""

import collections
from collections.abc import Callable, Iterable
from typing import Optional

import jax
import jax.numpy as jnp

from haikd import base
from haikd import checks
from haikd import metrics as metrics_lib
from haikd import network as network_lib
from haikd import pairing
from haikd import placement
from haikd import sharding
from haikd import step as step_lib

_IN_FLIGHT = 2  # Batches that wait for the device, which so never waits.


def evaluate(eval_step: Callable, own: base.Frozen,
             frozen: Optional[base.Frozen], batches: Iterable[base.Batch],
             mesh: jax.sharding.Mesh) -> dict[str, float]:
  """Evaluates a network on a split.

  Args:
    eval_step: from `build_eval_step`.
    own: what is evaluated.
    frozen: the teacher it is compared with, or None.
    batches: this process's part of the split, NumPy arrays.
    mesh: where to run.

  Returns:
    The mean of each metric over the split; none where a network has nothing to
    be compared with.

  Raises:
    DataError: the split is empty.
  """
  sums, number = {}, 0
  pending = collections.deque()
  for number, batch in enumerate(batches, start=1):
    pending.append(eval_step(own, frozen, sharding.shard_batch(mesh, batch)))
    if len(pending) > _IN_FLIGHT:
      _add(sums, pending.popleft())
  for results in pending:
    _add(sums, results)
  if not number:
    raise checks.DataError('evaluate.evaluate: split must hold at least one '
                           'example; got none.')
  return {
      name: total / count if count else float('nan')
      for name, (total, count) in sums.items()
  }


def build_eval_step(network: network_lib.Network,
                    teacher: Optional[network_lib.Network],
                    mesh: jax.sharding.Mesh, own: base.Frozen,
                    frozen: Optional[base.Frozen],
                    *,
                    rows: Optional[int] = None) -> Callable:
  """Builds the compiled evaluation step.

  Args:
    network: what is evaluated.
    teacher: what it is compared with, or None.
    mesh: where it runs.
    own: NamedShardings of the network.
    frozen: NamedShardings of the teacher, or None.
    rows: how many examples a device works on at once at most; None for all.

  Returns:
    `(own, frozen, batch) -> {metric: LossSum}` over the whole batch, with `own`
    and `frozen` the parameters and state of the network and of the teacher.
  """
  gather = sharding.build_gather(mesh)

  def logits(network, frozen, batch):
    output, _ = network.apply(
        frozen.params,
        frozen.state,
        None,
        batch,
        is_training=False,
        gather=gather)
    if isinstance(output.logits, base.LinearLogits):
      return output.logits.materialise()
    return output.logits.astype(jnp.float32)

  def sums(own, frozen, batch):
    student = logits(network, own, batch)
    target = logits(teacher, frozen, batch) if teacher is not None else None
    found = metrics_lib.classification(
        student,
        target,
        mask=pairing.target_mask(batch, student),
        labels=batch.labels)
    return sharding.vary(found)

  def local(own, frozen, batch):
    size = batch.mask.shape[0]
    count = next(n for n in range(1, size + 1)
                 if size % n == 0 and size // n <= (rows or size))
    parts = jax.tree.map(lambda x: x.reshape((count, -1) + x.shape[1:]), batch)
    _, found = step_lib.scan_parts(
        lambda carry, part: (carry, sums(own, frozen, part)), (), parts)
    return sharding.sum_over_batch(
        jax.tree.map(lambda x: jnp.sum(x, axis=0), found))

  specs = jax.tree.map(lambda x: x.spec, (own, frozen))
  return jax.jit(
      sharding.over_shards(
          local,
          mesh,
          in_specs=(*specs, placement.BATCH_SPEC),
          out_specs=placement.whole(mesh).spec))


def _add(sums, results):
  """Adds a batch, in Python's floats: float32 stops counting at 2^24."""
  for name, value in jax.device_get(results).items():
    total, count = sums.get(name, (0.0, 0.0))
    sums[name] = (total + float(value.total), count + float(value.count))
