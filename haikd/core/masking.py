"""Masked sums that no masked value can reach, not even NaN.

A `where` on the result is not enough: the derivative of the value that it hides
is still computed, and 0 x NaN is NaN. The inputs are therefore masked as well,
before any arithmetic.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from haikd.core import base
from haikd.core import checks


def expand(mask: jax.Array, rank: int) -> jax.Array:
  """Returns `mask` with trailing axes of size 1 up to `rank`."""
  return mask.reshape(mask.shape + (1,) * (rank - mask.ndim))


def clean(array: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns `array` with zeros where `mask` is false.

  Args:
    array: `[..., *rest]` of any dtype.
    mask: bool, `[...]`, the leading axes of `array`.

  Returns:
    An array like `array`. Neither its values nor the gradient with respect to
    `array` depend on masked values.
  """
  return jnp.where(expand(mask, array.ndim), array, jnp.zeros((), array.dtype))


def materialise(value: Any, mask: jax.Array) -> Any:
  """Computes lazy logits or maps from inputs that are 0 in padding.

  Padding must not reach the gradient of what it is multiplied with: the kernel,
  or the keys that a query attends to.

  Args:
    value: LinearLogits, QueryKey, or an array.
    mask: bool, `[B]` or `[B, N]`, true where a position counts. If `value` has
      another number of positions, only examples without any position that
      counts are set to 0.

  Returns:
    An array: logits `[B, ..., V]` or maps `[B, H, N, M]`. A `value` that is an
    array is returned unchanged.
  """
  if isinstance(value, base.LinearLogits):
    return value._replace(hidden=_cleaned(value.hidden, mask)).materialise()
  if isinstance(value, base.QueryKey):
    return clean_query_key(value, mask).materialise()
  return value


def clean_query_key(value: base.QueryKey, mask: jax.Array) -> base.QueryKey:
  """Returns `value` with zeros in padding; arguments as for `materialise`."""
  return value._replace(
      query=_cleaned(value.query, mask), key=_cleaned(value.key, mask))


def _cleaned(array, mask):
  if array.shape[:mask.ndim] == mask.shape:
    return clean(array, mask)
  has_position = mask.any(axis=tuple(range(1, mask.ndim)))
  return clean(array, has_position)


def masked_mean(values: jax.Array, mask: jax.Array) -> base.LossSum:
  """Sums the values that a mask keeps and counts them.

  Additive over `B`: the sums of two halves of a batch add up to the batch's.

  Args:
    values: `[..., *rest]` floating or integer.
    mask: bool, `[...]`, the leading axes of `values`; broadcast over `rest`.

  Returns:
    A LossSum: the sum in float32 of the values where `mask` is true, and the
    number of these values; every value along `rest` counts as one.

  Raises:
    TypeError: `mask` is not boolean.
    ValueError: the shape of `mask` does not begin the shape of `values`.
  """
  checks.check_mask(mask)
  checks.check_leading('values', values, mask)
  # An integer count is exact; a float32 sum of ones stops at 2^24.
  count = jnp.sum(mask, dtype=jnp.int32).astype(jnp.float32)
  count *= math.prod(values.shape[mask.ndim:])
  total = jnp.sum(clean(values, mask), dtype=jnp.float32)
  return base.LossSum(total, count)
