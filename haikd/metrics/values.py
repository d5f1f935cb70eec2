"""Metrics of regression: networks that return numbers for each example."""

from typing import Optional

import jax
import jax.numpy as jnp
import numpy as np

from haikd import losses
from haikd.core import base
from haikd.core import masking
from haikd.metrics import means


def measure(
    output: jax.Array, target: Optional[jax.Array], *, mask: jax.Array,
    labels: Optional[jax.Array]
) -> tuple[dict[str, base.LossSum], dict[str, jax.Array]]:
  """Compares predictions with labels and with a teacher's predictions.

  Args:
    output: `[..., D]` floating, predictions.
    target: the teacher's, the same shape, or None.
    mask: bool, leading axes of the predictions, true where one counts.
    labels: floating, shaped like `output`, or without its last axis if D is 1;
      or None.

  Returns:
    Sums: `teacher_mse`, the squared difference from the teacher. Columns, with
    labels: `prediction`, `label` and `kept`, whether it counts.
  """
  sums: dict[str, base.LossSum] = {}
  columns: dict[str, jax.Array] = {}
  if target is not None:
    sums['teacher_mse'] = losses.logit_mse(output, target, mask=mask)
  if labels is not None:
    label = labels.astype(jnp.float32).reshape(output.shape)
    kept = masking.expand(mask, output.ndim - 1)
    columns = dict(prediction=output, label=label,
                   kept=jnp.broadcast_to(kept, output.shape[:-1]))
  return sums, columns


def finish(sums: dict[str, base.LossSum],
           columns: dict[str, np.ndarray]) -> dict[str, float]:
  """Returns the metrics of a split.

  Args:
    sums: as from `measure`, added up.
    columns: as from `measure`, for all examples of the split.

  Returns:
    `teacher_mse` and, with labels, `mse` and `mae`, the mean squared and the
    mean absolute error, and `r2`, the coefficient of determination: 1 less the
    squared error over the squared deviation from the mean label, the mean over
    the D predicted numbers. NaN where nothing counts, or labels are all equal.
  """
  values = means.finish(sums)
  if columns:
    prediction, label = means.kept(columns, 'prediction', 'label')
    values.update(_scores(prediction, label, means.kept_weights(columns)))
  return values


def _scores(prediction, label, weight):
  if not len(label):
    return dict.fromkeys(('mse', 'mae', 'r2'), float('nan'))
  mean = lambda x: np.average(x, axis=0, weights=weight)
  error = prediction - label
  spread = mean(np.square(label - mean(label)))
  with np.errstate(divide='ignore', invalid='ignore'):
    explained = 1 - mean(np.square(error)) / spread
  return dict(mse=float(mean(np.square(error)).mean()),
              mae=float(mean(np.abs(error)).mean()),
              r2=float(np.where(spread > 0, explained, np.nan).mean()))
