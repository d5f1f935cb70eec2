"""Losses on the distances and angles between the examples of a batch."""

import jax
import jax.numpy as jnp

from haikd.core import base
from haikd.losses import cosines
from haikd.losses import groups
from haikd.losses import register

_EXAMPLE = dict(student=(2, 3, 5), mask=(2, 3))


@register.register_loss(
    on='features', example=_EXAMPLE, relational=True, any_width=True)
def similarity_preserving(student: jax.Array, teacher: jax.Array, *,
                          mask: jax.Array) -> base.LossSum:
  """Squared difference of the networks' similarities of a batch's examples.

  Each network's features, flattened to one row an example, give a matrix of
  products Q Qᵀ, whose rows are divided by their lengths. The loss is
  ‖G_student − G_teacher‖² / b² for b examples. It transfers which examples
  excite the same features, so the networks may have different widths.

  It relates examples to one another, so it is not additive over `B`: the batch
  is first gathered over all devices. With microbatches, examples are compared
  within one microbatch of all devices.

  Args:
    student: `[B, ..., D]` floating.
    teacher: `[B, ..., E]` floating.
    mask: bool, `[B]` or any leading axes of `student`, true where a position
      counts. Others are 0 in the rows. An example without any is left out.

  Returns:
    A LossSum: the squared differences (unitless) summed over ordered pairs,
    an example with itself included, and b².

  Raises:
    ValueError: shapes differ in more than the width.

  References:
    Tung and Mori, Similarity-Preserving Knowledge Distillation,
    arXiv:1907.09682, equation 4. torchdistill divides rows by the sum of their
    absolute values in place of their length.
  """
  real = groups.examples(mask)

  def similarities(features):
    rows = groups.flat(features)
    return cosines.directions(groups.products(rows, rows))[0]

  error = jnp.square(similarities(student) - similarities(teacher))
  return groups.mean_of_groups(error, real[:, None] & real, real, size=2,
                               distinct=False)


@register.register_loss(
    on='features', example=_EXAMPLE, relational=True, any_width=True)
def relational_distance(student: jax.Array, teacher: jax.Array, *,
                        mask: jax.Array) -> base.LossSum:
  """Huber error of the distances between a batch's examples.

  Each network's distances are divided by their mean over all pairs, so that
  only their proportions are transferred. The Huber error is e²/2 for |e| ≤ 1
  and |e| − 1/2 beyond.

  Not additive over `B`: the batch is gathered as for `similarity_preserving`.

  Args:
    student: `[B, ..., D]` floating, flattened to one vector an example.
    teacher: `[B, ..., E]` floating.
    mask: bool, `[B]` or any leading axes of `student`, true where a position
      counts. Others are 0 in the vectors. An example without any is left out.

  Returns:
    A LossSum: the errors (unitless) summed over ordered pairs of two examples,
    and the number b (b − 1) of these pairs. Examples that coincide get no
    gradient from their distance.

  Raises:
    ValueError: shapes differ in more than the width.

  References:
    Park et al., Relational Knowledge Distillation, arXiv:1904.05068, section
    3.2.1, with the mean over pairs in place of the sum. The authors' code also
    averages over the b pairs of an example with itself, which makes its loss
    smaller by (b − 1) / b.
  """
  real = groups.examples(mask)
  pairs = groups.pairs(real)
  number = jnp.maximum(jnp.sum(pairs), 1)

  def potentials(features):
    distances = groups.for_each(_lengths, groups.flat(features))
    distances = jnp.where(pairs, distances, 0.0)
    mean = jnp.sum(distances) / number
    return distances / jnp.where(mean > 0, mean, 1.0)

  error = _huber(potentials(student) - potentials(teacher))
  return groups.mean_of_groups(error, pairs, real, size=2)


@register.register_loss(
    on='features', example=_EXAMPLE, relational=True, any_width=True)
def relational_angle(student: jax.Array, teacher: jax.Array, *,
                     mask: jax.Array) -> base.LossSum:
  """Huber error of the angles that triples of a batch's examples form.

  For examples i, j and k, it compares the cosine of the angle at j. Angles are
  the same for features of any scale.

  Not additive over `B`: the batch is gathered as for `similarity_preserving`.
  Time grows with B³; memory with B², because large batches take the examples j
  one by one and again in the backward pass.

  Args:
    student: `[B, ..., D]` floating, flattened to one vector an example.
    teacher: `[B, ..., E]` floating.
    mask: bool, `[B]` or any leading axes of `student`, true where a position
      counts. Others are 0 in the vectors. An example without any is left out.

  Returns:
    A LossSum: the errors (unitless) summed over ordered triples of three
    examples, and the number b (b − 1) (b − 2) of these triples. Where two
    examples coincide, the angle's cosine is 0.

  Raises:
    ValueError: shapes differ in more than the width.

  References:
    Park et al., Relational Knowledge Distillation, arXiv:1904.05068, section
    3.2.2, with the mean over triples in place of the sum. The authors' code
    also averages over triples that hold an example twice.
  """
  real = groups.examples(mask)
  others = groups.pairs(real)

  def error_at(corner, student, teacher):
    angles = []
    for rows in (student, teacher):
      to_corner, _ = cosines.directions(rows - rows[corner])
      angles.append(groups.products(to_corner, to_corner))
    is_corner = jnp.arange(real.size) == corner
    keep = others & ~is_corner[:, None] & ~is_corner & real[corner]
    return jnp.sum(jnp.where(keep, _huber(angles[0] - angles[1]), 0.0))

  errors = groups.for_each(error_at, groups.flat(student), groups.flat(teacher))
  return groups.mean_of_groups(errors, real, real, size=3)


def _lengths(index: jax.Array, rows: jax.Array) -> jax.Array:
  """Returns the distances of all rows from one."""
  return cosines.lengths(rows - rows[index])


def _huber(error: jax.Array) -> jax.Array:
  small = jnp.clip(jnp.abs(error), max=1.0)
  return small * (jnp.abs(error) - small / 2)
