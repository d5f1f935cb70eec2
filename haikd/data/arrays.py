"""A data set in memory, from NumPy arrays."""

from collections.abc import Mapping
from typing import Any, Optional

import numpy as np

from haikd.core import checks


class Arrays:
  """A Source in memory, with one array for every key.

  Attributes:
    num_classes: V, or None.
    columns: `{key: array}`, `[size, ...]` each.
  """

  def __init__(self, columns: Mapping[str, Any], *,
               num_classes: Optional[int] = None):
    self.num_classes = num_classes
    self.columns = {key: np.asarray(value) for key, value in columns.items()}
    sizes = {key: len(value) for key, value in self.columns.items()}
    if len(set(sizes.values())) != 1:
      raise checks.DataError(
          'columns must have the same number of examples; got '
          f'{sizes or "no columns"}. Give every key one entry per example.')
    self._size = min(sizes.values())

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return {key: value[index] for key, value in self.columns.items()}
