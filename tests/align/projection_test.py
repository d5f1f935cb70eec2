"""How a projection starts, its rank, and tokens that are a map."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import align
from haikd.align import projection
from haikd.core import checks

MASK = jnp.ones(2, bool)


def random(*shape, seed=0):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def init(student, teacher, **options):
  run = hk.transform(lambda *pair: align.project(
      *pair, mask=MASK, on='features', **options))
  params = run.init(jax.random.key(0), student, teacher)
  return params, run.apply(params, None, student, teacher).student


def test_identity_leaves_the_first_features():
  student = random(2, 3, 4)
  _, wider = init(student, random(2, 3, 6), init='identity')
  np.testing.assert_array_equal(wider[..., :4], student)
  assert not wider[..., 4:].any()
  _, narrower = init(student, random(2, 3, 2), init='identity', rank=2)
  np.testing.assert_array_equal(narrower, student[..., :2])


def test_orthogonal_keeps_lengths():
  student = random(2, 4)
  params, mapped = init(student, random(2, 6), init='orthogonal', bias=False)
  assert list(params['project']) == ['w']
  np.testing.assert_allclose(jnp.linalg.norm(mapped, axis=-1),
                             jnp.linalg.norm(student, axis=-1), rtol=1e-5)


@pytest.mark.parametrize('rank', (None, 2))
def test_principal_components_give_the_teacher_back(rank):
  """States of two directions are the mean and the scores on these two."""
  rng = np.random.default_rng(0)
  states = rng.normal(size=(50, 2)) @ rng.normal(size=(2, 6)) + 3
  teacher = np.float32(states)
  params, _ = init(
      random(2, 4), jnp.asarray(teacher[:2]), init='pca', rank=rank)
  changed = projection.calibrate(init='pca', rank=rank)(
      jax.device_get(params), teacher)
  run = hk.transform(lambda *pair: align.project(
      *pair, mask=MASK, on='features', init='pca', rank=rank))
  values, vectors = np.linalg.eigh(np.cov(states.T))
  order = np.argsort(values)[::-1][:2]
  last = changed['project' if rank is None else 'project_up']['w']
  signs = np.sign(np.sum(last[:2] * vectors[:, order].T, axis=1))
  np.testing.assert_allclose(
      last[:2] * signs[:, None], vectors[:, order].T, atol=1e-4)
  scores = (states - states.mean(0)) @ last[:2].T
  student = jnp.asarray(np.pad(scores, ((0, 0), (0, 2))), jnp.float32)
  mapped = run.apply(changed, None, student[:2], jnp.asarray(teacher[:2]))
  np.testing.assert_allclose(mapped.student, teacher[:2], atol=1e-4)


def test_a_random_start_asks_for_no_states():
  assert projection.calibrate() is None
  assert projection.calibrate(init='orthogonal', rank=3) is None


@pytest.mark.parametrize('options, match', (
    (dict(init='pcaa'), "init must be one of .*'pcaa'. Did you mean 'pca'"),
    (dict(rank=5), 'rank must be None, or from 1 to .* got 5, widths 4 and 6'),
    (dict(rank=True), 'got True'),
    (dict(class_token='add_'), "class_token must be 'drop' or 'add'")))
def test_options_out_of_their_range_are_refused(options, match):
  with pytest.raises(checks.ConfigError, match=match):
    init(random(2, 4), random(2, 6), **options)


@pytest.mark.parametrize('prefix', (0, 1, 2))
@pytest.mark.parametrize('class_token', ('drop', 'add'))
def test_tokens_of_an_image_meet_a_map(prefix, class_token):
  """4 x 4 places are averaged two by two; a class token is no place."""
  grid, extra = random(2, 4, 4, 3), random(2, prefix, 3, seed=1)
  tokens = jnp.concatenate([extra, grid.reshape(2, 16, 3)], axis=1)
  pair = align.pool(tokens, random(2, 2, 2, 3), mask=MASK, on='features',
                    class_token=class_token)
  expected = grid.reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
  if class_token == 'add':
    expected += extra.sum(1)[:, None, None]
  np.testing.assert_allclose(pair.student, expected, atol=1e-6)
  assert pair.teacher.shape == (2, 2, 2, 3)


def test_tokens_of_two_patch_sizes_are_averaged_as_maps():
  student, grid = random(2, 5, 3), random(2, 4, 4, 3, seed=1)
  teacher = jnp.concatenate([student[:, :1], grid.reshape(2, 16, 3)], axis=1)
  with pytest.raises(checks.ConfigError, match='grid must be given .* got 5 '):
    align.pool(student, teacher, mask=MASK, on='features')
  pair = align.pool(student, teacher, mask=MASK, on='features', grid=True)
  np.testing.assert_array_equal(
      pair.student, student[:, 1:].reshape(2, 2, 2, 3))
  np.testing.assert_allclose(
      pair.teacher, grid.reshape(2, 2, 2, 2, 2, 3).mean((2, 4)), atol=1e-6)
  with pytest.raises(checks.ConfigError, match='grid must be given .* got 5 '):
    align.pool(student, teacher[:, 1:], mask=MASK, on='features')
  added = align.pool(student, student, mask=MASK, on='features', grid=True,
                     class_token='add').student
  np.testing.assert_allclose(
      added.reshape(2, 4, 3), student[:, 1:] + student[:, :1], atol=1e-6)
  flat = align.pool(student, teacher, mask=MASK, on='features', grid=False)
  assert flat.student.shape == (2, 5, 3)


def test_class_tokens_are_added_in_float32():
  tokens = jnp.full((2, 5, 1), 4e4, jnp.float16)  # Twice that is infinite.
  pair = align.pool(tokens, tokens, mask=MASK, on='features', grid=True,
                    class_token='add')
  np.testing.assert_allclose(pair.student, 8e4, rtol=1e-3)


def test_tokens_that_fill_no_square_are_refused():
  with pytest.raises(checks.ConfigError, match="student's tokens must fill a "):
    align.pool(random(2, 7, 3), random(2, 2, 2, 3), mask=MASK, on='features')
