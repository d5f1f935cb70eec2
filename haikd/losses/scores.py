"""Losses on the scores of a query's candidates.

An example has texts: a query, the text that answers it (the positive) and
others that do not (negatives). All texts after the query are its candidates. A
network's score of a candidate is the product of its vector and the query's, or
MaxSim where it has a vector for each token.
"""

from typing import Optional

import jax
import jax.numpy as jnp

from haikd.core import base
from haikd.core import masking
from haikd.losses import candidates
from haikd.losses import divergences
from haikd.losses import groups
from haikd.losses import register

_TEXTS = dict(student=(2, 4, 5), mask=(2, 4))


@register.register_loss(
    on='embedding', example=_TEXTS, any_width=True, scores=True)
def margin_mse(student: jax.Array,
               teacher: Optional[jax.Array] = None,
               *,
               mask: jax.Array,
               labels: Optional[jax.Array] = None,
               scale: float = 1.0) -> base.LossSum:
  """Squared error of how far the positive is ahead of each negative.

  The margin is the score of the positive less that of a negative. It transfers
  differences of scores and not where they lie, so the teacher may be of any
  kind: its scores are `labels`, or where the data has none, products of its
  vectors.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, S, D]` floating: the query, the positive and negatives.
    teacher: `[B, S, E]` floating; unused with labels.
    mask: bool, `[B]` or `[B, S]`, true where a text counts.
    labels: `[B, S - 1]` floating, the teacher's scores of the candidates, in
      any unit; or None.
    scale: what the student's margins are multiplied by, unitless. Vectors of
      length 1 have margins of at most 2, a cross-encoder often has larger ones.

  Returns:
    A LossSum: the squared errors in the unit of the teacher's scores, summed
    over pairs of positive and negative, and the number of these pairs.

  Raises:
    ValueError: `scale` is not positive, there is no negative, or shapes differ
      in more than the width.

  References:
    Hofstätter et al., Improving Efficient Neural Ranking Models with
    Cross-Architecture Knowledge Distillation, arXiv:2010.02666, Margin-MSE, for
    one negative; the mean over all where there are more.
  """
  if isinstance(scale, (int, float)) and not scale > 0:
    raise ValueError(f'scale must be positive; got {scale}. 1 leaves margins '
                     'as they are.')
  scores, targets, real = _compare(student, teacher, mask, labels, rank=3)
  margins = lambda x: x[:, :1] - x[:, 1:]
  error = jnp.square(scale * margins(scores) - margins(targets))
  return masking.masked_mean(error, real[:, :1] & real[:, 1:])


@register.register_loss(
    on='embedding', example=_TEXTS, any_width=True, scores=True)
def score_kl(student: jax.Array,
             teacher: Optional[jax.Array] = None,
             *,
             mask: jax.Array,
             labels: Optional[jax.Array] = None,
             temperature: float = 1.0,
             teacher_temperature: Optional[float] = None) -> base.LossSum:
  """Divergence of the softmaxed scores of each query's candidates, times T².

  KL(p || q) of the teacher's distribution p = softmax(t / T_t) over the
  candidates from the student's q = softmax(s / T). The teacher's scores are
  `labels`, or where the data has none, products of its vectors.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, S, D]` floating: the query, the positive and negatives.
    teacher: `[B, S, E]` floating; unused with labels.
    mask: bool, `[B]` or `[B, S]`, true where a text counts. Other candidates
      have no probability.
    labels: as for `margin_mse`.
    temperature: T, positive, in the unit of the student's scores. Vectors of
      length 1 need a low one, such as 0.05.
    teacher_temperature: T_t, positive, in the unit of the teacher's scores;
      None for T.

  Returns:
    A LossSum: T² KL in nats summed over queries with two candidates or more,
    and the number of these queries.

  Raises:
    ValueError: a temperature is not positive, there is no negative, or shapes
      differ in more than the width.

  References:
    Lin et al., Distilling Dense Representations for Ranking using
    Tightly-Coupled Teachers, arXiv:2010.11386, whose candidates are those of
    the batch; here, as in sentence-transformers, they are the query's own. T²,
    of the student's temperature, is Hinton et al.'s, arXiv:1503.02531.
  """
  return _listwise(
      _compare(student, teacher, mask, labels, rank=3), temperature,
      teacher_temperature)


@register.register_loss(
    on='token_embedding', example=dict(student=(2, 3, 4, 5), mask=(2, 3, 4)),
    any_width=True, scores=True)
