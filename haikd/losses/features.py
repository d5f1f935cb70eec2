"""Losses on hidden states: what the networks compute on the way."""

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
  layers more directly than the logits do. Divided by positions and features
  alike, it keeps its size when the width changes.

  Additive over `B`: the sums of two halves of a batch add up to its own.

  Args:
    student: `[B, ..., D]` floating, in the networks' own unit.
    teacher: like `student`.
    mask: bool, `[B]`, `[B, N]` or any leading axes of `student`, true where a
      position counts.

  Returns:
    A LossSum: the squared errors summed, and valid positions times features,
    so that with every position valid the mean is `jnp.mean` of the squares.

  Raises:
    ValueError: shapes do not agree.

  References:
    Romero et al., FitNets: Hints for Thin Deep Nets, arXiv:1412.6550,
    equation 3, with the mean over positions and features in place of half the
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

  It transfers the direction of each state and leaves its length free, which in
  a transformer differs much from layer to layer and feature to feature.

  Additive over `B`: the sums of two halves of a batch add up to its own.

  Args:
    student: `[B, ..., D]` floating, in the networks' own unit.
    teacher: like `student`.
    mask: bool, `[B]`, `[B, N]` or any leading axes of `student` without the
      last, true where a position counts.

  Returns:
    A LossSum: 1 - cos (without unit, 0 to 2) summed over positions, and their
    number. A state of zeros, which has no direction, adds 0 to the sum and to
    the gradient.

  Raises:
    ValueError: shapes do not agree.

  References:
    Sanh et al., DistilBERT, arXiv:1910.01108, section 2, the third loss.
  """
  return masking.masked_mean(cosines.distance(student, teacher), mask)
