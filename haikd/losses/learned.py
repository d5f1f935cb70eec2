"""Losses with parameters of their own, trained with the student."""

import haiku as hk
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import masking
from haikd.losses import cosines
from haikd.losses import groups
from haikd.losses import register


@register.register_loss(
    on='features', example=dict(student=(2, 3, 5), mask=(2, 3)),
    relational=True, any_width=True)
def contrastive(student: jax.Array, teacher: jax.Array, *, mask: jax.Array,
                data_size: int, size: int = 128,
                temperature: float = 0.07) -> base.LossSum:
  """Tells the teacher's features of an example from those of other examples.

  Two learned linear maps bring both networks' features to vectors of one size
  and of length 1, here s and t. The critic's belief that t_j is of the same
  example as s_i is

      h = e^(s·t/T) / (e^(s·t/T) + n/M)

  for n others in the batch and M examples in the data. The loss of example i is
  −log h(s_i, t_i) − Σ_{j≠i} log(1 − h(s_i, t_j)).

  Not additive over `B`: the batch is first gathered over all devices. With
  microbatches, the others are those of one microbatch of all devices.

  Args:
    student: `[B, ..., D]` floating; an example's vector is the mean over its
      positions.
    teacher: `[B, ..., E]` floating.
    mask: bool, `[B]` or any leading axes of `student` except the last, true
      where a position counts. An example without any is left out.
    data_size: M, the number of training examples, positive.
    size: of the vectors that are compared, positive.
    temperature: T, positive, unitless.

  Returns:
    A LossSum: the losses in nats summed over examples, and their number, which
    is 0 unless at least two examples count.

  Raises:
    ValueError: an option is not positive, or shapes differ in more than the
      width.

  References:
    Tian et al., Contrastive Representation Distillation, arXiv:1910.10699,
    equation 18, with the batch's other examples in place of a memory of the
    data. The authors' code also draws negatives of the student for each
    teacher's vector, and divides e^(s·t/T) by an estimate of its sum over the
    data.
  """
  options = dict(data_size=data_size, size=size, temperature=temperature)
  for name, value in options.items():
    if isinstance(value, (int, float)) and not value > 0:
      raise ValueError(f'{name} must be positive; got {value}.')
  places = jnp.broadcast_to(
      masking.expand(mask, student.ndim - 1), student.shape[:-1])
  places = places.reshape(len(mask), -1).sum(axis=-1)
  real = places > 0
  number_of_places = jnp.maximum(places, 1)[:, None]
  pairs, others = real[:, None] & real, groups.pairs(real)

  def embed(features, name):
    axes = tuple(range(1, features.ndim - 1))
    rows = features.sum(axis=axes) / number_of_places
    return cosines.directions(hk.Linear(size, name=name)(rows))[0]

  s, t = embed(student, 'student'), embed(teacher, 'teacher')
  products = jnp.matmul(s, t.T, precision=lax.Precision.HIGHEST)
  number = jnp.sum(real)
  prior = jnp.log(jnp.maximum(number - 1, 1) / data_size)
  logits = products / temperature - prior
  losses = jax.nn.softplus(jnp.where(others, logits, -logits))
  rows = jnp.sum(jnp.where(pairs, losses, 0.0), axis=-1)
  return masking.masked_mean(rows, real & (number > 1))


@register.register_loss(
    on='features', example=dict(student=(2, 3, 5), mask=(2, 3)),
    any_width=True)
def variational_information(student: jax.Array, teacher: jax.Array, *,
                            mask: jax.Array,
                            smallest: float = 1e-5) -> base.LossSum:
  """Negative log-likelihood of the teacher's features, given the student's.

  It bounds their mutual information from below. The likelihood is Gaussian: its
  mean is a learned linear map of the student's features, its variance is
  learned for each of the teacher's features, so that features which the student
  cannot predict weigh little. Without the constant log(2π)/2:

      log σ + (t − μ(s))² / (2 σ²),   σ² = log(1 + e^α) + smallest

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, ..., D]` floating.
    teacher: `[B, ..., E]` floating.
    mask: bool, `[B]` or any leading axes of `student` except the last, true
      where a position counts.
    smallest: the least variance, positive, in the teacher's units squared.

  Returns:
    A LossSum: the values in nats, summed over positions and the teacher's
    features, and their number. They may be negative.

  Raises:
    ValueError: `smallest` is not positive, or shapes differ in more than the
      width.

  References:
    Ahn et al., Variational Information Distillation for Knowledge Transfer,
    arXiv:1904.05835, with the mean in place of the sum, and a linear map in
    place of a network of three 1×1 convolutions. As in RepDistiller, σ² is 5 at
    first; in mdistiller it is not trained.
  """
  if isinstance(smallest, (int, float)) and not smallest > 0:
    raise ValueError(f'smallest must be positive; got {smallest}. Try 1e-5.')
  width = teacher.shape[-1]
  mean = hk.Linear(width, name='mean')(student)
  raw = hk.get_parameter(
      'variance', (width,),
      init=hk.initializers.Constant(float(np.log(np.expm1(5.0)))))
  variance = jax.nn.softplus(raw) + smallest
  values = (jnp.log(variance) + jnp.square(teacher - mean) / variance) / 2
  return masking.masked_mean(values, mask)
