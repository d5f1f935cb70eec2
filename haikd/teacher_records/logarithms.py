"""Probabilities in 8 or 16 bits: their logarithms on an even grid.

A probability p has the code -log(p) / step. The last code is that of a
probability of 0. With 8 bits the step is 1/16 nat and the range 16 nats; with
16 bits it is 1/2048 nat and 32 nats.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

STEPS = {8: 2.0**-4, 16: 2.0**-11}  # In nats, by the number of bits.
DTYPES: dict[int, np.dtype] = {8: np.dtype('<u1'), 16: np.dtype('<u2')}


def last_code(bits: int) -> int:
  """Returns the code of a probability of 0."""
  return 2**bits - 1


def below(log_probs: Any, bits: int) -> Any:
  """Returns the codes of the next probabilities that are not larger.

  Args:
    log_probs: floating JAX array.
    bits: 8 or 16.

  Returns:
    int32, shaped like `log_probs`.
  """
  return _codes(jnp.ceil(-log_probs / STEPS[bits]), bits)


def nearest(log_probs: Any, bits: int) -> Any:
  """Returns the codes of the nearest log-probabilities; as for `below`."""
  return _codes(jnp.round(-log_probs / STEPS[bits]), bits)


def _codes(codes, bits):
  # Infinity does not fit an integer.
  return jnp.clip(codes, 0, last_code(bits)).astype(jnp.int32)


def decode(codes: Any, bits: int, xp: Any = np) -> Any:
  """Returns log-probabilities.

  Args:
    codes: integers.
    bits: 8 or 16.
    xp: NumPy or jax.numpy.

  Returns:
    float32, -inf for the last code.
  """
  logs = codes.astype(np.float32) * np.float32(-STEPS[bits])
  return xp.where(codes == last_code(bits), np.float32(-np.inf), logs)