def maxsim_kl(student: jax.Array,
              teacher: Optional[jax.Array] = None,
              *,
              mask: jax.Array,
              labels: Optional[jax.Array] = None,
              temperature: float = 1.0,
              teacher_temperature: Optional[float] = None) -> base.LossSum:
  """`score_kl` for late interaction: a text has a vector for each token.

  The score of a candidate is MaxSim: for each token of the query, the largest
  product with a token of the candidate, summed over the query's tokens.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.

  Args:
    student: `[B, S, N, D]` floating, the tokens of the query, of the positive
      and of negatives.
    teacher: `[B, S, N, E]` floating; unused with labels.
    mask: bool, any leading axes of `student` up to `[B, S, N]`, true where a
      token counts. A text counts if one of its tokens does.
    labels: as for `margin_mse`.
    temperature: as for `score_kl`; a score grows with the query's length.
    teacher_temperature: as for `score_kl`.

  Returns:
    As `score_kl`.

  Raises:
    ValueError: as `score_kl`.

  References:
    Santhanam et al., ColBERTv2, arXiv:2112.01488, section 3.2, with the scores
    of section 3.1. MaxSim is Khattab and Zaharia's, ColBERT, arXiv:2004.12832,
    equation 3; it takes vectors of length 1. The authors' code has T = 1;
    PyLate first scales both sides' scores of a query to 0 … 1.
  """
  return _listwise(
      _compare(student, teacher, mask, labels, rank=4), temperature,
      teacher_temperature)


@register.register_loss(on='embedding', example=_TEXTS, relational=True)
def info_nce(student: jax.Array,
             teacher: Optional[jax.Array] = None,
             *,
             mask: jax.Array,
             temperature: float = 0.05) -> base.LossSum:
  """Cross-entropy of the positive among all candidates of the batch.

  A query's candidates are the positives and negatives of all examples, so its
  own negatives are the hard ones. No teacher is needed. Another query's text
  that answers this one too counts as wrong: repeat no query in a batch.

  It relates the texts of a batch to one another, so it is not additive over
  `B`: the batch is first gathered over all devices. With microbatches, texts
  are compared within one microbatch of all devices.

  Args:
    student: `[B, S, D]` floating: the query, its positive and S - 2 negatives,
      of which there may be none.
    teacher: unused.
    mask: bool, `[B]` or `[B, S]`, true where a text counts. Other texts are
      neither queries nor candidates.
    temperature: positive, in the unit of the scores. The default suits vectors
      of length 1.

  Returns:
    A LossSum: the cross-entropies in nats summed over queries with a positive,
    and the number of these queries.

  Raises:
    ValueError: `temperature` is not positive, or there is no candidate.

  References:
    van den Oord et al., Representation Learning with Contrastive Predictive
    Coding, arXiv:1807.03748, equation 4; with negatives of the batch and hard
    ones, Karpukhin et al., Dense Passage Retrieval, arXiv:2004.04906, equation
    2 and section 3.2.
  """
  del teacher
  divergences.check_temperature(temperature)
  _check_texts(student, rank=3, fewest=2)
  real = candidates.real_texts(student, mask)
  texts = student[:, 1:].reshape(-1, student.shape[-1])
  products = groups.products(student[:, 0], texts) / temperature
  products = jnp.where(real[:, 1:].reshape(-1), products, candidates.EXCLUDED)
  first = jnp.arange(len(student)) * (student.shape[1] - 1)
  positive = jnp.take_along_axis(products, first[:, None], axis=1)[:, 0]
  values = jax.nn.logsumexp(products, axis=1) - positive
  return masking.masked_mean(values, real[:, 0] & real[:, 1])


def _compare(student, teacher, mask, labels, *, rank):
  """Returns the scores of student and teacher, and which candidates count."""
  _check_texts(student, rank=rank, fewest=3)
  scores, real = candidates.scores_of(student, mask)
  if labels is not None:
    if labels.shape != scores.shape:
      raise ValueError(
          'labels must be the scores of each candidate, [B, S - 1]; got '
          f'labels.shape={labels.shape}, where the vectors are '
          f'{student.shape}. The data set triples has them.')
    targets = jnp.where(real, labels.astype(jnp.float32), 0.0)
  elif teacher is not None:
    targets, _ = candidates.scores_of(teacher, mask)
  else:
    raise TypeError('labels or teacher must be given; got None for both. The '
                    "data must have a teacher's scores where there is none.")
  return scores, targets, real


def _listwise(compared, temperature, teacher_temperature):
  """Returns T² KL over the candidates of each query."""
  scores, targets, real = compared
  if teacher_temperature is None:
    teacher_temperature = temperature
  divergences.check_temperature(temperature)
  divergences.check_temperature(teacher_temperature)
  student, teacher = (
      jnp.where(real, x / t, candidates.EXCLUDED)
      for x, t in ((scores, temperature), (targets, teacher_temperature)))
  rows = divergences.kl_rows(student, teacher)
  return masking.masked_mean(temperature**2 * rows, real.sum(axis=-1) > 1)


def _check_texts(student, *, rank, fewest):
  """Raises ValueError unless vectors are those of a query and candidates."""
  if student.ndim != rank or student.shape[1] < fewest:
    axes = '[B, S, D]' if rank == 3 else '[B, S, N, D]'
    texts = 'a query and its positive' if fewest == 2 else (
        'a query, its positive and at least one negative')
    raise ValueError(
        f'student and teacher must be {axes} with {texts}; got student.shape='
        f'{student.shape}. The data set triples gives such texts.')
