"""What evaluation reports of a network's logits, as sums and counts."""

from typing import Optional

import jax
import jax.numpy as jnp

from haikd import base
from haikd import checks
from haikd import losses
from haikd import masking

NAMES = ('accuracy', 'cross_entropy', 'kl', 'agreement')


def classification(
    logits: jax.Array,
    teacher_logits: Optional[jax.Array],
    *,
    mask: jax.Array,
    labels: Optional[jax.Array] = None) -> dict[str, base.LossSum]:
  """Compares logits with labels and with a teacher's.

  Additive over `B`.

  Args:
    logits: `[B, V]` or `[B, N, V]` floating.
    teacher_logits: the same shape, or None.
    mask: bool, `[B]` or `[B, N]`, true where a position counts.
    labels: integers shaped like `mask`, -100 where there is none, or
      probabilities shaped like `logits`, whose largest counts as the class; or
      None.

  Returns:
    LossSums: with labels `accuracy` and `cross_entropy` (nats); with a teacher
    `kl` (nats, at a temperature of 1) and `agreement` of the most likely class.
  """
  sums = {}
  best = jnp.argmax(logits, axis=-1)
  if labels is not None:
    classes = jnp.argmax(labels, -1) if checks.is_real(labels) else labels
    labelled = mask & (classes >= 0)
    hits = (best == classes).astype(jnp.float32)
    sums['accuracy'] = masking.masked_mean(hits, labelled)
    sums['cross_entropy'] = losses.cross_entropy(
        logits, mask=mask, labels=labels)
  if teacher_logits is not None:
    sums['kl'] = losses.kl_divergence(
        logits, teacher_logits, mask=mask, temperature=1.0)
    same = (best == jnp.argmax(teacher_logits, axis=-1)).astype(jnp.float32)
    sums['agreement'] = masking.masked_mean(same, mask)
  return sums
