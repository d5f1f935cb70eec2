"""Tests of the metrics of encoders, by hand and against SciPy."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from haikd import metrics
from haikd.core import base


def measure(output, target=None, **options):
  if target is not None:
    target = base.Embedding(target)
  sums, columns = metrics.measure(base.Embedding(output), target, **options)
  return sums['embeddings'], columns['embeddings']


def finish(sums, columns):
  sums, columns = jax.tree.map(np.asarray, (sums, columns))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    return metrics.finish(dict(embeddings=sums), dict(embeddings=columns))


def test_cosine_by_hand():
  # Angles of 60 and 180 degrees; the last is padding.
  student = jnp.array([[3.0, 0], [0, 0.5], [jnp.nan, 1]])
  teacher = jnp.array([[1.0, 3**0.5], [0, -7], [1, 1]])
  mask = jnp.array([True, True, False])
  sums, columns = measure(student, teacher, mask=mask)
  np.testing.assert_allclose(sums['cosine'], (0.5 - 1.0, 2), rtol=1e-6)
  assert columns == {}


def test_network_agrees_with_itself_exactly():
  vectors = jax.random.normal(jax.random.key(0), (50, 2, 7))
  sums, _ = measure(vectors, vectors, mask=jnp.ones((50, 2), bool))
  assert sums['cosine'] == (100, 100)


def test_zeros_have_a_cosine_of_zero():
  sums, _ = measure(jnp.zeros((1, 3)), jnp.ones((1, 3)), mask=jnp.ones(1, bool))
  assert sums['cosine'] == (0, 1)


def test_other_widths_and_logits_are_not_compared():
  mask = jnp.ones(2, bool)
  assert measure(jnp.ones((2, 3)), jnp.ones((2, 4)), mask=mask) == ({}, {})
  sums, columns = metrics.measure(
      base.Embedding(jnp.ones((2, 3))), jnp.ones((2, 3)), mask=mask,
      labels=jnp.array([0, 1]))
  assert sums == columns == dict(embeddings={})


def test_ranks_by_hand():
  # Scores 2, 3, 1: one of two negatives is ahead. Then 1, 1 and a text that is
  # missing: a tie counts half. The last query has no negative.
  vectors = jnp.array([[[1.0], [2], [3], [1]], [[1], [1], [1], [jnp.nan]],
                       [[1], [5], [jnp.nan], [jnp.nan]]])
  mask = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]], bool)
  # Of the first query, 3 > 1 and 2 > 1 are in order, and 3 > 2 is not.
  labels = jnp.array([[3.0, 2, 1], [7, 4, jnp.nan], [0, 0, 0]])
  sums, columns = measure(vectors, mask=mask, labels=labels)
  np.testing.assert_allclose(sums['mrr'], (1 / 2 + 1 / 1.5, 2), rtol=1e-6)
  np.testing.assert_allclose(sums['pair_order'], (2 + 0.5, 4), rtol=1e-6)
  got = finish(sums, columns)
  margins = [-1, 1, 0], [1, 2, 3]
  for name, function in (('spearman', stats.spearmanr),
                         ('pearson', stats.pearsonr)):
    np.testing.assert_allclose(got[name], function(*margins).statistic, 1e-6)


def test_order_is_a_teachers_of_any_width_where_there_are_no_scores():
  student = jnp.array([[[1.0, 0], [2, 0], [3, 0], [0, 9]]])
  teacher = jnp.array([[[1.0], [5], [4], [6]]])
  sums, columns = measure(student, teacher, mask=jnp.ones((1, 4), bool))
  # The teacher's 6 > 5 > 4; the student's 0, 2, 3. All three pairs are wrong.
  assert sums['pair_order'] == (0, 3)
  assert columns['score'].tolist() == [[1, -1]]
  sums, columns = measure(student, mask=jnp.ones((1, 4), bool))
  assert set(sums) == {'mrr'} and columns == {}


def test_vectors_of_tokens_are_ranked_by_maxsim():
  # The query's two tokens find 1 + 0, then 1 + 3 without what is padding.
  texts = jnp.array([[[[1.0, 0], [0, 1], [9, 9]], [[1, 0], [0, 0], [1, 0]],
                      [[1, 3], [9, 9], [9, 9]]]])
  mask = jnp.array([[[1, 1, 0], [1, 1, 1], [1, 0, 0]]], bool)
  sums, columns = metrics.measure(
      base.TokenEmbedding(texts), None, mask=mask, labels=jnp.ones((1, 2)))
  assert sums['embeddings']['mrr'] == (0.5, 1)
  assert sums['embeddings']['pair_order'] == (0, 0)
  assert columns['embeddings']['similarity'].tolist() == [[1 - 4]]


@pytest.mark.parametrize('ties', (False, True))
def test_correlations_are_those_of_scipy(ties):
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(40, 2, 5)).astype(np.float32)
  scores = rng.normal(size=40).astype(np.float32)
  if ties:
    vectors[20:], scores = vectors[:20], np.round(scores)
  mask = np.ones((40, 2), bool)
  mask[7, 0] = mask[33, 1] = False  # These examples lack a text.
  values = finish(*measure(
      jnp.asarray(vectors), mask=jnp.asarray(mask), labels=jnp.asarray(scores)))
  first, second = vectors.astype(np.float64).swapaxes(0, 1)
  cosine = (first * second).sum(-1) / (
      np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1))
  keep = mask.all(-1)
  cosine, scores = cosine[keep], scores[keep]
  if ties:
    cosine = np.round(cosine, 12)  # Makes cosines of equal vectors equal.
  np.testing.assert_allclose(
      values['spearman'], stats.spearmanr(cosine, scores).statistic, rtol=1e-5)
  np.testing.assert_allclose(
      values['pearson'], stats.pearsonr(cosine, scores).statistic, rtol=1e-5)


@pytest.mark.parametrize('similarity, score', (
    ([], []), ([0.5], [1.0]), ([0.5, 0.5], [1.0, 2.0]),
    ([0.1, 0.5], [2.0, 2.0])))
def test_undefined_correlations_are_nan(similarity, score):
  columns = dict(similarity=np.float32(similarity), score=np.float32(score),
                 kept=np.ones(len(score), bool))
  values = finish({}, columns)
  assert np.isnan([values['spearman'], values['pearson']]).all()
