"""Evaluation in which every example counts exactly once.

The last batch is padded and masked, sums and counts are added up over batches
and devices, and the division comes at the end.
"""

from collections.abc import Callable, Iterable
from typing import Optional

import jax

from haikd import base
from haikd import checks
from haikd import sharding


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
    The mean of each metric over the split.

  Raises:
    DataError: the split is empty.
  """
  sums = {}
  for batch in batches:
    results = eval_step(own, frozen, sharding.shard_batch(mesh, batch))
    # Python's floats: float32 would drop examples from a count over 2^24.
    for name, value in jax.device_get(results).items():
      total, count = sums.get(name, (0.0, 0.0))
      sums[name] = (total + float(value.total), count + float(value.count))
  if not sums:
    raise checks.DataError('evaluate.evaluate: split must hold at least one '
                           'example; got none.')
  return {
      name: total / count if count else float('nan')
      for name, (total, count) in sums.items()
  }
