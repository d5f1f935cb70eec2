"""Losses on hidden states, the intermediate values of the networks."""

import jax
import jax.numpy as jnp

from haikd.core import base
from haikd.core import masking
from haikd.losses import cosines
from haikd.losses import register


@register.register_loss(
    on='features',
    example=dict(student=(2, 3, 5), mask=(2, 3)),
    additive=True)
def feature_matching(student: jax.Array, teacher: jax.Array, *,
                     mask: jax.Array) -> base.LossSum:
  """Mean squared error between hidden states.

  It transfers the representation itself, which reaches the student's early
  layers more directly than the logits do. The mean is over positions and
  features, so its size does not depend on the width.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, ..., D]` floating, in the networks' units.
    teacher: like `student`.
    mask: bool, `[B]`, `[B, N]` or any leading axes of `student`, true where a
      position counts.

  Returns:
    A LossSum: the sum of the squared errors, and valid positions times
    features. If every position is valid, the mean is `jnp.mean` of the squares.

  Raises:
    ValueError: shapes differ.

  References:
    Romero et al., FitNets: Hints for Thin Deep Nets, arXiv:1412.6550, the loss
    on hints, with the mean over positions and features in place of half the
    sum.
  """
  return masking.masked_mean(jnp.square(student - teacher), mask)


@register.register_loss(
    on='features',
    example=dict(student=(2, 3, 5), mask=(2, 3)),
    additive=True)
def feature_cosine(student: jax.Array, teacher: jax.Array, *,
                   mask: jax.Array) -> base.LossSum:
  """Cosine distance between hidden states, position by position.

  It transfers the direction of each state and leaves its length free. In a
  transformer, lengths differ much between layers and between features.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, ..., D]` floating, in the networks' units.
    teacher: like `student`.
    mask: bool, `[B]`, `[B, N]` or any leading axes of `student` except the
      last, true where a position counts.

  Returns:
    A LossSum: 1 - cos (unitless, 0 to 2) summed over positions, and their
    number. A state of zeros, which has no direction, adds 0 to the sum and to
    the gradient.

  Raises:
    ValueError: shapes differ.

  References:
    Sanh et al., DistilBERT, arXiv:1910.01108, section 2, the third loss.
  """
  return masking.masked_mean(cosines.distance(student, teacher), mask)
