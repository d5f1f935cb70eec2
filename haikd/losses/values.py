"""Losses on predicted numbers: regression, from labels and from a teacher."""

from typing import Optional

import jax
import jax.numpy as jnp

from haikd.core import base
from haikd.core import masking
from haikd.losses import labels as labels_lib
from haikd.losses import register


@register.register_loss(
    on='logits',
    example=dict(student=(2, 3, 5), mask=(2, 3), labels=(2, 3, 5)),
    additive=True)
def mean_squared_error(student: jax.Array,
                       teacher: Optional[jax.Array] = None,
                       *,
                       mask: jax.Array,
                       labels: Optional[jax.Array] = None) -> base.LossSum:
  """Mean squared error of the predictions: regression on labels.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[..., D]` floating, predictions in the labels' units.
    teacher: not used; every loss takes one.
    mask: bool, leading axes of the predictions, true where one counts.
    labels: floating, shaped like `student`; or without its last axis, if D
      is 1.

  Returns:
    A LossSum: the sum of the squared errors, and the number of predicted
    numbers that count.

  Raises:
    TypeError: `labels` are not floating.
    ValueError: `labels` are missing, or have the wrong shape.

  References:
    Bishop, Pattern Recognition and Machine Learning, 2006, section 3.1.1: the
    likelihood of labels with Gaussian noise.
  """
  del teacher
  errors = student - labels_lib.numbers(labels, student)
  return masking.masked_mean(jnp.square(errors), mask)


@register.register_loss(
    on='logits',
    example=dict(student=(2, 3, 5), mask=(2, 3), labels=(2, 3, 5)),
    additive=True)
def mean_absolute_error(student: jax.Array,
                        teacher: Optional[jax.Array] = None,
                        *,
                        mask: jax.Array,
                        labels: Optional[jax.Array] = None) -> base.LossSum:
  """Mean absolute error of the predictions, which outliers move less.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[..., D]` floating, predictions in the labels' units.
    teacher: not used; every loss takes one.
    mask: bool, leading axes of the predictions, true where one counts.
    labels: floating, shaped like `student`; or without its last axis, if D
      is 1.

  Returns:
    A LossSum: the sum of the absolute errors, and the number of predicted
    numbers that count. The gradient of an error of 0 is 0.

  Raises:
    TypeError: `labels` are not floating.
    ValueError: `labels` are missing, or have the wrong shape.

  References:
    Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 2009,
    section 10.6.
  """
  del teacher
  errors = student - labels_lib.numbers(labels, student)
  return masking.masked_mean(jnp.sign(errors) * errors, mask)


@register.register_loss(
    on='logits', example=dict(student=(2, 3, 5), mask=(2, 3)), additive=True)
def logit_mse(student: jax.Array, teacher: jax.Array, *,
              mask: jax.Array) -> base.LossSum:
  """Mean squared error between the outputs of student and teacher.

  For regression it is the soft term: the student learns the teacher's
  predictions. For classes it matches logits, as before the softmax.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[..., V]` floating, predictions or logits.
    teacher: like `student`.
    mask: bool, leading axes of the outputs, true where one counts.

  Returns:
    A LossSum: the sum of the squared differences, and the number of outputs
    that count.

  Raises:
    ValueError: shapes differ.

  References:
    Ba and Caruana, Do Deep Nets Really Need to be Deep?, arXiv:1312.6184, the
    regression of logits, with the mean over outputs in place of half the sum.
  """
  return masking.masked_mean(jnp.square(student - teacher), mask)
