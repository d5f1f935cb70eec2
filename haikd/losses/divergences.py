"""Divergences between the predictions of student and teacher."""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
from jax import custom_derivatives
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import masking
from haikd.core import recorded
from haikd.losses import register

# Coefficients of (exp(-x) - 1 + x) / x^2, the highest power first. The error
# is 1e-8 where |x| < 1.
_SERIES = np.array([(-1)**k / math.factorial(k) for k in range(11, 1, -1)],
                   np.float32)


def sampled_kl(student: jax.Array, teacher: recorded.Sampled, *,
               mask: jax.Array, temperature: float = 1.0) -> base.LossSum:
  """Returns an unbiased estimate of `kl_divergence`, from records.

  A position has sum_v p'_v (-log q_v) - H, where p' is the estimate of the
  prediction p whose entropy H is. This is linear in p', whose expectation is p.
  A single position may be below 0. Its gradient with respect to the student's
  logits is T (q - p').

  Args:
    student: `[..., V]` float32.
    teacher: recorded at the same temperature.
    mask: bool, leading axes of the logits, true where a position counts.
    temperature: T.
  """
  def rows(student, teacher):
    return _sampled_rows(student, *teacher)

  return softened(rows, student, teacher, mask=mask, temperature=temperature)


@jax.custom_jvp
def _sampled_rows(student, ids, weights, entropy):
  """Returns the cross-entropies with an estimate, less its entropies."""
  return _compare_sampled(student, ids, weights, entropy)[0]


# The derivative is q less the estimate.
@_sampled_rows.defjvp
def _sampled_rows_jvp(primals, tangents):
  _, ids, weights, _ = primals
  rows, q = _compare_sampled(*primals)
  slope, at_ids = tangents[0], jnp.take_along_axis(tangents[0], ids, axis=-1)
  total = jnp.sum(weights, axis=-1)
  return rows, (total * jnp.sum(q * slope, axis=-1) -
                jnp.sum(weights * at_ids, axis=-1))


def _compare_sampled(student, ids, weights, entropy):
  """Returns what `_sampled_rows` does, and q."""
  q, normaliser = softmax(student)
  log_q = jnp.take_along_axis(student, ids, axis=-1) - sum(normaliser)
  cross = jnp.sum(jnp.where(weights > 0, weights * -log_q, 0.0), axis=-1)
  return cross - entropy, q


@register.register_loss(
    on='logits',
    example=dict(student=(2, 3, 5), mask=(2, 3)),
    additive=True,
    recorded={recorded.Sampled: sampled_kl})
def kl_divergence(student: jax.Array,
                  teacher: jax.Array,
                  *,
                  mask: jax.Array,
                  temperature: float = 1.0) -> base.LossSum:
  """Divergence of the student's predictions from the teacher's, times T^2.

  The forward KL(p || q) of the teacher's softmax p from the student's q, both
  at temperature T. It transfers how the teacher ranks the wrong classes; a
  higher T gives them more weight. The gradient shrinks with 1/T^2; the factor
  T^2 keeps its weight relative to a loss on labels when T changes.

  A class that the teacher rules out (a logit of -inf) contributes nothing,
  whatever the student's logit is. A class that only the student rules out makes
  the divergence infinite.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, V]` or `[B, N, V]` floating, logits in nats.
    teacher: like `student`.
    mask: bool, `[B]` or `[B, N]`, true where a position counts.
    temperature: T, positive; the logits of both networks are divided by it.

  Returns:
    A LossSum: T^2 KL in nats summed over positions, and their number.

  Raises:
    ValueError: `temperature` is not positive, V is 1, or shapes differ.

  References:
    Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network,
    arXiv:1503.02531, equation 1; for T^2, section 2.
  """
  return softened(
      kl_rows, student, teacher, mask=mask, temperature=temperature)


@register.register_loss(
    on='logits',
    example=dict(student=(2, 3, 5), mask=(2, 3)),
    additive=True)
def reverse_kl(student: jax.Array,
               teacher: jax.Array,
               *,
               mask: jax.Array,
               temperature: float = 1.0) -> base.LossSum:
  """Divergence of the teacher's predictions from the student's, times T^2.

  The reverse KL(q || p) of the student's softmax q from the teacher's p, both
  at temperature T. A student too small for all of the teacher's classes learns
  the likely ones, where the forward KL spreads it over all. With l = log q -
  log p, the gradient with respect to the student's logits is T q (l - KL).

  A class that the student rules out (a logit of -inf) contributes nothing. A
  class that only the teacher rules out makes the divergence infinite.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, V]` or `[B, N, V]` floating, logits in nats.
    teacher: like `student`.
    mask: bool, `[B]` or `[B, N]`, true where a position counts.
    temperature: T, positive; the logits of both networks are divided by it.

  Returns:
    A LossSum: T^2 KL in nats summed over positions, and their number.

  Raises:
    ValueError: `temperature` is not positive, V is 1, or shapes differ.

  References:
    Gu et al., MiniLLM: Knowledge Distillation of Large Language Models,
    arXiv:2306.08543, at each position of a given text. The paper takes it over
    texts that the student writes, by policy gradients.
  """
  return softened(
      lambda student, teacher: kl_rows(teacher, student), student, teacher,
      mask=mask, temperature=temperature)


