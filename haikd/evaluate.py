"""Evaluation in which every example counts exactly once.

The last batch is padded and masked, sums and counts are added up over batches
and devices, and the division comes at the end.
"""

import collections
from collections.abc import Callable, Iterable
from typing import Optional

import jax

from haikd import base
from haikd import checks
from haikd import sharding

_IN_FLIGHT = 2  # Batches that wait for the device, which so never waits.


def evaluate(eval_step: Callable, own: base.Frozen,
             frozen: Optional[base.Frozen], batches: Iterable[base.Batch],
             mesh: jax.sharding.Mesh) -> dict[str, float]:
  """Evaluates a network on a split.

  Args:
    eval_step: from `step.build_eval_step`.
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


def _add(sums, results):
  """Adds a batch, in Python's floats: float32 stops counting at 2^24."""
  for name, value in jax.device_get(results).items():
    total, count = sums.get(name, (0.0, 0.0))
    sums[name] = (total + float(value.total), count + float(value.count))
