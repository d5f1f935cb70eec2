"""Tests of the aligners."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import align
from haikd.core import checks
from haikd.core import registry

BOTH = jnp.ones(2, bool)  # A mask of examples.


def random(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def random_maps(*shape, mask=True, seed=0):
  rows = np.random.default_rng(seed).exponential(size=shape)
  rows *= np.broadcast_to(mask, (shape[0], shape[-1]))[:, None, None, :]
  return jnp.asarray(rows / rows.sum(-1, keepdims=True), jnp.float32)


def run_project(student, teacher, *, mask, on='features'):
  transformed = hk.transform(
      lambda *pair: align.project(*pair, mask=mask, on=on))
  params = transformed.init(jax.random.key(0), student, teacher)
  return params, lambda p, *pair: transformed.apply(p, None, *pair)


@pytest.mark.parametrize('name', ['pool', 'project', 'none'])
def test_registered(name):
  assert registry.aligners[name].function is getattr(align, name)


@pytest.mark.parametrize('shape', [(2, 4), (2, 3, 4), (2, 3, 3, 4)])
def test_pool_leaves_equal_shapes_alone(shape):
  student, teacher = random(*shape), random(*shape, seed=1)
  pair = align.pool(student, teacher, mask=BOTH, on='features')
  np.testing.assert_array_equal(pair.student, student)
  np.testing.assert_array_equal(pair.teacher, teacher)
  np.testing.assert_array_equal(pair.mask, [True, True])


@pytest.mark.parametrize('wider', ['student', 'teacher'])
def test_pool_averages_the_wider_features(wider):
  narrow, wide = random(2, 3, 2), jnp.arange(48.0).reshape(2, 3, 8)
  sides = (wide, narrow) if wider == 'student' else (narrow, wide)
  pair = align.pool(*sides, mask=jnp.ones((2, 3), bool), on='features')
  # The mean of four consecutive numbers is the first plus 1.5.
  np.testing.assert_allclose(getattr(pair, wider), wide[..., ::4] + 1.5)
  assert pair.student.shape == pair.teacher.shape == (2, 3, 2)


def test_pool_of_widths_that_do_not_divide_weighs_every_feature_alike():
  # 3 to 2: windows of 1.5, which share the middle feature equally.
  pair = align.pool(
      jnp.zeros((1, 2)),
      jnp.array([[3.0, 6.0, 9.0]]),
      mask=jnp.ones(1, bool),
      on='features')
  np.testing.assert_allclose(pair.teacher, [[4.0, 8.0]], rtol=1e-6)


def test_pool_may_shrink_either_side_by_axis():
  student, teacher = random(2, 4, 6), random(2, 8, 3)
  pair = align.pool(student, teacher, mask=BOTH, on='features')
  np.testing.assert_allclose(
      pair.student, student.reshape(2, 4, 3, 2).mean(-1), rtol=1e-5)
  np.testing.assert_allclose(
      pair.teacher, teacher.reshape(2, 4, 2, 3).mean(2), atol=1e-6)


def test_pool_of_images():
  student, teacher = random(2, 2, 2, 3), random(2, 4, 4, 6)
  pair = align.pool(student, teacher, mask=BOTH, on='features')
  expected = teacher.reshape(2, 2, 2, 2, 2, 3, 2).mean((2, 4, 6))
  np.testing.assert_allclose(pair.teacher, expected, atol=1e-6)
  assert pair.mask.shape == (2,)


@pytest.mark.parametrize('content', [0.0, 1e4, np.nan, np.inf])
def test_pooled_positions_are_masked_averages(content):
  # Positions 0, 2 and 3 of four count: [x0, pad | x2, x3] gives x0 and the mean
  # of x2 and x3. A row of padding does not count.
  values = jnp.array([[1.0, content, 3.0, 7.0], [content] * 4])[..., None]
  mask = jnp.array([[True, False, True, True], [False] * 4])
  pair = align.pool(jnp.zeros((2, 2, 1)), values, mask=mask, on='features')
  np.testing.assert_array_equal(pair.teacher[..., 0], [[1, 5], [0, 0]])
  np.testing.assert_array_equal(pair.mask, [[True, True], [False, False]])


def test_pooled_position_counts_if_any_input_did():
  # 3 to 2: the middle position belongs to both.
  mask = jnp.array([[False, True, False], [True, False, False]])
  values = jnp.array([[9.0, 4.0, 9.0], [2.0, 9.0, 9.0]])[..., None]
  pair = align.pool(values, jnp.zeros((2, 2, 1)), mask=mask, on='features')
  np.testing.assert_array_equal(pair.mask, [[True, True], [True, False]])
  np.testing.assert_allclose(
      pair.student[..., 0], [[4, 4], [2, 0]], rtol=1e-6)


def test_pool_of_maps_keeps_rows_distributions():
  student, teacher = random_maps(2, 2, 4, 4), random_maps(2, 6, 8, 8, seed=1)
  pair = align.pool(student, teacher, mask=BOTH, on='attention')
  expected = teacher.reshape(2, 2, 3, 4, 2, 4, 2).mean((2, 4)).sum(-1)
  np.testing.assert_allclose(pair.teacher, expected, atol=1e-6)
  np.testing.assert_array_equal(pair.student, student)
  np.testing.assert_allclose(pair.teacher.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize('positions, heads', [(7, 5), (5, 3), (6, 4)])
def test_rows_stay_distributions_where_sizes_do_not_divide(positions, heads):
  mask = jnp.arange(7) < jnp.array([[7], [4]])
  teacher = random_maps(2, 5, 7, 7, mask=mask)
  student = random_maps(2, heads, positions, positions, seed=1)
  pair = align.pool(student, teacher, mask=mask, on='attention')
  assert pair.teacher.shape == student.shape
  sums = np.asarray(pair.teacher.sum(-1))
  valid = np.broadcast_to(np.asarray(pair.mask)[:, None], sums.shape)
  np.testing.assert_allclose(sums[valid], 1, rtol=1e-5)
  if positions < 7:  # Otherwise positions and mask stay as they were.
    assert not sums[~valid].any()


@pytest.mark.parametrize('content', [0.0, 5.0, np.nan])
def test_padding_of_maps_does_not_leak(content):
  mask = jnp.array([[True, True, True, False]])
  keep = mask[:, None, :, None] & mask[:, None, None, :]
  student = random_maps(1, 2, 2, 2)

  def aligned(teacher):
    pair = align.pool(
        student, jnp.where(keep, teacher, content), mask=mask, on='attention')
    return haikd.losses.attention_transfer(*pair[:2], mask=pair.mask).total

  value, grad = jax.value_and_grad(aligned)(random_maps(1, 4, 4, 4, seed=1))
  cleaned = np.where(keep, random_maps(1, 4, 4, 4, seed=1), 0)[0]
  heads = (cleaned[0::2] + cleaned[1::2]) / 2
  queries = np.stack([heads[:, :2].mean(1), heads[:, 2]], 1)
  keys = queries.reshape(2, 2, 2, 2).sum(-1)
  cosines = (keys * student[0]).sum(-1) / np.sqrt(
      (keys**2).sum(-1) * (student[0]**2).sum(-1))
  np.testing.assert_allclose(value, (1 - cosines).sum(), rtol=1e-4)
  assert np.isfinite(grad).all() and not jnp.where(keep, 0, grad).any()


def test_heads_are_pooled_under_a_mask_of_positions():
  mask = jnp.array([[True, True, False]] * 2)
  teacher = random_maps(2, 4, 3, 3, mask=mask)
  pair = align.pool(
      random_maps(2, 2, 3, 3, seed=1), teacher, mask=mask, on='attention')
  expected = teacher.reshape(2, 2, 2, 3, 3).mean(2)
  np.testing.assert_allclose(
      pair.teacher[:, :, :2], expected[:, :, :2], rtol=1e-5)
  np.testing.assert_array_equal(pair.mask, mask)


@pytest.mark.parametrize('on, shapes',
                         [('features', ((2, 4, 3), (2, 8, 6))),
                          ('attention', ((2, 2, 4, 4), (2, 4, 8, 8)))])
def test_bfloat16_is_pooled_in_float32(on, shapes):
  halves = [jnp.exp(random(*s)).astype(jnp.bfloat16) for s in shapes]
  mask = jnp.ones((2, 8), bool).at[0, 5:].set(False)
  got = align.pool(*halves, mask=mask, on=on)
  expected = align.pool(
      *(x.astype(jnp.float32) for x in halves), mask=mask, on=on)
  assert got.teacher.dtype == jnp.float32
  np.testing.assert_array_equal(got.teacher, expected.teacher)


@pytest.mark.parametrize('aligner', [align.pool, align.none])
def test_logits_pass_as_they_are(aligner):
  given = random(2, 3, 5), random(2, 3, 5, seed=1), jnp.ones((2, 3), bool)
  pair = aligner(*given[:2], mask=given[2], on='logits')
  assert all(got is x for got, x in zip(pair, given))


def test_vocabularies_must_agree():
  with pytest.raises(
      checks.ConfigError,
      match=r'^student and teacher must have the same vocabulary; got '
      r'student\.shape=\(2, 5\), teacher\.shape=\(2, 8\), which differ by 3 '
      'classes. Give both networks one tokenizer'):
    align.pool(random(2, 5), random(2, 8), mask=BOTH, on='logits')


@pytest.mark.parametrize('aligner', [align.pool, align.none])
def test_logits_must_have_the_same_positions(aligner):
  with pytest.raises(checks.ConfigError, match='^student and teacher must have '
                     'logits at the same positions'):
    aligner(random(2, 3, 5), random(2, 4, 5), mask=BOTH, on='logits')


@pytest.mark.parametrize('on', ('embedding', 'logits'))
def test_none_leaves_shapes_to_the_loss(on):
  student, teacher = random(2, 3), random(2, 4)
  pair = align.none(student, teacher, mask=BOTH, on=on)
  assert (pair.student is student, pair.teacher is teacher) == (True, True)


@pytest.mark.parametrize('aligner, shape', [
    (align.pool, (2, 2, 4)), (align.project, (2, 2, 8))])
def test_embeddings_of_pairs_come_to_one_width(aligner, shape):
  mask = jnp.array([[True, True], [True, False]])
  run = hk.transform(lambda *args: aligner(*args, mask=mask, on='embedding'))
  given = random(2, 2, 4), random(2, 2, 8)
  pair = run.apply(run.init(jax.random.key(0), *given), None, *given)
  assert pair.student.shape == pair.teacher.shape == shape
  np.testing.assert_array_equal(pair.mask, mask)


@pytest.mark.parametrize('shapes', [((2, 3), (2, 3, 4)), ((2, 3), (4, 3))])
@pytest.mark.parametrize('aligner', [align.pool, align.project])
def test_rank_and_batch_must_agree(aligner, shapes):
  student, teacher = (random(*shape) for shape in shapes)
  with pytest.raises(
      checks.ConfigError,
      match=r'same rank and batch; got student\.shape=.*register an aligner'):
    aligner(student, teacher, mask=BOTH, on='features')


@pytest.mark.parametrize('mask_shape', [(2, 4), (2, 5), (3,)])
def test_mask_must_cover_the_longer_side(mask_shape):
  with pytest.raises(
      checks.ConfigError, match='^mask must have the leading axes'):
    align.pool(
        random(2, 4, 3), random(2, 8, 3), mask=jnp.ones(mask_shape, bool),
        on='features')


def test_maps_must_be_maps():
  with pytest.raises(checks.ConfigError, match=r'must be maps \[B, H, N, N\]'):
    align.pool(random(2, 4, 4), random(2, 4, 4), mask=BOTH, on='attention')


def test_project_is_a_linear_map_to_the_teachers_width():
  student, teacher = random(2, 3, 4), random(2, 3, 6)
  mask = jnp.array([[True, True, False], [True, True, True]])
  params, apply = run_project(student, teacher, mask=mask)
  assert params['project']['w'].shape == (4, 6)
  params['project']['b'] += 0.5
  pair = apply(params, student, teacher)
  expected = student @ params['project']['w'] + 0.5
  keep = np.asarray(mask)
  np.testing.assert_allclose(pair.student[keep], expected[keep], atol=1e-5)
  np.testing.assert_array_equal(pair.teacher[keep], teacher[keep])


def test_project_learns_in_float32():
  student, teacher = (
      random(2, 3, width).astype(jnp.bfloat16) for width in (4, 6))
  params, apply = run_project(student, teacher, mask=jnp.ones((2, 3), bool))
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  assert apply(params, student, teacher).student.dtype == jnp.float32


def test_project_is_there_for_equal_widths_too():
  params, _ = run_project(random(2, 4), random(2, 4), mask=BOTH)
  assert params['project']['w'].shape == (4, 4)


def test_project_pools_positions():
  student, teacher = random(2, 3, 4), random(2, 6, 8)
  mask = jnp.arange(6) < jnp.array([[6], [3]])
  params, apply = run_project(student, teacher, mask=mask)
  pair = apply(params, student, teacher)
  assert pair.student.shape == pair.teacher.shape == (2, 3, 8)
  np.testing.assert_array_equal(pair.mask, [[1, 1, 1], [1, 1, 0]])
  np.testing.assert_allclose(
      pair.teacher[0, 1], (teacher[0, 2] + teacher[0, 3]) / 2, rtol=1e-5)
  np.testing.assert_allclose(pair.teacher[1, 1], teacher[1, 2], rtol=1e-5)


@pytest.mark.parametrize('content', [1e4, np.nan, np.inf])
def test_padding_does_not_reach_what_is_learned(content):
  mask = jnp.array([[True, True, False], [False, False, True]])
  student, teacher = random(2, 3, 4), random(2, 3, 6)
  params, apply = run_project(student, teacher, mask=mask)

  def loss(params, student):
    pair = apply(params, student, teacher)
    return haikd.losses.feature_matching(*pair[:2], mask=pair.mask).total

  grad = jax.value_and_grad(loss, (0, 1))
  got = grad(params, jnp.where(mask[..., None], student, content))
  expected = grad(params, jnp.where(mask[..., None], student, 0.0))
  jax.tree.map(np.testing.assert_array_equal, got, expected)
  assert np.isfinite(got[0]) and got[1][0]['project']['w'].any()


def test_padding_of_a_shorter_student_does_not_reach_what_is_learned():
  mask = jnp.arange(6) < jnp.array([[6], [3]])  # The third of three is empty.
  student, teacher = random(2, 3, 4).at[1, 2].set(jnp.nan), random(2, 6, 8)
  params, apply = run_project(student, teacher, mask=mask)
  grad = jax.grad(lambda p: haikd.losses.feature_matching(
      *apply(p, student, teacher)[:2], mask=mask[:, ::2]).total)(params)
  assert np.isfinite(grad['project']['w']).all()


@pytest.mark.parametrize('on', ['logits', 'attention'])
def test_project_is_for_features(on):
  with pytest.raises(checks.ConfigError, match=f"a loss on '{on}'. Use align="):
    align.project(random(2, 4), random(2, 6), mask=BOTH, on=on)


def test_project_wants_a_mask_of_positions():
  with pytest.raises(
      checks.ConfigError, match='^mask must not have the axis of'):
    align.project(
        random(2, 4), random(2, 6), mask=jnp.ones((2, 6), bool), on='features')
