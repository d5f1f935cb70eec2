"""Losses on logits: what the student predicts, against teacher or labels."""

from typing import Optional

import jax
import jax.numpy as jnp

from haikd import base
from haikd import checks
from haikd import masking
from haikd.losses import register

IGNORED_LABEL = -100


@register.register_loss(
    on='logits', example=dict(student=(2, 3, 5), mask=(2, 3)))
def kl_divergence(student: jax.Array,
                  teacher: jax.Array,
                  *,
                  mask: jax.Array,
                  temperature: float = 1.0) -> base.LossSum:
  """Divergence of the student's predictions from the teacher's, times T^2.

  The forward KL(p || q) of the teacher's softmax p from the student's q, both
  at temperature T. It transfers how the teacher ranks the wrong classes, more
  of it the higher T is. The gradient shrinks with 1/T^2; the factor T^2 keeps
  its weight beside a loss on labels when T changes.

  A class that the teacher rules out (a logit of -inf) contributes nothing,
  whatever the student makes of it; one that the student alone rules out makes
  the divergence infinite.

  Additive over `B`: the sums of two halves of a batch add up to its own.

  Args:
    student: `[B, V]` or `[B, N, V]` floating, logits in nats.
    teacher: like `student`.
    mask: bool, `[B]` or `[B, N]`, true where a position counts.
    temperature: T, positive; both sides' logits are divided by it.

  Returns:
    A LossSum: T^2 KL in nats summed over positions, and their number.

  Raises:
    ValueError: `temperature` is not positive, or shapes do not agree.

  References:
    Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network,
    arXiv:1503.02531, equation 1 and section 2.1.
  """
  if isinstance(temperature, (int, float)) and not temperature > 0:
    raise ValueError('losses.kl_divergence: temperature must be positive; got '
                     f'temperature={temperature}. 1 leaves logits as they are.')
  rows = _kl_rows(student / temperature, teacher / temperature)
  return masking.masked_mean(temperature**2 * rows, mask)


def _kl_rows(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Returns KL(teacher || student) of each row of logits.

  Each class gives p log(p/q) + q - p. What is added sums to 0, but makes every
  term non-negative, and lets the rounding of the normalisers enter squared:
  without it T^2 would magnify that rounding beyond the divergence itself.

  Args:
    student: `[..., V]` float32.
    teacher: `[..., V]` float32.

  Returns:
    `[...]` float32.
  """
  log_p, log_q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
  p, q = jnp.exp(log_p), jnp.exp(log_q)
  possible = p > 0  # Elsewhere 0 log 0 = 0, and -inf must not meet -inf.
  ratio = jnp.where(possible, log_p, 0.0) - jnp.where(possible, log_q, 0.0)
  # q - p = p expm1(-ratio) is exact where p and q are close, and overflows
  # where they are not.
  near = possible & (jnp.abs(ratio) < 1.0)
  gap = jnp.where(near, p * jnp.expm1(-jnp.where(near, ratio, 0.0)), q - p)
  return jnp.sum(p * ratio + gap, axis=-1)


@register.register_loss(
    on='logits', example=dict(student=(2, 3, 5), mask=(2, 3), labels=(2, 3)))
def cross_entropy(student: jax.Array,
                  teacher: Optional[jax.Array] = None,
                  *,
                  mask: jax.Array,
                  labels: Optional[jax.Array] = None) -> base.LossSum:
  """Cross-entropy of the student's predictions with the labels.

  The hard part of distillation: it ties the student to the truth where the
  teacher errs. Labels are aligned to the logits beforehand, nothing is shifted
  here.

  Additive over `B`: the sums of two halves of a batch add up to its own.

  Args:
    student: `[B, V]` or `[B, N, V]` floating, logits in nats.
    teacher: not used; here so that every loss is called alike.
    mask: bool, `[B]` or `[B, N]`, true where a position counts.
    labels: integer `[B]` or `[B, N]`, from 0 to V-1, or -100 where a position
      has no label and does not count; or floating, shaped like `student`, the
      probability of each class (mixed or smoothed labels).

  Returns:
    A LossSum: nats summed over positions, and their number. The sum is NaN if
    a label that counts lies outside its range, which cannot be known before
    the data are there and must not pass for a number.

  Raises:
    TypeError: `labels` are neither integer nor floating.
    ValueError: `labels` are missing, or their shape does not fit.

  References:
    Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network,
    arXiv:1503.02531, section 2, the second of the two objectives. Labels as
    probabilities: Zhang et al., mixup, arXiv:1710.09412, section 2.
  """
  del teacher
  where = 'losses.cross_entropy'
  if labels is None:
    raise ValueError(f'{where}: labels must be given; got labels=None. Use '
                     'data that has labels, or a loss without them.')
  labels = jnp.asarray(labels)
  if checks.is_real(labels):
    _check_labels(where, labels, student.shape, student)
    labels = masking.clean(labels.astype(jnp.float32), mask)
    log_q = jnp.where(labels != 0.0, jax.nn.log_softmax(student), 0.0)
    return masking.masked_mean(-jnp.sum(labels * log_q, axis=-1), mask)
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise TypeError(f'{where}: labels must be integers, or floating '
                    f'probabilities; got labels.dtype={labels.dtype}. Convert '
                    'them with `labels.astype(int)`.')
  _check_labels(where, labels, student.shape[:-1], student)
  checks.check_leading(where, 'labels', labels, mask)
  labels = labels.astype(jnp.int32)
  keep = masking.expand(mask, labels.ndim) & (labels != IGNORED_LABEL)
  log_q = jax.nn.log_softmax(masking.clean(student, keep))
  legal = (labels >= 0) & (labels < student.shape[-1])
  index = jnp.where(legal, labels, 0)[..., None]
  picked = jnp.take_along_axis(log_q, index, axis=-1)[..., 0]
  return masking.masked_mean(jnp.where(legal, -picked, jnp.nan), keep)


def _check_labels(where, labels, expected, student):
  if labels.shape != expected:
    raise ValueError(
        f'{where}: {labels.dtype} labels must have shape {expected}; got '
        f'labels.shape={labels.shape}, student.shape={student.shape}. Integers '
        'have the shape of the logits without V, probabilities have all of it.')
