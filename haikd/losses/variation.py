"""Absolute differences of probabilities, class by class or sorted."""

import functools

import jax
from jax import custom_derivatives
from jax import lax
import jax.numpy as jnp

from haikd.core import base
from haikd.losses import divergences
from haikd.losses import register


@register.register_loss(
    on='logits', example=dict(student=(2, 3, 5), mask=(2, 3)), additive=True)
def total_variation(student: jax.Array,
                    teacher: jax.Array,
                    *,
                    mask: jax.Array,
                    temperature: float = 1.0) -> base.LossSum:
  """Half the sum of the absolute differences of probabilities, times T^2.

  With p the teacher's softmax and q the student's, both at temperature T, it is
  1/2 sum |p - q|, from 0 to 1. At T = 1 it is the probability that speculative
  decoding rejects a token drawn from the student. The gradient with respect to
  the student's logits is T q (s - sum q s), s = 1/2 sign(q - p). It shrinks
  with 1/T only, so that the factor T^2, which all losses at a temperature have,
  gives it more weight at a higher T.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, V]` or `[B, N, V]` floating, logits in nats.
    teacher: like `student`.
    mask: bool, `[B]` or `[B, N]`, true where a position counts.
    temperature: T, positive; the logits of both networks are divided by it.

  Returns:
    A LossSum: T^2 times the distance summed over positions, and their number.
    The derivative of a difference of 0 is 0.

  Raises:
    ValueError: `temperature` is not positive, V is 1, or shapes differ.

  References:
    Leviathan et al., Fast Inference from Transformers via Speculative Decoding,
    arXiv:2211.17192, definition 3.2 and lemma 3.3; as a loss: Zhou et al.,
    DistillSpec, arXiv:2310.08461.
  """
  return divergences.softened(
      _variation_rows, student, teacher, mask=mask, temperature=temperature)


@register.register_loss(
    on='logits',
    example=dict(student=(2, 3, 5), teacher=(2, 3, 7), mask=(2, 3)),
    any_width=True,
    additive=True)
def universal_logit(student: jax.Array,
                    teacher: jax.Array,
                    *,
                    mask: jax.Array,
                    temperature: float = 1.0) -> base.LossSum:
  """Distance of the sorted probabilities of any two vocabularies, times T^2.

  Both softmaxes at temperature T are sorted, the shorter one is padded with
  zeros, and absolute differences are summed: the cost of moving one onto the
  other where every move between classes costs the same. It transfers how sure
  the teacher is and not of what, so it needs a loss on labels beside it. Both
  networks must have the same positions; only their vocabularies may differ.
  The gradient is that of `total_variation` at twice the weight, class for class
  in order of rank.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, V]` or `[B, N, V]` floating, logits in nats.
    teacher: like `student`, but for V.
    mask: bool, `[B]` or `[B, N]`, true where a position counts.
    temperature: T, positive; the logits of both networks are divided by it.

  Returns:
    A LossSum: T^2 times the distance, from 0 to 2, summed over positions, and
    their number. The derivative of a difference of 0 is 0.

  Raises:
    ValueError: `temperature` is not positive, V is 1, or shapes differ in more
      than V.

  References:
    Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit
    Distillation Loss for LLMs, arXiv:2402.12030. It pairs positions of two
    tokenizers by their number; haikd refuses such a pair. The authors' code has
    a temperature for each network, and no factor T^2.
  """
  divergences.check_classes(teacher)
  return divergences.softened(
      _universal_rows, student, teacher, mask=mask, temperature=temperature)


@jax.custom_jvp
def _variation_rows(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Returns half the sum of |p - q| of each row of logits, `[...]` float32."""
  q, p = (divergences.softmax(x)[0] for x in (student, teacher))
  return 0.5 * jnp.sum(jnp.abs(q - p), axis=-1)


@functools.partial(_variation_rows.defjvp, symbolic_zeros=True)
def _variation_rows_jvp(primals, tangents):
  q, p = (divergences.softmax(x)[0] for x in primals)
  rows = 0.5 * jnp.sum(jnp.abs(q - p), axis=-1)
  sign = 0.5 * jnp.sign(q - p)
  tangent = jnp.zeros_like(rows)
  for by, slope, direction in ((q, sign, tangents[0]),
                               (p, -sign, tangents[1])):
    if not isinstance(direction, custom_derivatives.SymbolicZero):
      tangent += _through_softmax(by, slope, direction)
  return rows, tangent


@jax.custom_jvp
def _universal_rows(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Returns the sum of |p - q|, each sorted, of each row: `[...]` float32."""
  q, p = (-jnp.sort(-divergences.softmax(x)[0], axis=-1)
          for x in (student, teacher))
  return jnp.sum(jnp.abs(_less(q, p)), axis=-1)


@functools.partial(_universal_rows.defjvp, symbolic_zeros=True)
def _universal_rows_jvp(primals, tangents):
  wanted = [not isinstance(x, custom_derivatives.SymbolicZero)
            for x in tangents]
  sides = [divergences.softmax(x)[0] for x in primals]
  (q, order_q), (p, order_p) = map(_sort, sides, wanted)
  difference = _less(q, p)
  tangent = jnp.zeros_like(difference[..., 0])
  for by, order, sign, direction, want in zip(
      sides, (order_q, order_p), (1.0, -1.0), tangents, wanted):
    if want:
      slope = sign * jnp.sign(difference)[..., :by.shape[-1]]
      slope = jnp.put_along_axis(
          jnp.zeros_like(by), order, slope, axis=-1, inplace=False)
      tangent += _through_softmax(by, slope, direction)
  return jnp.sum(jnp.abs(difference), axis=-1), tangent


def _sort(values, with_order):
  """Returns values, the largest first; and where each stood, or None."""
  if not with_order:
    return -jnp.sort(-values, axis=-1), None
  numbers = lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
  values, order = lax.sort((-values, numbers), num_keys=1)
  return -values, order


def _less(first, second):
  """Returns first - second, the shorter one padded with zeros."""
  size = max(first.shape[-1], second.shape[-1])
  first, second = (
      jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])
      for x in (first, second))
  return first - second


def _through_softmax(probabilities, slope, direction):
  """Returns the change of a loss, whose derivative is slope, with logits."""
  slope -= jnp.sum(probabilities * slope, axis=-1, keepdims=True)
  return jnp.sum(probabilities * slope * direction, axis=-1)
