"""Divergences from a mixture of the student's and the teacher's predictions."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import custom_derivatives
from jax import lax
import jax.numpy as jnp

from haikd.core import base
from haikd.losses import divergences
from haikd.losses import register

# Powers of the series of (1 + e) log(1 + e) - e, whose error is 1e-7 of the sum
# where |e| < _CLOSE.
_POWERS = range(10, 1, -1)
_CLOSE = 0.25


class _Mixture(NamedTuple):
  """w_p KL(p || m) + w_q KL(q || m), with m = share p + (1 - share) q.

  Attributes:
    share: of the teacher's p in the mixture, above 0 and below 1.
    weight_p: w_p.
    weight_q: w_q.
  """

  share: Any
  weight_p: Any
  weight_q: Any


@register.register_loss(
    on='logits', example=dict(student=(2, 3, 5), mask=(2, 3)), additive=True)
def jensen_shannon(student: jax.Array,
                   teacher: jax.Array,
                   *,
                   mask: jax.Array,
                   beta: float = 0.5,
                   temperature: float = 1.0) -> base.LossSum:
  """Generalised Jensen-Shannon divergence of the predictions, times T^2.

  With p the teacher's softmax, q the student's, both at temperature T, and m =
  beta p + (1 - beta) q, it is beta KL(p || m) + (1 - beta) KL(q || m). It is
  bounded, and goes from covering the teacher's classes to seeking its likely
  ones as beta grows. At beta = 0 it is KL(p || q), and at beta = 1 KL(q || p),
  by definition: the formula tends to 0 there, and divided by beta or 1 - beta
  to these. With l = log q - log m the gradient with respect to the student's
  logits is T (1 - beta) q (l - KL(q || m)).

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, V]` or `[B, N, V]` floating, logits in nats.
    teacher: like `student`.
    mask: bool, `[B]` or `[B, N]`, true where a position counts.
    beta: the teacher's share of the mixture, from 0 to 1. A scheduled one that
      leaves this range gives NaN.
    temperature: T, positive; the logits of both networks are divided by it.

  Returns:
    A LossSum: T^2 times the divergence in nats summed over positions, and their
    number.

  Raises:
    ValueError: `beta` is out of range, `temperature` is not positive, V is 1,
      or shapes differ.

  References:
    Agarwal et al., On-Policy Distillation of Language Models (GKD),
    arXiv:2306.13649, equation 1. TRL takes the same two limits.
  """
  def inside(student, teacher):
    return _mixture_rows(student, teacher, _Mixture(beta, beta, 1 - beta))

  def outside(student, teacher):
    del teacher
    return jnp.full_like(student[..., 0], jnp.nan)

  def reverse(student, teacher):
    return divergences.kl_rows(teacher, student)

  rows: Callable = inside
  if not isinstance(beta, (int, float)):  # It is scheduled.
    beta = lax.stop_gradient(beta)
    number = jnp.select([beta == 0, beta == 1, (0 < beta) & (beta < 1)],
                        [0, 1, 2], 3)
    rows = functools.partial(
        lax.switch, number, (divergences.kl_rows, reverse, inside, outside))
  elif not 0 <= beta <= 1:
    raise ValueError(f'beta must lie between 0 and 1; got {beta}. 0 is the '
                     'forward KL, 1 the reverse, 0.5 is symmetric.')
  elif beta in (0, 1):
    rows = reverse if beta else divergences.kl_rows
  return divergences.softened(
      rows, student, teacher, mask=mask, temperature=temperature)


@register.register_loss(
    on='logits', example=dict(student=(2, 3, 5), mask=(2, 3)), additive=True)
def skewed_kl(student: jax.Array,
              teacher: jax.Array,
              *,
              mask: jax.Array,
              skew: float = 0.1,
              reverse: bool = False,
              temperature: float = 1.0) -> base.LossSum:
  """Divergence from a mixture with a little of the other side, times T^2.

  With p the teacher's softmax and q the student's, both at temperature T, it is
  KL(p || skew p + (1 - skew) q), or with `reverse` KL(q || (1 - skew) p + skew
  q). A class that one side alone rules out no longer makes it infinite, and
  gradients are smaller and less noisy. As skew goes to 0, it tends to
  `kl_divergence` or `reverse_kl`.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, V]` or `[B, N, V]` floating, logits in nats.
    teacher: like `student`.
    mask: bool, `[B]` or `[B, N]`, true where a position counts.
    skew: alpha in the paper, above 0 and below 1: the share of p in the mixture
      that p is compared with, or of q in that of q. A scheduled one that leaves
      this range gives NaN.
    reverse: whether q is compared with the mixture, and not p.
    temperature: T, positive; the logits of both networks are divided by it.

  Returns:
    A LossSum: T^2 times the divergence in nats summed over positions, and their
    number.

  Raises:
    ValueError: `skew` is out of range, `temperature` is not positive, V is 1,
      or shapes differ.

  References:
    Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language
    Models, arXiv:2402.03898, section 3.1: SKL and SRKL, which it uses with an
    alpha of 0.1.
  """
  if isinstance(skew, (int, float)):
    if not 0 < skew < 1:
      raise ValueError(
          f'skew must be above 0 and below 1; got {skew}. For 0 use '
          'kl_divergence, or reverse_kl with reverse=True.')
  else:
    skew = lax.stop_gradient(
        jnp.where((0 < skew) & (skew < 1), skew, jnp.nan))
  mixture = _Mixture(1 - skew, 0.0, 1.0) if reverse else _Mixture(
      skew, 1.0, 0.0)
  return divergences.softened(
      lambda student, teacher: _mixture_rows(student, teacher, mixture),
      student, teacher, mask=mask, temperature=temperature)


@jax.custom_jvp
def _mixture_rows(student: jax.Array, teacher: jax.Array,
                  mixture: _Mixture) -> jax.Array:
  """Returns the divergence of each row of logits, `[...]` float32.

  Args:
    student: `[..., V]` float32.
    teacher: likewise.
    mixture: of scalars, which get no gradient.
  """
  return _compare(student, teacher, mixture)[0]


# The derivative with respect to q is w_q log(q/m) - (1 - share) (w_p p + w_q q)
# / m, up to a constant, which the softmax removes; that of p likewise.
@functools.partial(_mixture_rows.defjvp, symbolic_zeros=True)
def _mixture_rows_jvp(primals, tangents):
  mixture = primals[2]
  rows, p, q, ratio_p, ratio_q = _compare(*primals)
  weighted = mixture.weight_p * ratio_p + mixture.weight_q * ratio_q
  tangent = jnp.zeros_like(rows)
  for by, weight, ratio, share, direction in (
      (q, mixture.weight_q, ratio_q, 1 - mixture.share, tangents[0]),
      (p, mixture.weight_p, ratio_p, mixture.share, tangents[1])):
    if not isinstance(direction, custom_derivatives.SymbolicZero):
      slope = weight * _log(ratio) - share * weighted
      slope -= jnp.sum(by * slope, axis=-1, keepdims=True)
      tangent += jnp.sum(by * slope * direction, axis=-1)
  return rows, tangent


def _compare(student, teacher, mixture):
  """Returns the divergences, p, q, p/m and q/m.

  With d = (q - p)/m, p/m is 1 - (1 - share) d, and q/m is 1 + share d. Both
  divergences are sums of m f(p/m) or m f(q/m), with f(x) = x log x - x + 1,
  whose terms are never negative. Where d is small, f comes from its series:
  rounding errors then enter only squared.
  """
  (p, _), (q, _) = map(divergences.softmax, (teacher, student))
  share, weight_p, weight_q = mixture
  mixed = share * p + (1 - share) * q
  safe = jnp.where(mixed > 0, mixed, 1.0)
  ratio_p, ratio_q, difference = p / safe, q / safe, (q - p) / safe
  series = jnp.zeros_like(difference)
  for k in _POWERS:
    series = series * difference + (-1)**k / (k * (k - 1)) * (
        weight_p * (share - 1)**k + weight_q * share**k)
  by_series = mixed * jnp.square(difference) * series
  by_log = weight_p * p * _log(ratio_p) + weight_q * q * _log(ratio_q)
  by_log += (weight_p * (1 - share) - weight_q * share) * (q - p)
  terms = jnp.where(jnp.abs(difference) < _CLOSE, by_series, by_log)
  return jnp.sum(terms, axis=-1), p, q, ratio_p, ratio_q


def _log(ratio):
  """Returns log(ratio), and 0 where its product with the ratio is 0."""
  return jnp.log(jnp.where(ratio > 0, ratio, 1.0))
