"""Metrics of classifiers, of examples or of places in images."""

from typing import Any, Optional

import jax
import jax.numpy as jnp

from haikd.metrics import counts
from haikd.metrics import means


def measure(logits: jax.Array, target: Optional[jax.Array], *, mask: jax.Array,
            labels: Optional[jax.Array]) -> tuple[dict[str, Any], dict]:
  """Compares logits with labels and with a teacher's.

  Additive over `B`.

  Args:
    logits: `[B, ..., V]` floating.
    target: the same shape, or None.
    mask: bool, leading axes of the logits, true where a position counts.
    labels: as for `means.of_logits`.

  Returns:
    The LossSums of `means.of_logits` and, with labels of at most 1000 classes,
    Counts: `f1`, and `miou` for logits with positions; no columns.
  """
  sums: dict[str, Any] = dict(
      means.of_logits(logits, target, mask=mask, labels=labels))
  size = logits.shape[-1]
  if labels is not None and size <= counts.MAX_CLASSES:
    truth, labelled = means.true_classes(labels, mask)
    predicted, true = (number[..., None] == jnp.arange(size)
                       for number in (jnp.argmax(logits, axis=-1), truth))
    counted = counts.count(predicted, true, labelled)
    sums['f1'] = counted
    if logits.ndim > 2:
      sums['miou'] = counted
  return sums, {}


def finish(sums: dict[str, Any], columns: dict) -> dict[str, float]:
  """Returns the metrics of a split.

  Args:
    sums: as from `measure`, added up.
    columns: none.

  Returns:
    The means; `f1`, the mean over classes of the harmonic mean of precision and
    recall; and `miou`, that of intersection over union. Classes that were
    neither true nor predicted are left out.
  """
  del columns
  return counts.finish(sums)
