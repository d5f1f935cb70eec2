"""Losses on kernels: similarities between all rows of a batch."""

import math

import jax
import jax.numpy as jnp

from haikd.core import base
from haikd.core import masking
from haikd.losses import cosines
from haikd.losses import groups
from haikd.losses import register

_EXAMPLE = dict(student=(2, 3, 5), mask=(2, 3))


@register.register_loss(
    on='features', example=_EXAMPLE, relational=True, any_width=True)
def probabilistic_transfer(student: jax.Array, teacher: jax.Array, *,
                           mask: jax.Array) -> base.LossSum:
  """Divergence of the networks' conditional probabilities of neighbours.

  The probability that example i chooses example j is (1 + cos) / 2 of their
  angle, divided by its sum over all j ≠ i. The loss is KL(p ‖ q) of the
  teacher's probabilities p from the student's q. There is no bandwidth to tune.

  Not additive over `B`: the batch is gathered as for `similarity_preserving`.

  Args:
    student: `[B, ..., D]` floating, flattened to one vector an example.
    teacher: `[B, ..., E]` floating.
    mask: bool, `[B]` or any leading axes of `student`, true where a position
      counts. Others are 0 in the vectors. An example without any is left out.

  Returns:
    A LossSum: the divergences in nats summed over examples, and their number,
    which is 0 unless at least two examples count. Probabilities are cut off
    at 1e-12 in the logarithm.

  Raises:
    ValueError: shapes differ in more than the width.

  References:
    Passalis and Tefas, Learning Deep Representations with Probabilistic
    Knowledge Transfer, arXiv:1803.10837, with the cosine as kernel and the mean
    over examples in place of the sum. The authors' code includes j = i and
    divides by b² in place of b.
  """
  real = groups.examples(mask)
  pairs = groups.pairs(real)

  def probabilities(features):
    unit, _ = cosines.directions(groups.flat(features))
    kernel = jnp.where(pairs, (1 + groups.products(unit, unit)) / 2, 0.0)
    total = jnp.sum(kernel, axis=-1, keepdims=True)
    return kernel / jnp.where(total > 0, total, 1.0)

  q, p = (jnp.maximum(probabilities(x), 1e-12) for x in (student, teacher))
  ratio = jnp.log(p) - jnp.log(q)
  # p log(p / q) - p + q: the same sum, of terms that are never negative, since
  # both are distributions. The plain terms would cancel.
  terms = p * (jnp.expm1(-ratio) + ratio)
  rows = jnp.sum(jnp.where(pairs, terms, 0.0), axis=-1)
  return masking.masked_mean(rows, real & pairs.any(axis=-1))


@register.register_loss(
    on='features', example=_EXAMPLE, relational=True, any_width=True)
def correlation(student: jax.Array, teacher: jax.Array, *, mask: jax.Array,
                gamma: float = 0.4, order: int = 2) -> base.LossSum:
  """Squared difference of the networks' Gaussian similarities of examples.

  Features are flattened to one row an example and divided by their length. The
  kernel exp(−γ ‖x − y‖²) = exp(−2γ) exp(2γ x·y) is taken as its Taylor
  polynomial exp(−2γ) Σ_p (2γ)^p / p! (x·y)^p, p from 0 to `order`.

  Not additive over `B`: the batch is gathered as for `similarity_preserving`.

  Args:
    student: `[B, ..., D]` floating.
    teacher: `[B, ..., E]` floating.
    mask: bool, `[B]` or any leading axes of `student`, true where a position
      counts. Others are 0 in the vectors. An example without any is left out.
    gamma: positive, unitless; large values let only near examples count.
    order: of the polynomial, at least 1.

  Returns:
    A LossSum: the squared differences (unitless) summed over ordered pairs,
    an example with itself included, and b².

  Raises:
    ValueError: an option out of range, or shapes differ in more than the width.

  References:
    Peng et al., Correlation Congruence for Knowledge Distillation,
    arXiv:1904.01802. γ and order are those of torchdistill's example; its loss
    takes the length of the difference in place of the square, of features that
    are not divided by their length. The module of that name in RepDistiller
    multiplies the differences of neighbours in the batch instead.
  """
  if isinstance(gamma, (int, float)) and not gamma > 0:
    raise ValueError(f'gamma must be positive; got {gamma}. Try 0.4.')
  if not isinstance(order, int) or order < 1:
    raise ValueError(
        f'order must be an integer of at least 1; got {order}. Try 2.')
  real = groups.examples(mask)

  def kernel(features):
    unit, _ = cosines.directions(groups.flat(features))
    cosine = 2 * gamma * groups.products(unit, unit)
    terms = (cosine**p / math.factorial(p) for p in range(1, order + 1))
    return jnp.exp(-2.0 * gamma) * (1 + sum(terms))

  error = jnp.square(kernel(student) - kernel(teacher))
  return groups.mean_of_groups(error, real[:, None] & real, real, size=2,
                               distinct=False)


@register.register_loss(
    on='features', example=_EXAMPLE, relational=True, any_width=True)
def cka(student: jax.Array, teacher: jax.Array, *,
        mask: jax.Array) -> base.LossSum:
  """1 − linear CKA of the networks' features.

  Every position that counts is one row of X and of Y, whose columns are
  centred: CKA = ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖). It is 1 for features that are equal
  up to a rotation and a scale.

  Not additive over `B`: the batch is gathered as for `similarity_preserving`.

  Args:
    student: `[B, ..., D]` floating.
    teacher: `[B, ..., E]` floating.
    mask: bool, `[B]` or any leading axes of `student` except the last, true
      where a position counts.

  Returns:
    A LossSum: 1 − CKA (unitless, 0 to 1) times the number of rows, and this
    number, 0 unless at least two rows count. It weighs microbatches by rows.
    Features that do not vary add the number of rows and no gradient.

  Raises:
    ValueError: shapes differ in more than the width.

  References:
    Kornblith et al., Similarity of Neural Network Representations Revisited,
    arXiv:1905.00414, linear CKA; as a loss, Saha, Bialkowski and Khalifa,
    Distilling Representational Similarity using Centered Kernel Alignment, BMVC
    2022.
  """
  mask = jnp.broadcast_to(
      masking.expand(mask, student.ndim - 1), student.shape[:-1]).reshape(-1)
  number = jnp.sum(mask, dtype=jnp.int32)

  def centred(features):
    rows = masking.clean(features.reshape(-1, features.shape[-1]), mask)
    mean = jnp.sum(rows, axis=0) / jnp.maximum(number, 1)
    rows = masking.clean(rows - mean, mask)
    # The scale cancels; without it, squares of squares could overflow.
    return cosines.directions(rows.reshape(-1))[0].reshape(rows.shape)

  x, y = centred(student), centred(teacher)
  squares = lambda a, b: jnp.sum(jnp.square(groups.products(a.T, b.T)))
  scale = squares(x, x) * squares(y, y)
  varies = scale > 0
  similarity = jnp.where(
      varies, squares(x, y) / jnp.sqrt(jnp.where(varies, scale, 1.0)), 0.0)
  count = jnp.where(number > 1, number, 0).astype(jnp.float32)
  # Rounding may take the quotient above 1.
  return base.LossSum(count * jnp.maximum(1.0 - similarity, 0.0), count)
