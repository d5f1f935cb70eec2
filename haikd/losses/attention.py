"""Losses on attention maps: what the networks attend to."""

import jax
import jax.numpy as jnp

from haikd.core import base
from haikd.core import masking
from haikd.losses import cosines
from haikd.losses import register


@register.register_loss(
    on='attention',
    example=dict(student=(2, 2, 3, 3), mask=(2, 3)),
    additive=True,
    by_head=True)
def attention_transfer(student: jax.Array, teacher: jax.Array, *,
                       mask: jax.Array) -> base.LossSum:
  """Cosine distance between the rows of two attention maps.

  It transfers what each query attends to. Scaling a row changes nothing. The
  distance 1 - cos is 0 for equal rows and 1 for rows that share no key.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, H, N, N]` floating; queries, then keys.
    teacher: like `student`.
    mask: bool, `[B]` or `[B, N]`, true where a position counts. Padded keys
      are removed from both maps, padded queries from the sum and the count.

  Returns:
    A LossSum: the distances (unitless, 0 to 2) summed over queries and heads,
    and their number. The count depends on `mask` alone. A query that attends to
    no valid key in one of the maps adds 0 to the sum and to the gradient.

  Raises:
    ValueError: shapes differ, or are not those of square maps.

  References:
    Zagoruyko and Komodakis, Paying More Attention to Attention,
    arXiv:1612.03928, equation 2, squared and row by row.
  """
  distance = cosines.distance(student, teacher)
  return masking.masked_mean(jnp.swapaxes(distance, 1, 2), mask)


@register.register_loss(
    on='attention',
    example=dict(student=(2, 2, 3, 3), mask=(2, 3)),
    additive=True,
    by_head=True)
def attention_kl(student: jax.Array, teacher: jax.Array, *,
                 mask: jax.Array) -> base.LossSum:
  """Divergence KL(p ‖ q) of the teacher's attention p from the student's q.

  It transfers how much each query attends to each key. Padded keys are removed
  and rows are divided by what is left, so they are distributions again.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, H, N, N]` floating; queries, then keys.
    teacher: like `student`.
    mask: bool, `[B]` or `[B, N]`, true where a position counts. Padded keys
      are removed from both maps, padded queries from the sum and the count.

  Returns:
    A LossSum: the divergences in nats summed over queries and heads, and their
    number. The count depends on `mask` alone. A query that attends to no valid
    key in one of the maps adds 0 to the sum and to the gradient. Where the
    student's attention has underflowed, it is cut off at 1e-37 and gets no
    gradient.

  Raises:
    ValueError: shapes differ, or are not those of square maps.

  References:
    Wang et al., MiniLM: Deep Self-Attention Distillation, arXiv:2002.10957,
    section 3.1, there for the last layer.
  """
  sums = [jnp.sum(x, axis=-1, keepdims=True) for x in (student, teacher)]
  both = (sums[0] > 0) & (sums[1] > 0)
  q, p = (jnp.where(both, x, 0.0) / jnp.where(both, total, 1.0)
          for x, total in zip((student, teacher), sums))
  # A factor of 0 would not stop the infinite logarithm of 0.
  log_p, log_q = (jnp.log(jnp.maximum(x, 1e-37)) for x in (p, q))
  rows = jnp.sum(jnp.where(p > 0, p * (log_p - log_q), 0.0), axis=-1)
  return masking.masked_mean(jnp.swapaxes(rows, 1, 2), mask)
