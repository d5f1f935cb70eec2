"""Losses on embeddings: the vectors that stand for whole texts."""

import jax
import jax.numpy as jnp

from haikd.core import base
from haikd.core import masking
from haikd.losses import cosines
from haikd.losses import divergences
from haikd.losses import register

_NEVER = -1e9  # Of a similarity, which the softmax makes 0 of.


@register.register_loss(
    on='embedding', example=dict(student=(2, 3, 5), mask=(2, 3)))
def embedding_cosine(student: jax.Array, teacher: jax.Array, *,
                     mask: jax.Array) -> base.LossSum:
  """Cosine distance between embeddings.

  It transfers the direction of each vector, which is all that a search by
  cosine similarity looks at, and not its length.

  Additive over `B`: the sums of two halves of a batch add up to its own.

  Args:
    student: `[B, D]`, or `[B, S, D]` for S texts an example, floating.
    teacher: like `student`.
    mask: bool, `[B]` or `[B, S]`, true where a text counts.

  Returns:
    A LossSum: 1 - cos (without unit, 0 to 2) summed over texts, and their
    number. A vector of zeros, which has no direction, adds 0 to the sum and to
    the gradient.

  Raises:
    ValueError: shapes do not agree.

  References:
    Sanh et al., DistilBERT, arXiv:1910.01108, section 2, the third loss, of
    whole texts in place of hidden states.
  """
  return masking.masked_mean(cosines.distance(student, teacher), mask)


@register.register_loss(
    on='embedding', example=dict(student=(2, 3, 5), mask=(2, 3)))
def embedding_matching(student: jax.Array, teacher: jax.Array, *,
                       mask: jax.Array) -> base.LossSum:
  """Mean squared error between embeddings.

  It transfers the vectors themselves, length included, so that the student's
  can be searched with the teacher's. Of vectors of length 1 it is 2/D times the
  cosine distance.

  Additive over `B`: the sums of two halves of a batch add up to its own.

  Args:
    student: `[B, D]`, or `[B, S, D]` for S texts an example, floating.
    teacher: like `student`.
    mask: bool, `[B]` or `[B, S]`, true where a text counts.

  Returns:
    A LossSum: the squared errors summed, and valid texts times D.

  Raises:
    ValueError: shapes do not agree.

  References:
    Reimers and Gurevych, Making Monolingual Sentence Embeddings Multilingual
    using Knowledge Distillation, arXiv:2004.09813, section 2, with the mean
    over features in place of the sum.
  """
  return masking.masked_mean(jnp.square(student - teacher), mask)


@register.register_loss(
    on='embedding',
    example=dict(student=(2, 3, 5), mask=(2, 3)),
    relational=True,
    any_width=True)
def similarity_distribution(student: jax.Array,
                            teacher: jax.Array,
                            *,
                            mask: jax.Array,
                            temperature: float = 0.05) -> base.LossSum:
  """Divergence of what a text resembles, among all texts of the batch.

  Each text is a query. Its cosine similarities with all other texts, divided by
  the temperature, go through a softmax, in either network among its own
  vectors; the loss is KL(p || q) of the teacher's distribution p from the
  student's q. It transfers which texts are near and not where they lie, so that
  the two may have different widths and need no alignment. Low temperatures look
  at the nearest neighbours alone.

  Relates the texts of a batch to one another, so it is not additive over `B`:
  the batch is gathered over all devices first. With microbatches the relations
  are those within each, of all devices.

  Args:
    student: `[B, D]`, or `[B, S, D]` for S texts an example, floating.
    teacher: `[B, E]` or `[B, S, E]`, likewise.
    mask: bool, `[B]` or `[B, S]`, true where a text counts. Others are neither
      queries nor keys.
    temperature: positive, without unit; both networks' cosines are divided by
      it.

  Returns:
    A LossSum: the divergences in nats summed over queries, and their number: 0
    unless two texts or more count.

  Raises:
    ValueError: `temperature` is not positive, or shapes but for the widths do
      not agree.

  References:
    Fang et al., SEED: Self-supervised Distillation for Visual Representation,
    arXiv:2101.04731, section 3.2, with the batch in place of the queue.
    SEED compares a student's vectors with the teacher's, which have to be as
    wide, and each with its own as well; here a text is no key of itself, where
    both networks would agree on 1 and the softmax see little else. Similarities
    of each network with its own vectors: Koohpayegani et al., CompRess,
    arXiv:2010.14713, section 3, with two queues.
  """
  if isinstance(temperature, (int, float)) and not temperature > 0:
    raise ValueError(
        'losses.similarity_distribution: temperature must be positive; got '
        f'temperature={temperature}. 0.05 looks at the nearest texts.')
  mask = jnp.broadcast_to(
      masking.expand(mask, student.ndim - 1), student.shape[:-1]).reshape(-1)
  other = mask & ~jnp.eye(mask.size, dtype=bool)

  def similarities(vectors):
    vectors, _ = cosines.directions(vectors.reshape(-1, vectors.shape[-1]))
    # Exact, since the temperature magnifies what is rounded off.
    cosine = jnp.matmul(
        vectors, vectors.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.where(other, cosine / temperature, _NEVER)

  rows = divergences.kl_rows(similarities(student), similarities(teacher))
  return masking.masked_mean(rows, mask & other.any(axis=-1))
