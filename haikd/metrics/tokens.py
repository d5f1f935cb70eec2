"""Metrics of language models, which return logits for every position."""

from typing import Optional

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import masking
from haikd.metrics import means

_TOP = 5  # Tokens compared by `top5_agreement`.


def measure(
    logits: jax.Array, target: Optional[jax.Array], *, mask: jax.Array,
    labels: Optional[jax.Array]) -> tuple[dict[str, base.LossSum], dict]:
  """Compares logits with labels and with a teacher's.

  Additive over `B`.

  Args:
    logits: `[B, N, V]` floating.
    target: the same shape, or None.
    mask: bool, `[B, N]`, true where a position's logits count.
    labels: as for `means.of_logits`.

  Returns:
    The LossSums of `means.of_logits` and, with a teacher, `top5_agreement`: the
    mean fraction of the teacher's five most likely tokens that are among the
    student's five, in any order; no columns.
  """
  sums = means.of_logits(logits, target, mask=mask, labels=labels)
  if target is not None:
    size = min(_TOP, logits.shape[-1])
    student, teacher = (lax.top_k(x, size)[1] for x in (logits, target))
    shared = jnp.any(teacher[..., :, None] == student[..., None, :], axis=-1)
    fraction = jnp.mean(shared.astype(jnp.float32), axis=-1)
    sums['top5_agreement'] = masking.masked_mean(fraction, mask)
  return sums, {}


def finish(sums: dict[str, base.LossSum], columns: dict) -> dict[str, float]:
  """Returns the metrics of a split.

  Args:
    sums: as from `measure`, added up.
    columns: none.

  Returns:
    The means, and with labels `perplexity`: e to the cross-entropy, the number
    of equally likely tokens that would be as hard to guess.
  """
  del columns
  values = means.finish(sums)
  if 'cross_entropy' in values:
    with np.errstate(over='ignore'):
      values['perplexity'] = float(np.exp(values['cross_entropy']))
  return values
