"""Sizes that do not divide, brought to one another by area."""

import numpy as np


def weights(size: int, out: int) -> np.ndarray:
  """Returns how much of each input every output takes.

  Outputs side by side take size / out inputs each, those on a border in parts,
  so that all inputs weigh the same.

  Args:
    size: how many inputs there are.
    out: how many outputs.

  Returns:
    float64, `[size, out]`; columns sum to 1.
  """
  # Each input is `out` long and each output `size`, which keeps borders whole.
  inputs, outputs = np.arange(size)[:, None] * out, np.arange(out) * size
  overlap = (
      np.minimum(inputs + out, outputs + size) - np.maximum(inputs, outputs))
  return np.maximum(overlap, 0) / size
