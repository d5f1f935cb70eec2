"""Statistics of a report, from what `measures` has counted. NumPy."""

from collections.abc import Mapping, Sequence
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


def cka(first: Sequence[np.ndarray],
        second: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the linear CKA of layers, without the bias of few examples.

  With n examples of D > n features, the plain estimate is close to 1 for
  unrelated states. The estimate of HSIC used here has mean 0 for these.

  Args:
    first: a Gram matrix `[n, n]` a layer, inner products of all examples.
    second: those of other layers, for the same examples.

  Returns:
    `[len(first), len(second)]`, 1 for states that agree up to rotation, scale
    and shift. NaN with fewer than 4 examples, and for constant states.

  References:
    Kornblith et al., arXiv:1905.00414, equation 4; the estimate is that of Song
    et al., Feature Selection via Dependence Maximization, JMLR 13, equation 5.
  """
  firsts, seconds = ([_centred(x) for x in grams] for grams in (first, second))
  norms = [np.sqrt([_hsic(x, x) for x in grams]) for grams in (firsts, seconds)]
  values = np.array([[_hsic(x, y) for y in seconds] for x in firsts])
  with np.errstate(divide='ignore', invalid='ignore'):
    return values / np.outer(*norms)


def _hsic(first, second):
  """Returns the unbiased HSIC of two matrices from `_centred`."""
  n = len(first)
  if n < 4:
    return np.nan
  return np.sum(first * second) / (n * (n - 3))


def _centred(gram):
  """Returns a Gram matrix U-centred: rows and columns sum to 0 off diagonal.

  The inner product of two such matrices is n (n - 3) times the unbiased HSIC.
  """
  gram = np.array(gram, np.float64)
  n = len(gram)
  if n < 4:
    return gram
  np.fill_diagonal(gram, 0)
  means = gram.sum(axis=0) / (n - 2)
  gram -= means[None]
  gram -= means[:, None]
  gram += means.sum() / (n - 1)
  np.fill_diagonal(gram, 0)
  return gram
