"""Metrics of encoders, which give a vector for each text."""

from typing import Optional

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import masking
from haikd.losses import cosines
from haikd.metrics import means


def measure(
    output: base.Embedding, target: Optional[base.Embedding], *,
    mask: jax.Array, labels: Optional[jax.Array]
) -> tuple[dict[str, base.LossSum], dict[str, jax.Array]]:
  """Compares vectors with a teacher's, and those of a pair with one another.

  Args:
    output: vectors `[B, D]`, or `[B, S, D]` for S texts an example.
    target: the teacher's, or None; of another width, it is not compared with.
    mask: bool, `[B]` or `[B, S]`, true where a text counts.
    labels: floating `[B]`, how alike the two texts of an example are, in any
      unit; others, and None, are not looked at.

  Returns:
    Sums: `cosine` to the teacher's vectors. Columns, of pairs with scores:
    `similarity`, the cosine of the two texts, `score`, and `kept`, whether the
    example counts.
  """
  vectors = output.vectors
  sums, columns = {}, {}
  if target is not None and target.vectors.shape == vectors.shape:
    cosine = cosines.similarity(vectors, target.vectors)
    sums['cosine'] = masking.masked_mean(cosine, mask)
  pairs = vectors.ndim == 3 and vectors.shape[1] == 2
  if pairs and labels is not None and checks.are_scores(labels):
    columns = dict(
        similarity=cosines.similarity(vectors[:, 0], vectors[:, 1]),
        score=labels.astype(jnp.float32),
        kept=mask.all(axis=-1))
  return sums, columns


def finish(sums: dict[str, base.LossSum],
           columns: dict[str, np.ndarray]) -> dict[str, float]:
  """Returns the metrics of a split.

  Args:
    sums: as from `measure`, added up.
    columns: as from `measure`, of the whole split.

  Returns:
    `cosine` and, of pairs with scores, `spearman`, the correlation of the ranks
    of cosine and score, in which equal values share their mean rank, and
    `pearson`, that of the values. NaN where either side has only one value.
  """
  found = means.finish(sums)
  if columns:
    from scipy import stats  # Slow to import.
    similarity, score = (
        columns[name][columns['kept']].astype(np.float64)
        for name in ('similarity', 'score'))
    found['spearman'] = _correlation(
        stats.rankdata(similarity), stats.rankdata(score))
    found['pearson'] = _correlation(similarity, score)
  return found


def _correlation(first, second):
  if any(len(x) < 2 or np.ptp(x) == 0 for x in (first, second)):
    return float('nan')
  return float(np.corrcoef(first, second)[0, 1])
