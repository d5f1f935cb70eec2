"""Loops that avoid what XLA compiles badly."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from haikd.core import base


def scan_parts(function: Callable, carry: Any,
               parts: base.ArrayTree) -> tuple[Any, Any]:
  """Runs `lax.scan`, or just the function if there is only one part.

  XLA does not remove a loop that runs once, and on CPU a convolution inside a
  loop takes up to 16 times as long.

  Args:
    function: `(carry, part) -> (carry, output)`.
    carry: a pytree.
    parts: a pytree of arrays `[parts, ...]`.

  Returns:
    The last carry, and the stacked outputs.
  """
  length = jax.tree.leaves(parts)[0].shape[0]
  if length > 1:
    return lax.scan(function, carry, parts)
  carry, output = function(carry, jax.tree.map(lambda x: x[0], parts))
  return carry, jax.tree.map(lambda x: x[None], output)
