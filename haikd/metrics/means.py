"""Metrics that are means over examples or positions."""

from collections.abc import Mapping
from typing import Optional

import jax
import jax.numpy as jnp
import numpy as np

from haikd import losses
from haikd.core import base
from haikd.core import checks
from haikd.core import masking

WEIGHT = 'weight'  # The column of examples' weights, if they have any.


def of_logits(logits: jax.Array, target: Optional[jax.Array], *,
              mask: jax.Array,
              labels: Optional[jax.Array]) -> dict[str, base.LossSum]:
  """Compares logits with labels and with a teacher's.

  Additive over `B`.

  Args:
    logits: `[..., V]` floating.
    target: the same shape, or None.
    mask: bool, leading axes of `[...]`, true where a position counts.
    labels: integers `[...]`, -100 where there is no label; or probabilities
      shaped like `logits`, whose largest marks the class; or None.

  Returns:
    LossSums: with labels `accuracy` and `cross_entropy` (nats); with a teacher
    `kl` and `reverse_kl` (nats, at temperature 1), `acceptance`, which is one
    less the total variation, and `agreement` on the most likely class.

  References:
    Leviathan et al., Fast Inference from Transformers via Speculative Decoding,
    arXiv:2211.17192, theorem 3.5: `acceptance` is how often the teacher accepts
    a token that the student draws.
  """
  sums = {}
  most_likely = _most_likely(logits)
  if labels is not None:
    truth, labelled = true_classes(labels, mask)
    hits = (most_likely == truth).astype(jnp.float32)
    sums['accuracy'] = masking.masked_mean(hits, labelled)
    sums['cross_entropy'] = losses.cross_entropy(
        logits, mask=mask, labels=labels)
  if target is not None:
    sums['kl'] = losses.kl_divergence(
        logits, target, mask=mask, temperature=1.0)
    sums['reverse_kl'] = losses.reverse_kl(
        logits, target, mask=mask, temperature=1.0)
    rejected, count = losses.total_variation(
        logits, target, mask=mask, temperature=1.0)
    sums['acceptance'] = base.LossSum(count - rejected, count)
    same = most_likely == _most_likely(target)
    sums['agreement'] = masking.masked_mean(same.astype(jnp.float32), mask)
  return sums


def _most_likely(logits: jax.Array) -> jax.Array:
  """Returns the first class whose logit is the largest, int32 `[...]`.

  It is the argmax, in two reductions: XLA's own, which carries values and
  indices at once, takes four times as long on CPU.
  """
  classes = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  largest = jnp.max(logits, axis=-1, keepdims=True)
  return jnp.min(jnp.where(logits == largest, classes, logits.shape[-1]), -1)


def true_classes(labels: jax.Array,
                 mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the class of each position, and where it has one that counts.

  Args:
    labels: integers, -100 where there is no label; or probabilities with a
      trailing axis, whose largest marks the class.
    mask: bool, the leading axes of `labels`, true where a position counts.

  Returns:
    Integers and bool, both shaped like the labels without the classes.
  """
  truth = jnp.argmax(labels, -1) if checks.is_real(labels) else labels
  return truth, masking.expand(mask, truth.ndim) & (truth >= 0)


def finish(sums: Mapping[str, base.LossSum]) -> dict[str, float]:
  """Returns the means; NaN where nothing counts."""
  return {
      name: float(total / count) if count else float('nan')
      for name, (total, count) in sums.items()
  }


def kept(columns: Mapping[str, np.ndarray], *names: str) -> list[np.ndarray]:
  """Returns the rows of some columns where the column `kept` is true.

  Args:
    columns: of a family of metrics, for all examples of a split.
    names: which of them.

  Returns:
    A float64 array for each name.
  """
  return [columns[name][columns['kept']].astype(np.float64) for name in names]


def kept_weights(columns: Mapping[str, np.ndarray]) -> Optional[np.ndarray]:
  """Returns the weights of the rows that `kept` returns, or None."""
  if WEIGHT not in columns:
    return None
  keep, weight = columns['kept'], columns[WEIGHT].astype(np.float64)
  weight = weight.reshape(-1, *(1,) * (keep.ndim - 1))
  return np.broadcast_to(weight, keep.shape)[keep]
