"""Tests of losses on blocks of maps, against materialised maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import align
from haikd import attention
from haikd.core import attention_mask
from haikd.core import base
from haikd.core import checks
from haikd.core import registry

B, N, K = 3, 22, 4  # Of the masks in conftest.


def draw(heads, groups=None, seed=0):
  rng = np.random.default_rng(seed)
  shapes = ((heads, K), (groups or heads, K))
  return tuple(jnp.asarray(rng.normal(size=(B, N, *x)), jnp.float32)
               for x in shapes)


def pooled(maps, heads):
  """Averages adjacent heads by area, one output at a time."""
  size = maps.shape[1] / heads
  outputs = []
  for i in range(heads):
    shares = [max(0, min(h + 1, (i + 1) * size) - max(h, i * size)) / size
              for h in range(maps.shape[1])]
    outputs.append(sum(w * maps[:, h] for h, w in enumerate(shares)))
  return jnp.stack(outputs, axis=1)


def cosines(student, teacher, real):
  """Sums 1 - cos over the rows of real queries that attend to a key."""
  keep = real[:, None, :, None] & real[:, None, None]
  student, teacher = student * keep, teacher * keep
  squares = (student**2).sum(-1) * (teacher**2).sum(-1)
  cosine = (student * teacher).sum(-1) / jnp.sqrt(
      jnp.where(squares > 0, squares, 1))
  total = ((1 - cosine) * (squares > 0)).sum()
  return total, real.sum() * student.shape[1]


def absolute(student, teacher, real):
  keep = real[:, None, :, None] & real[:, None, None]
  total = (jnp.abs(student - teacher) * keep).sum()
  return total, real.sum() * student.shape[1] * student.shape[3]


def in_blocks(loss, student, teachers, masks, real, heads, caps=(None, None)):
  """Evaluates a loss as the objective does: it aligns lazy maps first."""
  allowed, teacher_allowed = masks

  def run(student, teachers):
    sides = [(base.QueryKey(*student, allowed, caps[0]),),
             tuple(base.QueryKey(*x, teacher_allowed, caps[1])
                   for x in teachers)]
    sides = [attention.MeanMaps(x, x[0].query.shape[2]) for x in sides]
    pair = align.pool(*sides, mask=jnp.asarray(real), on='attention')
    assert pair.student.heads == heads
    result = loss(pair.student, pair.teacher, mask=pair.mask)
    return result.total, result.count

  return jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(
      student, teachers)


def materialised(masks, loss, student, teachers, allowed, real, heads,
                 caps=(None, None)):
  allowed, teacher_allowed = allowed

  def run(student, teachers):
    maps = sum(masks.by_hand(*x, teacher_allowed, caps[1]) for x in teachers)
    return loss(pooled(masks.by_hand(*student, allowed, caps[0]), heads),
                pooled(maps / len(teachers), heads), real)

  return jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(
      student, teachers)


def assert_close(left, right, rtol=1e-5, atol=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), left,
               right)


def check(masks, names, heads, loss=None, by_hand=cosines, count=1,
          groups=None, caps=(None, None)):
  (mask, real, allowed), (teacher_mask, _, teacher_allowed) = (
      masks.MASKS[x] for x in names)
  real = np.ones((B, N), bool) if real is None else real
  student = draw(heads[0], groups)
  teachers = tuple(draw(heads[1], seed=1 + i) for i in range(count))
  arguments = student, teachers
  got = in_blocks(loss or haikd.losses.attention_transfer, *arguments,
                  (mask, teacher_mask), real, min(heads),
                  tuple(x and jnp.float32(x) for x in caps))
  assert_close(got, materialised(masks, by_hand, *arguments,
                                 (allowed, teacher_allowed), real, min(heads),
                                 caps))


@pytest.mark.parametrize('names, heads', (
    (('causal', 'causal'), (2, 4)),
    (('left', 'left'), (4, 6)),
    (('right', 'right'), (6, 4)),
    (('both_ways', 'both_ways'), (2, 2)),
    (('window', 'right'), (2, 2)),
    (('window', 'window'), (2, 2)),
    (('segments', 'segments'), (2, 4)),
    (('none', 'keys_array'), (2, 2)),
    (('array', 'shared_array'), (4, 4)),
    (('shared_array', 'causal'), (2, 4)),
    (('numpy_array', 'numpy_array'), (4, 4)),
))
def test_blocks_agree_with_materialised_maps(names, heads, small_blocks, masks):
  check(masks, names, heads)


def test_bias_of_either_side_is_added_to_scores(small_blocks, masks):
  mask, real, allowed = masks.MASKS['right']
  draw_bias = lambda heads, seed: jnp.asarray(
      np.random.default_rng(seed).normal(size=(heads, 2 * N - 1)), jnp.float32)

  def sides(heads, seed):
    query, key = draw(heads, seed=seed)
    return query, key, draw_bias(heads, seed)

  student, teachers = sides(2, 0), (sides(4, 1), draw(4, seed=2))

  def lazy(student, teachers):
    make = lambda query, key, bias=None: base.QueryKey(
        query, key, mask, bias=bias)
    maps = (attention.MeanMaps((make(*student),), 2),
            attention.MeanMaps(tuple(make(*x) for x in teachers), 2))
    return haikd.losses.attention_transfer(*maps, mask=jnp.asarray(real)).total

  def by_hand(student, teachers):
    make = lambda query, key, bias=None: masks.by_hand(
        query, key, allowed, bias=bias)
    maps = sum(make(*x) for x in teachers) / 2
    return cosines(make(*student), pooled(maps, 2), real)[0]

  got, expected = (
      jax.jit(jax.value_and_grad(function, (0, 1)))(student, teachers)
      for function in (lazy, by_hand))
  assert_close(got, expected)


def test_maps_that_make_one_block_need_no_loop(masks):
  check(masks, ('right', 'right'), (2, 4))


def test_key_heads_serve_their_query_heads(small_blocks, masks):
  check(masks, ('causal', 'causal'), (4, 4), groups=2)


@pytest.mark.parametrize('caps', ((1.5, None), (2.0, 1.0)))
def test_scores_are_capped_on_each_side(caps, small_blocks, masks):
  check(masks, ('right', 'causal'), (4, 4), groups=2, caps=caps)


def test_several_teacher_layers_are_averaged(small_blocks, masks):
  check(masks, ('right', 'right'), (2, 4), count=2)


def test_loss_of_a_plugin_gets_blocks(small_blocks, masks):
  shapes = []
  with registry.losses.temporary():

    @haikd.register_loss(on='attention', additive=True)
    def absolute_maps(student, teacher, *, mask, factor=1.0):
      shapes.append(student.shape)
      error = factor * jnp.abs(student - teacher)
      return haikd.masked_mean(jnp.swapaxes(error, 1, 2), mask)

  check(masks, ('right', 'right'), (2, 4), absolute_maps, absolute)
  # The first call is for the count, which needs the maps' shape only.
  assert shapes[0] == (B, 2, N, N) and {x[1:3] for x in shapes[1:]} == {(2, 4)}


def test_loss_may_take_heads_together(small_blocks, masks):
  with registry.losses.temporary():

    @haikd.register_loss(on='attention', additive=True)
    def head_mean(student, teacher, *, mask):
      error = jnp.abs(student - teacher).sum(-1).mean(1)
      return haikd.masked_mean(error, mask)

  def by_hand(student, teacher, real):
    total, _ = absolute(student, teacher, real)
    return total / student.shape[1], real.sum()

  check(masks, ('right', 'right'), (2, 4), head_mean, by_hand)


@pytest.mark.parametrize('heads, apart', (((2, 4), 1), ((4, 6), 2)))
def test_loss_by_head_gets_no_more_heads_than_are_pooled(
    heads, apart, small_blocks, masks):
  shapes = []
  with registry.losses.temporary():

    @haikd.register_loss(on='attention', additive=True, by_head=True)
    def apart_maps(student, teacher, *, mask):
      shapes.append(student.shape)
      error = jnp.abs(student - teacher)
      return haikd.masked_mean(jnp.swapaxes(error, 1, 2), mask)

  check(masks, ('right', 'right'), heads, apart_maps, absolute)
  assert {x[:3] for x in shapes[1:]} == {(1, apart, 4)}


def test_loss_that_is_not_additive_gets_materialised_maps(small_blocks):
  shapes = []
  with registry.losses.temporary():

    @haikd.register_loss(on='attention')
    def anything(student, teacher, *, mask):
      shapes.append(student.shape)
      return haikd.masked_mean(jnp.swapaxes(student - teacher, 1, 2), mask)

  query_key = base.QueryKey(*draw(2))
  anything(query_key, query_key, mask=jnp.ones((B, N), bool))
  assert shapes == [(B, 2, N, N)]


@pytest.mark.parametrize('content', (np.nan, np.inf, 1e4))
@pytest.mark.parametrize('name, aligned', (
    ('right', False),
    ('right', True),
    ('left', True),
    ('none', False),  # Aligned maps only have the network's mask.
))
def test_padding_reaches_nothing(name, aligned, content, small_blocks, masks):
  real = jnp.asarray(masks.LEFT if name == 'left' else masks.RIGHT)
  mask = masks.MASKS[name][0]

  @jax.jit
  @jax.value_and_grad
  def loss(student, teacher):
    student, teacher = (base.QueryKey(*x, mask) for x in (student, teacher))
    if aligned:
      student, teacher = (
          attention.MeanMaps((x,), 2) for x in (student, teacher))
    return haikd.losses.attention_transfer(student, teacher, mask=real).total

  def fill(pair, content):
    return tuple(jnp.where(real[..., None, None], x, content) for x in pair)

  sides = draw(2), draw(2, seed=1)
  got = loss(*(fill(x, content) for x in sides))
  expected = loss(*(fill(x, 0.0) for x in sides))
  jax.tree.map(np.testing.assert_array_equal, got, expected)
  assert np.isfinite(got[0]) and got[1][0].any()


def test_mask_of_examples_counts_all_their_queries(small_blocks):
  student, teacher = (base.QueryKey(*draw(2, seed=i)) for i in range(2))
  loss = haikd.losses.attention_transfer
  got = loss(student, teacher, mask=jnp.array([True, False, True]))
  keep = jnp.array([0, 2])
  expected = loss(*(x.materialise()[keep] for x in (student, teacher)),
                  mask=jnp.ones(2, bool))
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_gradient_of_half_precision_is_computed_in_float32(small_blocks):
  halves = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), draw(2, seed=i))
            for i in range(2)]
  real = jnp.ones((B, N), bool)
  loss = lambda student, teacher: haikd.losses.attention_transfer(
      base.QueryKey(*student), base.QueryKey(*teacher), mask=real).total
  got = jax.jit(jax.value_and_grad(loss))(*halves)
  assert got[1][0].dtype == jnp.bfloat16
  singles = jax.tree.map(lambda x: x.astype(jnp.float32), halves)
  expected = jax.jit(jax.value_and_grad(loss))(*singles)
  assert_close(jax.tree.map(np.float32, got), expected, 0.02, 0.02)


def test_on_eight_devices(small_blocks, masks):
  mesh = jax.make_mesh((8,), ('fsdp',),
                       axis_types=(jax.sharding.AxisType.Auto,))
  real = jnp.asarray(
      np.concatenate([masks.RIGHT, masks.LEFT, masks.RIGHT[:2]]))
  wide = lambda pair: tuple(jnp.concatenate([x, x, x[:2]]) for x in pair)
  student, teacher = wide(draw(2)), wide(draw(4, seed=1))

  def total(student, teacher, real):
    mask = attention_mask.AttentionMask(real, causal=True)
    sides = (attention.MeanMaps((base.QueryKey(*x, mask),), 2)
             for x in (student, teacher))
    return haikd.losses.attention_transfer(*sides, mask=real).total

  def local(*arguments):
    value, gradient = jax.value_and_grad(total)(*arguments)
    return jax.lax.psum(value, 'fsdp'), gradient

  P = jax.sharding.PartitionSpec
  sharded = jax.shard_map(local, mesh=mesh, in_specs=(P('fsdp'),) * 3,
                          out_specs=(P(), P('fsdp')))
  arguments = student, teacher, real
  assert_close(jax.jit(sharded)(*arguments),
               jax.jit(jax.value_and_grad(total))(*arguments))


def test_backward_pass_recomputes_nothing(small_blocks):
  real = jnp.ones((B, N), bool)
  loss = lambda student: haikd.losses.attention_transfer(
      base.QueryKey(*student), base.QueryKey(*draw(2, seed=1)), mask=real).total
  _, pull = jax.vjp(loss, draw(2))
  assert 'dot_general' not in str(jax.make_jaxpr(pull)(jnp.float32(1)))


@pytest.mark.parametrize('options', (
    dict(on='attention'), dict(on='logits', additive=True)))
def test_only_additive_losses_on_maps_are_by_head(options):
  with pytest.raises(
      checks.ConfigError, match='^by_head=True must come with additive=True'):

    @haikd.register_loss(by_head=True, **options)
    def anything(student, teacher, *, mask):
      return haikd.masked_mean(student - teacher, mask)
