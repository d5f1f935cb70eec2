"""Statistics of a report, from what `measures` has counted. NumPy."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Calibration(NamedTuple):
  """How sure a network is beside how often it is right.

  Attributes:
    confidence: `[K]`, the mean confidence of each bin; NaN for an empty bin.
    accuracy: `[K]`, the share of its values that are right.
    share: `[K]`, the share of all values that are in the bin.
    error: the expected calibration error, the mean over all values of the
      distance between the two in their bins.
  """

  confidence: np.ndarray
  accuracy: np.ndarray
  share: np.ndarray
  error: float


class Confusion(NamedTuple):
  """How often each network takes one class for another.

  Attributes:
    true: the class.
    predicted: the class that it is taken for.
    counts: `{network: number of examples}`, or the sum of their weights.
  """

  true: int
  predicted: int
  counts: dict[str, float]


def calibration(bins: np.ndarray) -> Calibration:
  """Returns the calibration of a network.

  Args:
    bins: `[K, 3]`: the count of each bin, the sum of confidence, that of hits.

  References:
    Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599,
    equation 3.
  """
  count, confidence, hits = np.moveaxis(np.asarray(bins, np.float64), -1, 0)
  size = np.where(count > 0, count, np.nan)
  total = count.sum()
  error = np.abs(confidence - hits).sum() / total if total else np.nan
  share = count / max(total, 1)
  return Calibration(confidence / size, hits / size, share, float(error))


def class_accuracy(confusion: np.ndarray) -> np.ndarray:
  """Returns the share of each true class that is predicted right, `[V]`.

  Args:
    confusion: `[V, V]`, the number of examples by true and predicted class.

  Returns:
    NaN for a class without examples.
  """
  count = confusion.sum(axis=1)
  return np.diag(confusion) / np.where(count > 0, count, np.nan)


def differing_confusions(confusions: Mapping[str, np.ndarray],
                         limit: int) -> list[Confusion]:
  """Returns the confusions that differ most between networks.

  Args:
    confusions: `{network: [V, V]}`, the number of examples by true and
      predicted class.
    limit: the most to return.

  Returns:
    Confusions by their largest difference between two networks, the largest
    first; none that all networks have equally often.
  """
  stacked = np.stack(list(confusions.values()))
  spread = np.ptp(stacked, axis=0)
  np.fill_diagonal(spread, 0)
  order = np.argsort(-spread, axis=None, kind='stable')[:limit]
  cells = zip(*np.unravel_index(order, spread.shape))
  return [
      Confusion(int(true), int(predicted), {
          name: float(matrix[true, predicted])
          for name, matrix in confusions.items()})
      for true, predicted in cells if spread[true, predicted] > 0]
