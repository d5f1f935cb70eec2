"""How two results of a loss differ, in words."""

from collections.abc import Sequence
from typing import Optional

import jax
import numpy as np

from haikd.testing import cases


def first(got: cases.Measured, expected: cases.Measured, *,
          exact: bool = False, rtol: float = 1e-5, atol: float = 1e-6,
          sides: Sequence[str] = ('student', 'teacher')) -> Optional[str]:
  """Returns the first difference of two results as text; None without one.

  Args:
    got: what a loss gave.
    expected: what it should give.
    exact: whether every bit counts.
    rtol: else how much may differ, relative to what is expected.
    atol: and relative to the largest that is expected, if that is above 1.
    sides: what the gradients are with respect to.
  """
  for name in ('total', 'count'):
    value, wanted = (float(getattr(x, name)) for x in (got, expected))
    if not _agree(value, wanted, exact, rtol, atol):
      return f'{name} {value:.8g} instead of {wanted:.8g}'
  # There are none where only sums are compared.
  for side, *both in zip(sides, got.gradients, expected.gradients):
    for value, wanted in zip(*map(jax.tree.leaves, both)):  # Of each tap.
      if not _agree(value, wanted, exact, rtol, atol):
        off = float(np.max(np.abs(np.asarray(value, np.float64) -
                                  np.asarray(wanted, np.float64))))
        return f'a gradient of the {side} that is off by {off:.3g}'
  return None


def _agree(value, wanted, exact, rtol, atol):
  value, wanted = np.asarray(value), np.asarray(wanted)
  if exact:
    return np.array_equal(value, wanted)
  scale = max(1.0, float(np.max(np.abs(wanted), initial=0.0)))
  return np.allclose(value, wanted, rtol, atol * scale)
