"""Metrics of classifiers, which return logits for each example."""

from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np

from haikd.metrics import means

MAX_CLASSES = 1000  # F1 is not reported for more.


class Counts(NamedTuple):
  """How many examples each class has, float32 `[V]`.

  Attributes:
    hits: examples for which it was predicted and true.
    predicted: examples for which it was predicted.
    true: examples for which it was true.
  """

  hits: jax.Array
  predicted: jax.Array
  true: jax.Array


def measure(logits: jax.Array, target: Optional[jax.Array], *, mask: jax.Array,
            labels: Optional[jax.Array]) -> tuple[dict[str, Any], dict]:
  """Compares logits with labels and with a teacher's.

  Additive over `B`.

  Args:
    logits: `[B, V]` floating.
    target: the same shape, or None.
    mask: bool, `[B]`, true where an example counts.
    labels: as for `means.of_logits`.

  Returns:
    The LossSums of `means.of_logits` and, with labels of at most 1000 classes,
    `f1`, Counts; no columns.
  """
  sums: dict[str, Any] = dict(
      means.of_logits(logits, target, mask=mask, labels=labels))
  size = logits.shape[-1]
  if labels is not None and size <= MAX_CLASSES:
    truth, labelled = means.true_classes(labels, mask)
    most_likely = jnp.argmax(logits, axis=-1)
    predicted, true = (
        labelled[:, None] & (number[:, None] == jnp.arange(size))
        for number in (most_likely, truth))
    sums['f1'] = Counts(*(jnp.sum(x, axis=0, dtype=jnp.float32)
                          for x in (predicted & true, predicted, true)))
  return sums, {}


def finish(sums: dict[str, Any], columns: dict) -> dict[str, float]:
  """Returns the metrics of a split.

  Args:
    sums: as from `measure`, added up.
    columns: none.

  Returns:
    The means, and `f1`, the mean over classes of the harmonic mean of precision
    and recall. Classes that were neither true nor predicted are left out.
  """
  del columns
  sums = dict(sums)
  counts = sums.pop('f1', None)
  values = means.finish(sums)
  if counts is not None:
    values['f1'] = _macro_f1(counts)
  return values


def _macro_f1(counts):
  # 2 / (1 / precision + 1 / recall) = 2 hits / (predicted + true).
  examples = counts.predicted + counts.true
  scores = 2 * counts.hits[examples > 0] / examples[examples > 0]
  return float(np.mean(scores)) if scores.size else float('nan')
