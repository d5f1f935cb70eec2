"""Metrics of classifiers, which give logits for a whole example."""

from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np

from haikd.metrics import means

MOST_CLASSES = 1000  # Of which F1 is told.


class Counts(NamedTuple):
  """How often each class was met, float32 `[V]`.

  Attributes:
    hits: where it was predicted and true.
    predicted: where it was predicted.
    true: where it was true.
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
    `f1`, the Counts of each class; no columns.
  """
  sums = means.of_logits(logits, target, mask=mask, labels=labels)
  size = logits.shape[-1]
  if labels is not None and size <= MOST_CLASSES:
    truth, labelled = means.true_classes(labels, mask)
    best = jnp.argmax(logits, axis=-1)
    predicted, true = (
        labelled[:, None] & (number[:, None] == jnp.arange(size))
        for number in (best, truth))
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
    and recall. A class that was neither true nor predicted is left out.
  """
  del columns
  sums = dict(sums)
  counts = sums.pop('f1', None)
  found = means.finish(sums)
  if counts is not None:
    found['f1'] = _macro_f1(counts)
  return found


def _macro_f1(counts):
  # 2 / (1 / precision + 1 / recall).
  met = counts.predicted + counts.true
  scores = 2 * counts.hits[met > 0] / met[met > 0]
  return float(np.mean(scores)) if scores.size else float('nan')
