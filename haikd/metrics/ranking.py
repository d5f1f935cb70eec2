"""How a network ranks the candidates of a query."""

from typing import Optional

import jax
import jax.numpy as jnp

from haikd.core import base
from haikd.core import masking
from haikd.losses import candidates


def measure(
    output: base.Embedding, target: Optional[base.Embedding], *,
    mask: jax.Array, labels: Optional[jax.Array]
) -> tuple[dict[str, base.LossSum], dict[str, jax.Array]]:
  """Ranks the positive, and compares scores with a teacher's.

  Args:
    output: vectors of a query, its positive and negatives, as `are_candidates`
      tells.
    target: the teacher's, or None.
    mask: bool, leading axes of the vectors, true where a text or token counts.
    labels: floating `[B, S - 1]`, a teacher's scores, which then take the place
      of the target's; or None.

  Returns:
    Sums: `mrr`, the reciprocal rank of the positive, over queries with a
    negative; `pair_order`, over pairs of candidates to which the teacher gives
    different scores, whether the network orders them alike. Equal scores count
    half. Columns: `similarity` and `score`, the margins of network and teacher,
    the positive's score less each negative's; and `kept`, whether they count.
  """
  scores, real = candidates.scores_of(output.vectors, mask)
  margins = scores[:, :1] - scores[:, 1:]
  negatives = real[:, :1] & real[:, 1:]
  behind = jnp.sum(_is_wrong(margins), axis=-1, where=negatives)
  sums = dict(mrr=masking.masked_mean(
      1.0 / (1.0 + behind), negatives.any(axis=-1)))
  if labels is not None:
    targets = jnp.where(real, labels.astype(jnp.float32), 0.0)
  elif target is not None:
    targets, _ = candidates.scores_of(target.vectors, mask)
  else:
    return sums, {}
  ours, theirs = (x[:, :, None] - x[:, None, :] for x in (scores, targets))
  pairs = real[:, :, None] & real[:, None, :] & (theirs > 0)
  sums['pair_order'] = masking.masked_mean(1.0 - _is_wrong(ours), pairs)
  return sums, dict(similarity=margins, score=targets[:, :1] - targets[:, 1:],
                    kept=negatives)


def are_candidates(output: base.Embedding) -> bool:
  """Returns whether an example has a query, a positive and negatives."""
  shape = output.vectors.shape
  tokens = isinstance(output, base.TokenEmbedding)
  return len(shape) == 3 + tokens and shape[1] > 2


def _is_wrong(margins):
  """Returns 1 for a negative margin, and half for none."""
  return jnp.where(margins < 0, 1.0, jnp.where(margins > 0, 0.0, 0.5))
