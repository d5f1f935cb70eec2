"""Divergences from a mixture of the student's and the teacher's predictions."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple, Optional

import jax
from jax import custom_derivatives
from jax import lax
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.losses import divergences
from haikd.losses import register

# Coefficients of ((1 + e) log(1 + e) - e) / e^2, the highest power first. The
# error is 1e-7 where |e| < _CLOSE.
_SERIES = np.array([(-1)**k / (k * (k - 1)) for k in range(10, 1, -1)],
                   np.float32)
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
    arXiv:2306.13649, equation 1. TRL takes the same two limits, and leaves T^2
    out.
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
    Models, arXiv:2402.03898, SKL and SRKL, which it uses with an alpha of 0.1.
    The authors' code leaves the teacher's entropy out of SKL, which changes no
    gradient.
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
  return _compare(compared, student, teacher, share)[0]


# The derivative with respect to q is w_q log(q/m) - (1 - share) bend d, up to a
# constant, and (w_p p + w_q q)/m is bend d, up to another. The softmax takes
# off its mean, that of log(q/m) being KL(q || m). With respect to p likewise.
@functools.partial(_mixture_rows.defjvp, symbolic_zeros=True)
def _mixture_rows_jvp(compared, primals, tangents):
  rows, sides, difference = _compare(compared, *primals)
  share = primals[2]
  bend = {_BOTH: 0.0, _TEACHER: share - 1, _STUDENT: share}[compared]
  tangent = jnp.zeros_like(rows)
  for side, other_share, direction in zip(sides, (1 - share, share), tangents):
    if isinstance(direction, custom_derivatives.SymbolicZero):
      continue
    slope = 0.0
    if side.log_ratio is not None:
      slope += side.weight * (side.log_ratio - side.kl[..., None])
    if compared != _BOTH:
      mean = jnp.sum(side.softmax * difference, axis=-1, keepdims=True)
      slope -= other_share * bend * (difference - mean)
    tangent += jnp.sum(side.softmax * slope * direction, axis=-1)
  return rows, tangent


class _Side(NamedTuple):
  """The predictions of one network, beside their mixture with the other's.

  Attributes:
    softmax: `[..., V]`.
    weight: of its divergence, a scalar.
    log_ratio: `[..., V]`, log(softmax / m); None where it is not compared.
    kl: `[...]`, its divergence from m; None likewise.
  """

  softmax: jax.Array
  weight: Any = 0.0
  log_ratio: Optional[jax.Array] = None
  kl: Optional[jax.Array] = None


def _compare(compared, student, teacher, share):
  """Returns the divergences, the student's and the teacher's _Side, and d.

  With d = (q - p)/m, q/m is 1 + e for e = share d, and p/m for e = (share - 1)
  d. KL(q || m) is the sum of m f(1 + e), with f(x) = x log x - x + 1, whose
  terms are never negative. Where d is small, f comes from its series: rounding
  errors then enter only squared.
  """
  (p, normaliser_p), (q, normaliser_q) = map(
      divergences.softmax, (teacher, student))
  mixed = share * p + (1 - share) * q
  # Below, a class adds nothing that float32 can hold.
  mixed = jnp.where(mixed > _TINY, mixed, 1.0)
  log_mixed, difference = jnp.log(mixed), (q - p) / mixed

  def side(softmax, logits, normaliser, weight, factor):
    log_ratio = logits - normaliser[0] - normaliser[1] - log_mixed
    log_ratio = jnp.where(softmax > 0, log_ratio, 0.0)  # 0 log 0 = 0.
    excess = factor * difference
    by_series = mixed * jnp.square(excess) * jnp.polyval(_SERIES, excess)
    terms = jnp.where(jnp.abs(difference) < _CLOSE, by_series,
                      softmax * log_ratio - mixed * excess)
    return _Side(softmax, weight, log_ratio, jnp.sum(terms, axis=-1))

  sides = [_Side(q), _Side(p)]  # XLA would multiply by weights of 0.
  if compared != _TEACHER:
    weight = 1 - share if compared == _BOTH else 1.0
    sides[0] = side(q, student, normaliser_q, weight, share)
  if compared != _STUDENT:
    weight = share if compared == _BOTH else 1.0
    sides[1] = side(p, teacher, normaliser_p, weight, share - 1)
  rows = sum(x.weight * x.kl for x in sides if x.kl is not None)
  return rows, sides, difference
