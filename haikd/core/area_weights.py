"""Weights that pool one size to another by area, where sizes do not divide."""

import numpy as np


def weights(size: int, out: int) -> np.ndarray:
  """Returns how much of each input every output takes.

  Neighbouring outputs take size / out inputs each. An input on the border of
  two outputs is shared between them, so that all inputs weigh the same.

  Args:
    size: the number of inputs.
    out: the number of outputs.

  Returns:
    float64, `[size, out]`; columns sum to 1.
  """
  # Each input is `out` long and each output `size`: all borders are integers.
  inputs, outputs = np.arange(size)[:, None] * out, np.arange(out) * size
  overlap = (
      np.minimum(inputs + out, outputs + size) - np.maximum(inputs, outputs))
  return np.maximum(overlap, 0) / size
