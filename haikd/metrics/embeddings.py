"""Metrics of encoders, which return a vector for each text."""

from typing import Optional

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import masking
from haikd.losses import cosines
from haikd.metrics import means
from haikd.metrics import ranking


def measure(
    output: base.Embedding, target: Optional[base.Embedding], *,
    mask: jax.Array, labels: Optional[jax.Array]
) -> tuple[dict[str, base.LossSum], dict[str, jax.Array]]:
  """Compares vectors with a teacher's, and the vectors of an example's texts.

  Args:
    output: vectors `[B, D]`, or `[B, S, D]` for S texts an example; or with a
      vector for each token.
    target: the teacher's, or None.
    mask: bool, leading axes of the vectors, true where a text or token counts.
    labels: floating `[B]`, scores of how alike the two texts of an example are,
      in any unit; or `[B, S - 1]`, see `ranking`; other labels are ignored; or
      None.

  Returns:
    Sums: `cosine` with the teacher's vectors, if their width is the same.
    Columns, for pairs with scores: `similarity`, the cosine of the two texts;
    `score`; and `kept`, whether the example counts. For a query with candidates
    also what `ranking.measure` returns.
  """
  vectors = output.vectors
  sums: dict[str, base.LossSum] = {}
  columns: dict[str, jax.Array] = {}
  if target is not None and target.vectors.shape == vectors.shape:
    cosine = cosines.similarity(vectors, target.vectors)
    sums['cosine'] = masking.masked_mean(cosine, mask)
  are_pairs = vectors.ndim == 3 and vectors.shape[1] == 2 and (
      not isinstance(output, base.TokenEmbedding))
  if are_pairs and labels is not None and checks.are_scores(labels):
    columns = dict(
        similarity=cosines.similarity(vectors[:, 0], vectors[:, 1]),
        score=labels.astype(jnp.float32),
        kept=mask.all(axis=-1))
  if ranking.are_candidates(output):
    scores = None
    if labels is not None and checks.is_real(labels) and labels.shape == (
        vectors.shape[0], vectors.shape[1] - 1):
      scores = labels
    ranked, columns = ranking.measure(
        output, target, mask=mask, labels=scores)
    sums.update(ranked)
  return sums, columns


def finish(sums: dict[str, base.LossSum],
           columns: dict[str, np.ndarray]) -> dict[str, float]:
  """Returns the metrics of a split.

  Args:
    sums: as from `measure`, added up.
    columns: as from `measure`, for all examples of the split.

  Returns:
    The means; and for pairs with scores `spearman`, the correlation of the
    ranks of cosine and score, where equal values share their mean rank, and
    `pearson`, that of the values. For queries with candidates they are those of
    the margins of network and teacher. NaN if all values of one are equal.
  """
  values = means.finish(sums)
  if columns:
    from scipy import stats  # Slow to import.
    similarity, score = means.kept(columns, 'similarity', 'score')
    values['spearman'] = _correlation(
        stats.rankdata(similarity), stats.rankdata(score))
    values['pearson'] = _correlation(similarity, score)
  return values


def _correlation(first, second):
  if any(len(x) < 2 or np.ptp(x) == 0 for x in (first, second)):
    return float('nan')
  return float(np.corrcoef(first, second)[0, 1])
