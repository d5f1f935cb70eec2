"""Divergences between the predictions of student and teacher."""

import functools
import math

import jax
from jax import custom_derivatives
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import masking
from haikd.losses import register

# Of (exp(-x) - 1 + x) / x^2, the highest power first: to 1e-8 where |x| < 1.
_SERIES = np.array([(-1)**k / math.factorial(k) for k in range(11, 1, -1)],
                   np.float32)


@register.register_loss(
    on='logits',
    example=dict(student=(2, 3, 5), mask=(2, 3)),
    additive=True)
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
  rows = kl_rows(student / temperature, teacher / temperature)
  return masking.masked_mean(temperature**2 * rows, mask)


@jax.custom_jvp
def kl_rows(student: jax.Array, teacher: jax.Array) -> jax.Array:
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
  return _compare(student, teacher)[0]


# Its derivative is q - p, which that of the formula above would find in a dozen
# passes over the classes.
@functools.partial(kl_rows.defjvp, symbolic_zeros=True)
def _kl_rows_jvp(primals, tangents):
  rows, p, q, ratio = _compare(*primals)
  student, teacher = tangents
  tangent = jnp.zeros_like(rows)
  if not isinstance(student, custom_derivatives.SymbolicZero):
    tangent += jnp.sum((q - p) * student, axis=-1)
  if not isinstance(teacher, custom_derivatives.SymbolicZero):
    tangent += jnp.sum(p * (ratio - rows[..., None]) * teacher, axis=-1)
  return rows, tangent


def softmax(
    logits: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """Returns the softmax of each row, and its normaliser.

  With one exponential in all, where `exp(log_softmax)` takes two, and with as
  few arrays over the classes as can be: their traffic is what costs time.

  Args:
    logits: `[..., V]` float32.

  Returns:
    An array like `logits`; and two `[..., 1]`, the largest logit and what is
    to be added to it, so that `exp(logits - sum of both)` is the softmax.
  """
  largest = jnp.max(logits, axis=-1, keepdims=True)
  powers = jnp.exp(logits - largest)
  total = jnp.sum(powers, axis=-1, keepdims=True)
  return powers / total, (largest, jnp.log(total))


def _compare(student, teacher):
  """Returns the divergences, p, q, and log(p/q)."""
  (p, normaliser_p), (q, normaliser_q) = map(softmax, (teacher, student))
  possible = p > 0  # Elsewhere 0 log 0 = 0, and -inf must not meet -inf.
  ratio = jnp.where(possible, teacher - student, 0.0)
  apart = sum(x - y for x, y in zip(normaliser_p, normaliser_q))
  ratio -= jnp.where(possible, apart, 0.0)
  # Where p and q are close, q/p - 1 + log(p/q) from its series: it is exact,
  # and faster than another exponential.
  near = possible & (jnp.abs(ratio) < 1.0)
  close = p * jnp.square(ratio) * jnp.polyval(_SERIES, ratio)
  terms = jnp.where(near, close, p * ratio + q - p)
  return jnp.sum(terms, axis=-1), p, q, ratio
