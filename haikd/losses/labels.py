"""Losses on labels: the student's predictions against the truth."""

import functools
from typing import Optional

import jax
from jax import custom_derivatives
import jax.numpy as jnp

from haikd.core import base
from haikd.core import checks
from haikd.core import masking
from haikd.losses import divergences
from haikd.losses import register


@register.register_loss(
    on='logits',
    example=dict(student=(2, 3, 5), mask=(2, 3), labels=(2, 3)),
    additive=True)
def cross_entropy(student: jax.Array,
                  teacher: Optional[jax.Array] = None,
                  *,
                  mask: jax.Array,
                  labels: Optional[jax.Array] = None,
                  label_smoothing: float = 0.0) -> base.LossSum:
  """Cross-entropy of the student's predictions with the labels.

  The hard-label term of distillation: it holds the student to the truth where
  the teacher errs. Labels must already be aligned to the logits; nothing is
  shifted here. With label_smoothing = e, the target is (1 - e) times the label
  plus e/V for every class, which keeps the student from being too sure.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, V]` or `[B, N, V]` floating, logits in nats.
    teacher: not used; every loss takes one.
    mask: bool, `[B]` or `[B, N]`, true where a position counts.
    labels: integer `[B]` or `[B, N]`, from 0 to V-1, or -100 where a position
      has no label and does not count; or floating, shaped like `student`, the
      probability of each class (mixed or smoothed labels).
    label_smoothing: e, from 0 to below 1. A scheduled one that leaves this
      range gives NaN. A student that rules out a class (a logit of -inf) then
      has an infinite loss.

  Returns:
    A LossSum: nats summed over positions, and their number. The sum is NaN if
    a label that counts is out of range: this cannot be checked while tracing
    and must not give a plausible number.

  Raises:
    TypeError: `labels` are neither integer nor floating.
    ValueError: `labels` are missing or have the wrong shape, `label_smoothing`
      is out of range, or V is 1.

  References:
    Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network,
    arXiv:1503.02531, section 2, the second of the two objectives. Labels as
    probabilities: Zhang et al., mixup, arXiv:1710.09412, section 2. Smoothing:
    Szegedy et al., Rethinking the Inception Architecture, arXiv:1512.00567,
    section 7.
  """
  del teacher
  labels = check_given(labels)
  divergences.check_classes(student)
  smoothing = _check_smoothing(label_smoothing)
  if checks.is_real(labels):
    _check_labels(labels, student.shape, student)
    labels = masking.clean(labels.astype(jnp.float32), mask)
    if smoothing is not None:
      labels = (1 - smoothing) * labels + smoothing / labels.shape[-1]
    log_q = jnp.where(labels != 0.0, jax.nn.log_softmax(student), 0.0)
    return masking.masked_mean(-jnp.sum(labels * log_q, axis=-1), mask)
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise TypeError('labels must be integers, or floating probabilities; got '
                    f'labels.dtype={labels.dtype}. Convert them with '
                    '`labels.astype(int)`.')
  labels, legal, keep = classes(labels, student, mask)
  student = masking.clean(student, keep)
  rows = (cross_entropy_rows(student, labels) if smoothing is None else
          _smoothed_rows(student, labels, smoothing))
  return masking.masked_mean(jnp.where(legal, rows, jnp.nan), keep)


