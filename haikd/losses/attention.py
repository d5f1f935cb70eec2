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
