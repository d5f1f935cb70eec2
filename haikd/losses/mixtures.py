"""Divergences from a mixture of the student's and the teacher's predictions."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import custom_derivatives
from jax import lax
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.losses import divergences
from haikd.losses import register

# Powers of the series of (1 + e) log(1 + e) - e, whose error is 1e-7 of the sum
# where |e| < _CLOSE.
_POWERS = range(10, 1, -1)
_CLOSE = 0.25
_TINY = np.finfo(np.float32).tiny


# What is compared with the mixture m: w_p KL(p || m) + w_q KL(q || m).
_BOTH, _TEACHER, _STUDENT = 'both', 'teacher', 'student'


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
    return _mixture_rows(_BOTH, student, teacher, beta)

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
  compared, share = (_STUDENT, 1 - skew) if reverse else (_TEACHER, skew)
  return divergences.softened(
      lambda student, teacher: _mixture_rows(compared, student, teacher, share),
      student, teacher, mask=mask, temperature=temperature)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _mixture_rows(compared: str, student: jax.Array, teacher: jax.Array,
                  share: jax.typing.ArrayLike) -> jax.Array:
  """Returns the divergence of each row of logits, `[...]` float32.

  Args:
    compared: what is compared with the mixture.
    student: `[..., V]` float32.
    teacher: likewise.
    share: of p in the mixture, above 0 and below 1; it gets no gradient.
  """
  return _compare(compared, student, teacher, share).rows


# The derivative with respect to q is w_q log(q/m) - (1 - share) bend d, up to a
# constant, which the softmax removes; that of p likewise.
@functools.partial(_mixture_rows.defjvp, symbolic_zeros=True)
def _mixture_rows_jvp(compared, primals, tangents):
  got, share = _compare(compared, *primals), primals[2]
  tangent = jnp.zeros_like(got.rows)
  for by, log, factor, direction in (
      (got.q, got.log_q, 1 - share, tangents[0]),
      (got.p, got.log_p, share, tangents[1])):
    if not isinstance(direction, custom_derivatives.SymbolicZero):
      slope = log
      if compared != _BOTH:
        slope -= factor * got.bend * got.difference
      slope -= jnp.sum(by * slope, axis=-1, keepdims=True)
      tangent += jnp.sum(by * slope * direction, axis=-1)
  return got.rows, tangent


class _Comparison(NamedTuple):
  """Rows of predictions, compared with their mixture.

  Attributes:
    rows: `[...]`, the divergences.
    p: `[..., V]`, the teacher's probabilities.
    q: likewise, the student's.
    log_p: w_p log(p/m), or 0.
    log_q: w_q log(q/m), or 0.
    difference: d = (q - p)/m.
    bend: (w_p p + w_q q)/m is w_p + w_q + bend d.
  """

  rows: jax.Array
  p: jax.Array
  q: jax.Array
  log_p: Any
  log_q: Any
  difference: jax.Array
  bend: Any


def _compare(compared, student, teacher, share):
  """Returns the _Comparison of rows of logits.

  As p/m is 1 - (1 - share) d, and q/m is 1 + share d, both divergences are sums
  of m f(p/m) or m f(q/m), with f(x) = x log x - x + 1, whose terms are never
  negative. Where d is small, f comes from its series: rounding errors then
  enter only squared.
  """
  (p, normaliser_p), (q, normaliser_q) = map(
      divergences.softmax, (teacher, student))
  mixed = share * p + (1 - share) * q
  # Below, a class adds nothing that float32 can hold.
  mixed = jnp.where(mixed > _TINY, mixed, 1.0)
  log_mixed = jnp.log(mixed)

  def log_ratio(probabilities, logits, normaliser):
    ratio = logits - normaliser[0] - normaliser[1] - log_mixed
    return jnp.where(probabilities > 0, ratio, 0.0)  # 0 log 0 = 0.

  difference, log_p, log_q = (q - p) / mixed, 0.0, 0.0
  # XLA would multiply by weights of 0.
  weight_p, weight_q, bend = {
      _BOTH: (share, 1 - share, 0.0), _TEACHER: (1.0, 0.0, share - 1),
      _STUDENT: (0.0, 1.0, share)}[compared]
  if compared != _STUDENT:
    log_p = weight_p * log_ratio(p, teacher, normaliser_p)
  if compared != _TEACHER:
    log_q = weight_q * log_ratio(q, student, normaliser_q)
  by_log = p * log_p + q * log_q
  if compared != _BOTH:
    by_log -= bend * (q - p)
  series = jnp.zeros_like(difference)
  for k in _POWERS:
    series = series * difference + (-1)**k / (k * (k - 1)) * (
        weight_p * (share - 1)**k + weight_q * share**k)
  by_series = mixed * jnp.square(difference) * series
  terms = jnp.where(jnp.abs(difference) < _CLOSE, by_series, by_log)
  return _Comparison(
      jnp.sum(terms, axis=-1), p, q, log_p, log_q, difference, bend)
