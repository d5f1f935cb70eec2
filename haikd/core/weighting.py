"""Sums over examples, each times its weight.

Every loss that does not relate examples, and every metric that is a sum, is one
over examples. So it is computed for each example by itself, and its total and
its count are multiplied by the example's weight. No loss has to know of
weights, and an example of weight 2 is the same as two of weight 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def add_up(function: Callable[..., Any], weight: jax.Array, *rows: Any) -> Any:
  """Returns the sums that a function has for each row, times the row's weight.

  Args:
    function: `(*rows) -> sums`, a pytree of sums over the given rows.
    weight: float32 `[R]`.
    *rows: pytrees of arrays `[R, ...]`, or None.

  Returns:
    The sums over all rows.
  """
  each = jax.vmap(
      lambda *row: function(*jax.tree.map(lambda x: x[None], row)))(*rows)
  # A dot product would round its factors on some chips.
  return jax.tree.map(
      lambda x: jnp.sum(weight.reshape(-1, *(1,) * (x.ndim - 1)) * x, axis=0),
      each)