def softened(rows: Callable[..., jax.Array], student: jax.Array, teacher: Any,
             *, mask: jax.Array, temperature: float) -> base.LossSum:
  """Returns a loss on predictions at temperature T, times T^2.

  Args:
    rows: `(student, teacher) -> [...]`, the loss of each row of logits.
    student: `[..., V]` float32.
    teacher: likewise; or records at temperature T.
    mask: bool, leading axes of the logits, true where a position counts.
    temperature: T, which the logits are divided by.

  Returns:
    The loss times T^2, summed over positions, and their number.

  Raises:
    ValueError: `temperature` is not positive, or V is 1.
  """
  check_temperature(temperature)
  check_classes(student)
  if not isinstance(teacher, recorded.TARGETS):  # These are softened already.
    teacher = teacher / temperature
  values = rows(student / temperature, teacher)
  return masking.masked_mean(temperature**2 * values, mask)


def check_temperature(temperature: float) -> None:
  """Raises ValueError unless a temperature is positive or scheduled."""
  if isinstance(temperature, (int, float)) and not temperature > 0:
    raise ValueError(f'temperature must be positive; got {temperature}. 1 '
                     'leaves logits as they are.')


def check_classes(logits: jax.Array) -> None:
  """Raises ValueError for a single class: its softmax is 1, whatever is learnt.

  Args:
    logits: `[..., V]`.
  """
  if logits.shape[-1] == 1:
    raise ValueError(
        'logits must have two classes or more, since a softmax over one is '
        f'always 1; got shape={logits.shape}. For a number to predict set '
        "config.task='regression', for a label that is true or not "
        "'multilabel'.")


@jax.custom_jvp
def kl_rows(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Returns KL(teacher || student) of each row of logits.

  Each class gives p log(p/q) + q - p. The q - p sum to 0. They make every term
  non-negative, and the rounding errors of the normalisers enter only squared.
  Otherwise the factor T^2 would magnify these errors beyond the divergence.

  Args:
    student: `[..., V]` float32.
    teacher: `[..., V]` float32.

  Returns:
    `[...]` float32.
  """
  return _compare(student, teacher)[0]


# The derivative is q - p. Differentiating the formula would take a dozen passes
# over the classes.
@functools.partial(kl_rows.defjvp, symbolic_zeros=True)
def _kl_rows_jvp(primals, tangents):
  rows, p, q, log_ratio = _compare(*primals)
  student, teacher = tangents
  tangent = jnp.zeros_like(rows)
  if not isinstance(student, custom_derivatives.SymbolicZero):
    tangent += jnp.sum((q - p) * student, axis=-1)
  if not isinstance(teacher, custom_derivatives.SymbolicZero):
    tangent += jnp.sum(p * (log_ratio - rows[..., None]) * teacher, axis=-1)
  return rows, tangent


def softmax(
    logits: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """Returns the softmax of each row, and its normaliser.

  It computes one exponential, where `exp(log_softmax)` takes two, and as few
  arrays over the classes as possible: their memory traffic takes the time.

  Args:
    logits: `[..., V]` float32.

  Returns:
    The softmax, an array like `logits`; and the normaliser, as two summands
    `[..., 1]`, the largest logit and the rest: `exp(logits - their sum)` is the
    softmax.
  """
  largest = jnp.max(logits, axis=-1, keepdims=True)
  powers = jnp.exp(logits - largest)
  total = jnp.sum(powers, axis=-1, keepdims=True)
  return powers / total, (largest, jnp.log(total))


def _compare(student, teacher):
  """Returns the divergences, p, q, and log(p/q)."""
  (p, normaliser_p), (q, normaliser_q) = map(softmax, (teacher, student))
  possible = p > 0  # Elsewhere 0 log 0 = 0, and -inf - -inf would be NaN.
  log_ratio = jnp.where(possible, teacher - student, 0.0)
  log_normalisers = sum(x - y for x, y in zip(normaliser_p, normaliser_q))
  log_ratio -= jnp.where(possible, log_normalisers, 0.0)
  # Where p and q are close, q/p - 1 + log(p/q) comes from its series, which is
  # exact, and faster than another exponential.
  is_close = possible & (jnp.abs(log_ratio) < 1.0)
  by_series = p * jnp.square(log_ratio) * jnp.polyval(_SERIES, log_ratio)
  terms = jnp.where(is_close, by_series, p * log_ratio + q - p)
  return jnp.sum(terms, axis=-1), p, q, log_ratio
