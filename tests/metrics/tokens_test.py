"""Tests of the metrics of language models, by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import metrics
from haikd.core import base
from haikd.losses import cutting


def measure(*args, **options):
  sums, columns = metrics.measure(*args, **options)
  assert columns == dict(tokens={})
  return sums['tokens']


def finish(sums):
  sums = jax.tree.map(np.float64, sums)
  return metrics.finish(dict(tokens=sums), dict(tokens={}))


def test_perplexity_is_over_all_positions_that_count():
  # Probabilities 1/2, 1/4 and 1/4 of the labels: the perplexity is the
  # geometric mean of 2, 4 and 4.
  logits = jnp.log(jnp.array([[[1 / 2, 1 / 4, 1 / 4]] * 2] * 2))
  mask = jnp.array([[True, True], [True, False]])
  labels = jnp.array([[0, 1], [2, 0]])
  values = finish(measure(logits, None, mask=mask, labels=labels))
  np.testing.assert_allclose(values['perplexity'], 32**(1 / 3), rtol=1e-6)
  np.testing.assert_allclose(
      values['cross_entropy'], math.log(32) / 3, rtol=1e-6)
  np.testing.assert_allclose(values['accuracy'], 1 / 3)
  assert set(values) == {'perplexity', 'cross_entropy', 'accuracy'}


@pytest.mark.parametrize('nats, count, expected', (
    (2000.0, 2.0, np.inf), (0.0, 0.0, np.nan), (0.0, 5.0, 1.0)))
def test_perplexity_at_its_ends(nats, count, expected):
  values = finish(dict(cross_entropy=base.LossSum(nats, count)))
  np.testing.assert_equal(values['perplexity'], expected)


def test_top5_agreement_by_hand():
  # The teacher's five are 0 to 4 and 3 to 7, the student's always 0 to 4.
  student = jnp.broadcast_to(-jnp.arange(9.0), (1, 3, 9))
  teacher = jnp.stack([
      jnp.array([1.0, 2, 3, 4, 5, 0, 0, 0, -1]),
      jnp.array([0.0, 0, 0, 5, 4, 3, 2, 1, -1]),
      jnp.full(9, jnp.nan)
  ])[None]
  mask = jnp.array([[True, True, False]])
  sums = measure(student, teacher, mask=mask)
  # The student has all five at the first position, 3 and 4 at the second.
  np.testing.assert_allclose(sums['top5_agreement'], (1 + 2 / 5, 2), rtol=1e-6)
  # The teacher's most likely tokens are 4 and 3, the student's is 0.
  np.testing.assert_allclose(sums['agreement'], (0, 2))
  assert set(sums) == {'kl', 'reverse_kl', 'acceptance', 'agreement',
                       'top5_agreement'}


def test_the_first_of_equal_logits_is_predicted():
  logits = jnp.array([[[2.0, 5, 5, 1], [3, 3, 3, 3], [0, 1, 2, 2]]])
  labels, mask = jnp.array([[1, 0, 3]]), jnp.ones((1, 3), bool)
  sums = measure(logits, logits[..., ::-1], mask=mask, labels=labels)
  assert [float(x) for x in sums['accuracy']] == [2, 3]
  # The reversed ones are likeliest at 1, 0 and 0.
  assert [float(x) for x in sums['agreement']] == [2, 3]


def test_acceptance_in_chunks_is_one_less_the_total_variation():
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  student, teacher = (
      base.LinearLogits(draw(2, 9, 3), draw(3, 11)) for _ in range(2))
  mask = jnp.arange(9) < jnp.array([[9], [4]])
  sums = measure(student, teacher, mask=mask,
                 sizes=cutting.ChunkSizes(chunk_bytes=4 * 11 * 4))
  p, q = (np.exp(np.float64(x.materialise())) for x in (teacher, student))
  p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
  expected = (1 - np.abs(p - q).sum(-1) / 2)[np.asarray(mask)].sum()
  np.testing.assert_allclose(sums['acceptance'], (expected, 13), rtol=1e-5)


def test_vocabularies_may_have_less_than_five():
  logits = jnp.array([[[0.0, 1.0, 2.0]]])
  sums = measure(logits, logits, mask=jnp.ones((1, 1), bool))
  np.testing.assert_allclose(sums['top5_agreement'], (1, 1))
