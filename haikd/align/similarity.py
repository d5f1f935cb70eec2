"""How alike layers are, and which of two networks correspond."""

from collections.abc import Sequence

import numpy as np

from haikd.align import layers


def gram(rows: np.ndarray) -> np.ndarray:
  """Returns the inner products of rows less their mean, `[n, n]` float64."""
  centred = np.asarray(rows, np.float64) - np.mean(rows, 0, np.float64)
  return centred @ centred.T


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
    Kornblith et al., arXiv:1905.00414; the estimate is that of Song et al.,
    Feature Selection via Dependence Maximization, JMLR 13, equation 5.
  """
  firsts, seconds = ([_centred(x) for x in grams] for grams in (first, second))
  norms = [np.sqrt([_hsic(x, x) for x in grams]) for grams in (firsts, seconds)]
  values = np.array([[_hsic(x, y) for y in seconds] for x in firsts])
  with np.errstate(divide='ignore', invalid='ignore'):
    return values / np.outer(*norms)


def assign(similarity: np.ndarray, monotone: bool = True) -> layers.LayerPairs:
  """Returns the layer of the teacher that each layer of the student resembles.

  Of all assignments it is the one with the largest sum of similarities. No two
  layers of the student share one of the teacher, unless they are more.

  Args:
    similarity: `[S, L]`, of S layers of the student with L of the teacher; NaN
      for what cannot be told, which counts as 0.
    monotone: whether a later layer of the student has a later layer of the
      teacher.

  Returns:
    `((0, (teacher layer,)), …, (S - 1, (teacher layer,)))`.
  """
  solve = _in_order if monotone else _in_any_order
  chosen = solve(np.nan_to_num(np.asarray(similarity, np.float64), nan=0.0))
  return tuple((i, (int(j),)) for i, j in enumerate(chosen))


def _in_order(similarity):
  """Solves the monotone assignment by dynamic programming."""
  depth, teacher_depth = similarity.shape
  step = 1 if depth <= teacher_depth else 0  # Whether layers must differ.
  # best[j] is the largest sum of the rows so far that use layers below j.
  best = np.zeros(teacher_depth + 1)
  sums = []  # Of each row, by the layer that it uses.
  for row in similarity:
    sums.append(row + best[1 - step:teacher_depth + 1 - step])
    best = np.concatenate([[-np.inf], np.maximum.accumulate(sums[-1])])
  chosen, limit = [], teacher_depth
  for row in reversed(sums):
    chosen.append(int(np.argmax(row[:limit])))
    limit = chosen[-1] + 1 - step
  return chosen[::-1]


def _in_any_order(similarity):
  from scipy import optimize  # Slow to import.
  depth, teacher_depth = similarity.shape
  if depth > teacher_depth:  # Each for itself.
    return similarity.argmax(axis=1)
  return optimize.linear_sum_assignment(similarity, maximize=True)[1]


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
