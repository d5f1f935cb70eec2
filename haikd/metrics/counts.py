"""How often classes were predicted and true, and what follows from it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import masking
from haikd.metrics import means

MAX_CLASSES = 1000  # Classes are not counted if there are more.


class Counts(NamedTuple):
  """How many examples, or positions, each class has, float32 `[V]`.

  Attributes:
    hits: those for which it was predicted and true.
    predicted: those for which it was predicted.
    true: those for which it was true.
  """

  hits: jax.Array
  predicted: jax.Array
  true: jax.Array


def count(predicted: jax.Array, true: jax.Array, mask: jax.Array) -> Counts:
  """Counts by class.

  Args:
    predicted: bool `[..., V]`.
    true: bool `[..., V]`.
    mask: bool, leading axes of them, true where an example counts.
  """
  keep = masking.expand(mask, true.ndim)
  axes = tuple(range(true.ndim - 1))
  return Counts(*(jnp.sum(x & keep, axis=axes, dtype=jnp.float32)
                  for x in (predicted & true, predicted, true)))


def macro_f1(counts: Counts) -> float:
  """Returns the mean over classes of 2 / (1 / precision + 1 / recall).

  Classes that were neither true nor predicted are left out.
  """
  return _mean(2 * counts.hits, counts.predicted + counts.true)


def mean_iou(counts: Counts) -> float:
  """Returns the mean over classes of intersection over union.

  Classes that were neither true nor predicted are left out.
  """
  return _mean(counts.hits, counts.predicted + counts.true - counts.hits)


def finish(sums: Mapping[str, Any]) -> dict[str, float]:
  """Returns the metrics of a split.

  Args:
    sums: LossSums, added up, and Counts under names of `SCORES`.

  Returns:
    The means, and what follows from the Counts.
  """
  counted = {name: value for name, value in sums.items() if name in SCORES}
  values = means.finish(
      {name: value for name, value in sums.items() if name not in counted})
  values.update((name, SCORES[name](value)) for name, value in counted.items())
  return values


def _mean(parts, wholes):
  shares = parts[wholes > 0] / wholes[wholes > 0]
  return float(np.mean(shares)) if shares.size else float('nan')


# What Counts become, by the name of the metric.
SCORES = dict(f1=macro_f1, label_f1=macro_f1, miou=mean_iou)
