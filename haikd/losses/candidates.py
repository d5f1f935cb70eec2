"""Scores of a query's candidates: products of vectors, or MaxSim."""

import jax
from jax import lax
import jax.numpy as jnp

from haikd.core import masking
from haikd.losses import groups

EXCLUDED = -1e9  # A score whose softmax is 0.


def scores_of(vectors: jax.Array,
              mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the scores of each query's candidates, and which count.

  Args:
    vectors: `[B, S, D]`, or `[B, S, N, D]` for late interaction, floating.
    mask: bool, leading axes of `vectors`, true where a text or token counts.

  Returns:
    Float32 `[B, S - 1]`, 0 where a candidate or its query does not count; and
    bool likewise.
  """
  vectors = vectors.astype(jnp.float32)
  if vectors.ndim == 3:
    # Full precision, because dividing by a temperature magnifies rounding.
    scores = jnp.einsum('bd,bcd->bc', vectors[:, 0], vectors[:, 1:],
                        precision=lax.Precision.HIGHEST)
  else:
    tokens = jnp.broadcast_to(masking.expand(mask, 3), vectors.shape[:-1])
    scores = _maxsim(vectors, tokens)
  real = real_texts(vectors, mask)
  real = real[:, :1] & real[:, 1:]
  return jnp.where(real, scores, 0.0), real


def real_texts(vectors: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns which texts count, bool `[B, S]`.

  Args:
    vectors: as for `scores_of`.
    mask: as for `scores_of`.
  """
  if mask.ndim == 3:
    return mask.any(axis=-1)
  return jnp.broadcast_to(masking.expand(mask, 2), vectors.shape[:2])


def _maxsim(vectors, mask):
  """Returns the sum over the query's tokens of their largest products."""

  def score(vectors_of_one, mask_of_one):
    products = jnp.einsum('bnd,bmd->bnm', vectors[:, 0], vectors_of_one,
                          precision=lax.Precision.HIGHEST)
    products = jnp.where(mask_of_one[:, None], products, EXCLUDED)
    return jnp.sum(products.max(axis=-1), axis=-1, where=mask[:, 0])

  batch, texts, length, _ = vectors.shape
  if batch * (texts - 1) * length**2 <= groups.MOST_AT_ONCE:
    return jax.vmap(score, in_axes=1, out_axes=1)(vectors[:, 1:], mask[:, 1:])
  by_text = (jnp.moveaxis(x, 1, 0)[1:] for x in (vectors, mask))
  call = jax.checkpoint(lambda of_one: score(*of_one))
  return lax.map(call, tuple(by_text)).T
