"""Losses on embeddings, which have one vector for each text."""

import jax
import jax.numpy as jnp

from haikd.core import base
from haikd.core import masking
from haikd.losses import cosines
from haikd.losses import divergences
from haikd.losses import register

_EXCLUDED = -1e9  # A similarity whose softmax is 0.


@register.register_loss(
    on='embedding', example=dict(student=(2, 3, 5), mask=(2, 3)))
def embedding_cosine(student: jax.Array, teacher: jax.Array, *,
                     mask: jax.Array) -> base.LossSum:
  """Cosine distance between embeddings.

  It transfers the direction of each vector and not its length. A search by
  cosine similarity uses directions only.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, D]`, or `[B, S, D]` for S texts an example, floating.
    teacher: like `student`.
    mask: bool, `[B]` or `[B, S]`, true where a text counts.

  Returns:
    A LossSum: 1 - cos (unitless, 0 to 2) summed over texts, and their
    number. A vector of zeros, which has no direction, adds 0 to the sum and to
    the gradient.

  Raises:
    ValueError: shapes differ.

  References:
    Sanh et al., DistilBERT, arXiv:1910.01108, section 2, the third loss, with
    texts in place of hidden states.
  """
  return masking.masked_mean(cosines.distance(student, teacher), mask)


@register.register_loss(
    on='embedding', example=dict(student=(2, 3, 5), mask=(2, 3)))
def embedding_matching(student: jax.Array, teacher: jax.Array, *,
                       mask: jax.Array) -> base.LossSum:
  """Mean squared error between embeddings.

  It transfers the vectors themselves, length included, so the student's can be
  searched with the teacher's. For vectors of length 1 it is 2/D times the
  cosine distance.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, D]`, or `[B, S, D]` for S texts an example, floating.
    teacher: like `student`.
    mask: bool, `[B]` or `[B, S]`, true where a text counts.

  Returns:
    A LossSum: the sum of the squared errors, and valid texts times D.

  Raises:
    ValueError: shapes differ.

  References:
    Reimers and Gurevych, Making Monolingual Sentence Embeddings Multilingual
    using Knowledge Distillation, arXiv:2004.09813, with the mean over features
    of the authors' `MSELoss` in sentence-transformers.
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
  """Divergence between the networks' similarities of the texts in a batch.

  Each text is a query. Each network compares it with all other texts: a softmax
  of their cosine similarities divided by the temperature gives a distribution.
  The loss is KL(p || q) of the teacher's distribution p from the student's q.
  It transfers which texts are near each other and not where their vectors lie,
  so the networks may have different widths and need no alignment. A low
  temperature weighs only the nearest neighbours.

  It relates the texts of a batch to one another, so it is not additive over
  `B`: the batch is first gathered over all devices. With microbatches, texts
  are compared within one microbatch of all devices.

  Args:
    student: `[B, D]`, or `[B, S, D]` for S texts an example, floating.
    teacher: `[B, E]` or `[B, S, E]`, floating.
    mask: bool, `[B]` or `[B, S]`, true where a text counts. Other texts are
      neither queries nor keys.
    temperature: positive, unitless; both networks' cosines are divided by it.

  Returns:
    A LossSum: the divergences in nats summed over queries, and the number of
    queries, which is 0 unless at least two texts count.

  Raises:
    ValueError: `temperature` is not positive, or shapes differ in more than the
      width.

  References:
    Fang et al., SEED: Self-supervised Distillation for Visual Representation,
    arXiv:2101.04731, with the batch in place of the queue and one temperature
    in place of one for each network.
    SEED compares a student's vectors with the teacher's, which must have the
    same width, and each text with itself too. Here a text is not its own key:
    both similarities would be 1 and dominate the softmax. Similarities among
    one network's vectors: Koohpayegani et al., CompRess, arXiv:2010.14713,
    with two queues.
  """
  if isinstance(temperature, (int, float)) and not temperature > 0:
    raise ValueError(
        f'temperature must be positive; got {temperature}. The default, 0.05, '
        'weighs the nearest texts.')
  mask = jnp.broadcast_to(
      masking.expand(mask, student.ndim - 1), student.shape[:-1]).reshape(-1)
  other = mask & ~jnp.eye(mask.size, dtype=bool)

  def similarities(vectors):
    vectors, _ = cosines.directions(vectors.reshape(-1, vectors.shape[-1]))
    # Full precision, because dividing by the temperature magnifies rounding.
    cosine = jnp.matmul(
        vectors, vectors.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.where(other, cosine / temperature, _EXCLUDED)

  rows = divergences.kl_rows(similarities(student), similarities(teacher))
  return masking.masked_mean(rows, mask & other.any(axis=-1))