def classes(labels: jax.Array, student: jax.Array,
            mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the class of each position, and where it may be used.

  Args:
    labels: integer `[...]`, -100 where a position has no label.
    student: `[..., V]`, logits.
    mask: bool, leading axes of the labels, true where a position counts.

  Returns:
    int32 `[...]`, from 0 to V-1; bool `[...]`, whether the label was in this
    range; and bool `[...]`, whether the position counts and has a label.

  Raises:
    ValueError: `labels` have the wrong shape.
  """
  _check_labels(labels, student.shape[:-1], student)
  checks.check_leading('labels', labels, mask)
  labels = labels.astype(jnp.int32)
  keep = masking.expand(mask, labels.ndim) & (labels != base.IGNORED_LABEL)
  legal = (labels >= 0) & (labels < student.shape[-1])
  return jnp.where(legal, labels, 0), legal, keep


def check_given(labels: Optional[jax.Array]) -> jax.Array:
  """Returns labels as an array; raises ValueError for none."""
  if labels is None:
    raise ValueError('labels must be given; got None. Use data with labels, '
                     'or a loss that needs none.')
  return jnp.asarray(labels)


def numbers(labels: Optional[jax.Array], student: jax.Array) -> jax.Array:
  """Returns labels that are numbers, one for each output of the student.

  Args:
    labels: floating, shaped like `student`; or without its last axis, if that
      has size 1.
    student: `[..., D]`.

  Returns:
    float32, shaped like `student`.

  Raises:
    TypeError: `labels` are not floating.
    ValueError: `labels` are missing, or have the wrong shape.
  """
  labels = check_given(labels)
  if not checks.is_real(labels):
    raise TypeError(
        'labels must be floating, a number for each output; got labels.dtype='
        f'{labels.dtype}. For classes use cross_entropy.')
  if (*labels.shape, 1) == student.shape:
    labels = labels[..., None]
  if labels.shape != student.shape:
    raise ValueError(
        f'labels must have the shape of the outputs; got labels.shape='
        f'{labels.shape}, student.shape={student.shape}. Let the network '
        'return one number for each number of a label.')
  return labels.astype(jnp.float32)


@jax.custom_jvp
def cross_entropy_rows(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns -log q(label) of each row of logits.

  Args:
    logits: `[..., V]` float32.
    labels: int32 `[...]`, from 0 to V-1.

  Returns:
    `[...]` float32, nats.
  """
  return _compare(logits, labels)[0]


# The derivative is q, less 1 at the label: no scatter, and one pass.
@functools.partial(cross_entropy_rows.defjvp, symbolic_zeros=True)
def _cross_entropy_rows_jvp(primals, tangents):
  rows, q, at_label = _compare(*primals)
  if isinstance(tangents[0], custom_derivatives.SymbolicZero):
    return rows, jnp.zeros_like(rows)
  return rows, jnp.sum((q - at_label) * tangents[0], axis=-1)


@jax.custom_jvp
def _smoothed_rows(logits, labels, smoothing):
  """Returns the cross-entropy of each row with its smoothed label."""
  return _compare_smoothed(logits, labels, smoothing)[0]


# The derivative is q less the smoothed label.
@functools.partial(_smoothed_rows.defjvp, symbolic_zeros=True)
def _smoothed_rows_jvp(primals, tangents):
  rows, slope = _compare_smoothed(*primals)
  if isinstance(tangents[0], custom_derivatives.SymbolicZero):
    return rows, jnp.zeros_like(rows)
  return rows, jnp.sum(slope * tangents[0], axis=-1)


def _compare_smoothed(logits, labels, smoothing):
  """Returns the cross-entropies, and q less the smoothed labels."""
  rows, q, at_label = _compare(logits, labels)
  label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
  rows += smoothing * (label_logits - jnp.mean(logits, axis=-1))
  return rows, q - (1 - smoothing) * at_label - smoothing / logits.shape[-1]


def _compare(logits, labels):
  """Returns -log q(label), q, and whether a class is the label."""
  q, (largest, rest) = divergences.softmax(logits)
  label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1)
  at_label = labels[..., None] == jnp.arange(logits.shape[-1])
  return (largest - label_logits + rest)[..., 0], q, at_label


def _check_smoothing(smoothing):
  """Returns a fraction, NaN if it is scheduled and illegal; None for 0."""
  if not isinstance(smoothing, (int, float)):
    smoothing = jax.lax.stop_gradient(smoothing)
    return jnp.where((smoothing >= 0) & (smoothing < 1), smoothing, jnp.nan)
  if not 0 <= smoothing < 1:
    raise ValueError('label_smoothing must be 0 or more, and below 1; got '
                     f'{smoothing}. 0 leaves labels as they are.')
  return smoothing or None


def _check_labels(labels, shape, student):
  if labels.shape != shape:
    raise ValueError(
        f'labels must have shape {shape} if they are {labels.dtype}; got '
        f'labels.shape={labels.shape}, student.shape={student.shape}. Integers '
        'have the shape of the logits without V, probabilities all of it; for '
        "labels of which several may be true set config.task='multilabel'.")
