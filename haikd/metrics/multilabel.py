"""Metrics of labels that each are true or not."""

from typing import Any, Optional

import jax
import jax.numpy as jnp

from haikd import losses
from haikd.core import masking
from haikd.metrics import counts


def measure(logits: jax.Array, target: Optional[jax.Array], *, mask: jax.Array,
            labels: Optional[jax.Array]) -> tuple[dict[str, Any], dict]:
  """Compares the logits of labels with the truth and with a teacher's.

  A label is predicted if its logit is above 0, and true if its value is above
  a half. Additive over `B`.

  Args:
    logits: `[..., V]` floating.
    target: the teacher's, the same shape, or None.
    mask: bool, leading axes of the logits, true where an example counts.
    labels: floating, shaped like `logits`, from 0 to 1; or None.

  Returns:
    With labels the LossSums `accuracy` and `binary_cross_entropy` (nats), means
    over labels, and `label_f1`, Counts; with a teacher the LossSums `binary_kl`
    (nats, at temperature 1) and `agreement`, means over labels; no columns.
  """
  sums: dict[str, Any] = {}
  predicted = logits > 0
  if labels is not None:
    true = labels > 0.5
    sums['accuracy'] = _mean(predicted == true, mask)
    sums['binary_cross_entropy'] = losses.binary_cross_entropy(
        logits, mask=mask, labels=labels)
    sums['label_f1'] = counts.count(predicted, true, mask)
  if target is not None:
    sums['binary_kl'] = losses.binary_kl(logits, target, mask=mask)
    sums['agreement'] = _mean(predicted == (target > 0), mask)
  return sums, {}


def finish(sums: dict[str, Any], columns: dict) -> dict[str, float]:
  """Returns the metrics of a split.

  Args:
    sums: as from `measure`, added up.
    columns: none.

  Returns:
    The means, and `label_f1`, the mean over labels of the harmonic mean of
    precision and recall. Labels that were neither true nor predicted are left
    out.
  """
  del columns
  return counts.finish(sums)


def _mean(hits, mask):
  return masking.masked_mean(hits.astype(jnp.float32), mask)
