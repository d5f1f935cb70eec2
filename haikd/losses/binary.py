"""Losses on labels that each are true or not: one sigmoid a label."""

from typing import Optional

import jax

from haikd.core import base
from haikd.core import masking
from haikd.losses import divergences
from haikd.losses import labels as labels_lib
from haikd.losses import register


@register.register_loss(
    on='logits',
    example=dict(student=(2, 3, 5), mask=(2, 3), labels=(2, 3, 5)),
    additive=True)
def binary_cross_entropy(student: jax.Array,
                         teacher: Optional[jax.Array] = None,
                         *,
                         mask: jax.Array,
                         labels: Optional[jax.Array] = None) -> base.LossSum:
  """Cross-entropy of each label's own prediction: several may be true.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[..., V]` floating, a logit for each label, in nats.
    teacher: not used; every loss takes one.
    mask: bool, leading axes of the logits, true where an example counts.
    labels: floating, shaped like `student`, from 0, not true, to 1, true.

  Returns:
    A LossSum: nats summed over labels, and the number of labels that count.

  Raises:
    TypeError: `labels` are not floating.
    ValueError: `labels` are missing, or have the wrong shape.

  References:
    Nam et al., Large-Scale Multi-label Text Classification: Revisiting Neural
    Networks, arXiv:1312.5419, the cross-entropy error.
  """
  del teacher
  labels = labels_lib.numbers(labels, student)
  return masking.masked_mean(jax.nn.softplus(student) - labels * student, mask)


@register.register_loss(
    on='logits', example=dict(student=(2, 3, 5), mask=(2, 3)), additive=True)
def binary_kl(student: jax.Array,
              teacher: jax.Array,
              *,
              mask: jax.Array,
              temperature: float = 1.0) -> base.LossSum:
  """Divergence of each label's prediction from the teacher's, times T^2.

  With p and q the sigmoids of the teacher's and the student's logit, both
  divided by T, each label gives T^2 KL between (p, 1 - p) and (q, 1 - q).

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[..., V]` floating, a logit for each label, in nats.
    teacher: like `student`.
    mask: bool, leading axes of the logits, true where an example counts.
    temperature: T, positive; the logits of both networks are divided by it.

  Returns:
    A LossSum: T^2 KL in nats summed over labels, and the number of labels that
    count.

  Raises:
    ValueError: `temperature` is not positive, or shapes differ.

  References:
    Yang et al., Multi-Label Knowledge Distillation, arXiv:2308.06453, the
    multi-label logits distillation, with the mean over labels in place of the
    sum and the temperature of Hinton et al., arXiv:1503.02531.
  """
  divergences.check_temperature(temperature)
  student, teacher = student / temperature, teacher / temperature
  p = jax.nn.sigmoid(teacher)
  # log p - log q, and the same for the label not being true.
  true = jax.nn.softplus(-student) - jax.nn.softplus(-teacher)
  untrue = jax.nn.softplus(student) - jax.nn.softplus(teacher)
  return masking.masked_mean(
      temperature**2 * (p * true + (1 - p) * untrue), mask)
