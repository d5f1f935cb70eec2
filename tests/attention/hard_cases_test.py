"""Tests of cases in which wrong blocks might go unnoticed."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

import haikd
from haikd import attention
from haikd.attention import blocks
from haikd.core import attention_mask
from haikd.core import base

N = 22
BEHIND = np.arange(N)[:, None] - np.arange(N)
EVERYWHERE = np.ones((N, N), bool)


def make(seed, batch=1, size=1.0):
  """Returns queries and keys."""
  rng = np.random.default_rng(seed)
  return tuple(
      jnp.asarray(size * rng.normal(size=(batch, N, 2, 4)), jnp.float32)
      for _ in range(2))


def maps_by_hand(query, key, allowed):
  scores = jnp.einsum('bnhk,bmhk->bhnm', query, key)
  return jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf))


def outputs_by_hand(query, key, value, allowed):
  maps = maps_by_hand(query, key, allowed)
  return jnp.einsum('bhnm,bmhe->bnhe', maps, value)


def rule(**options):
  return attention_mask.AttentionMask(None, None, **options)


def causal_map(window=N):
  return (BEHIND >= 0) & (BEHIND < window)


def squares(student, teacher, *, mask):
  values = jnp.square(student - teacher)
  return haikd.masked_mean(jnp.swapaxes(values, 1, 2), mask)


def assert_close(got, expected):
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), got,
      expected)


@pytest.mark.parametrize('rules, allowed, weight', [
    ((dict(causal=True),) * 2, (causal_map(),) * 2, 3.0),
    ((dict(causal=True, window=2), dict(causal=True, window=6)),
     (causal_map(2), causal_map(6)), 1.0),
    ((dict(causal=True), dict(causal=False)), (causal_map(), EVERYWHERE), 1.0),
], ids=['weight', 'windows', 'causal and not'])
def test_sides_with_different_masks(small_blocks, rules, allowed, weight):
  student, teacher = make(0), make(1)

  def ours(student, teacher):
    sides = (
        attention.MeanMaps((base.QueryKey(*side, rule(**options)),), 2)
        for side, options in zip((student, teacher), rules))
    mask = jnp.ones((1, N), bool)
    return weight * attention.compare(squares, *sides, mask).total

  def by_hand(*sides):
    one, other = (maps_by_hand(*x, y) for x, y in zip(sides, allowed))
    return weight * jnp.sum(jnp.square(one - other))

  got, expected = (
      jax.value_and_grad(function, (0, 1))(student, teacher)
      for function in (ours, by_hand))
  assert_close(got, expected)


def test_window_that_ends_right_behind_a_block(small_blocks):
  query, key = make(0)
  got = attention.attend(
      base.QueryKey(query, key, rule(causal=True, window=6)), key)
  assert_close(got, outputs_by_hand(query, key, key, causal_map(6)))


def test_large_scores_do_not_overflow():
  query, key = make(0, size=30.0)
  got = attention.attend(base.QueryKey(query, key, None), key)
  assert_close(got, outputs_by_hand(query, key, key, EVERYWHERE))


@pytest.mark.parametrize('platform, options, expected', (
    # On CPU a causal block holds one example, unless examples are small.
    ('cpu', dict(), (1, 128)),
    ('cpu', dict(window=128), (1, 64)),
    ('cpu', dict(queries=256, keys=256, heads=1), (2, 64)),
    ('cpu', dict(queries=4096, keys=4096, heads=8), (1, 64)),
    # Maps that are not causal make one block up to 8 MiB.
    ('cpu', dict(causal=False, queries=128, keys=128), (8, 128)),
    ('cpu', dict(causal=False), (1, 512)),
    ('cpu', dict(causal=False, queries=256, keys=256, batch=64), (8, 256)),
    ('tpu', dict(), (8, 128)),
    ('tpu', dict(causal=False), (8, 1024)),
))
def test_size_of_blocks(platform, options, expected, compiled_for):
  options = dict(dict(batch=8, heads=2, queries=1024, keys=1024, causal=True,
                      window=None, rows_of_loop=128), **options)
  with compiled_for(platform):
    cut = blocks.cut(**options)
  assert (cut.examples, cut.rows) == expected


def test_block_may_hold_two_of_four_examples(monkeypatch):
  monkeypatch.setattr(blocks, '_MIN_ROWS', 4)
  monkeypatch.setattr(blocks, '_CAUSAL_BYTES', dict(cpu=2 * 4 * 2 * N * 4))
  cut = blocks.cut(4, 2, N, N, causal=True, window=None, rows_of_loop=512)
  assert cut.examples == 2
  (query, key), (value, _) = make(0, batch=4), make(2, batch=4)
  # Where one example of a block is padding, the other one may be real.
  real = np.arange(N) < np.array([5, N, N, 14])[:, None]

  def ours(query, key, value):
    mask = attention_mask.AttentionMask(jnp.asarray(real), None, causal=True)
    outputs = attention.attend(base.QueryKey(query, key, mask), value)
    return jnp.sum(outputs**2, where=real[..., None, None])

  def by_hand(*arrays):
    allowed = real[:, None, None] & causal_map()
    return jnp.sum(outputs_by_hand(*arrays, allowed)**2,
                   where=real[..., None, None])

  got, expected = (
      jax.value_and_grad(function, (0, 1, 2))(query, key, value)
      for function in (ours, by_hand))
  assert_close(got, expected)


def test_loops_of_one_block(small_blocks, monkeypatch):
  """As of 1024 positions in a batch of one."""
  monkeypatch.setattr(blocks, '_MIN_LOOPS', 6)
  cut = blocks.cut(1, 2, N, N, causal=True, window=None, rows_of_loop=512)
  assert [x.num_blocks for x in cut.spans] == [1] * 6
  query, key = make(0)
  got = attention.attend(base.QueryKey(query, key, rule(causal=True)), key)
  assert_close(got, outputs_by_hand(query, key, key, causal_map()))


def test_block_of_padding_is_skipped(small_blocks):
  query, key = make(0)
  real = jnp.asarray(np.arange(N) < 5)[None]
  mask = attention_mask.AttentionMask(real, None, causal=True)
  assert not attention.attend(base.QueryKey(query, key, mask), key)[:, 8:].any()


@pytest.mark.parametrize('tensor', [1, 2])
def test_devices_that_share_collectives_run_the_same_loop(small_blocks, tensor):
  """Elsewhere a loop ends after the blocks that have a real query."""
  mesh = jax.make_mesh((2, tensor), ('fsdp', 'tensor'),
                       axis_types=(jax.sharding.AxisType.Auto,) * 2,
                       devices=jax.devices()[:2 * tensor])

  def attend(query, key, value, real):
    mask = attention_mask.AttentionMask(real, None, causal=True)
    return attention.attend(base.QueryKey(query, key, mask), value)

  run = jax.shard_map(attend, mesh=mesh, axis_names={'fsdp'}, check_vma=False,
                      in_specs=PartitionSpec('fsdp'),
                      out_specs=PartitionSpec('fsdp'))
  (query, key), (value, _) = make(0, batch=4), make(2, batch=4)
  jaxpr = str(jax.make_jaxpr(run)(query, key, value, jnp.ones((4, N), bool)))
  assert ('while[' in jaxpr, 'scan[' in jaxpr) == (tensor == 1, tensor == 2)


def test_pairs_of_one_shape_share_a_trace_and_options_do_not(small_blocks):
  traced = []

  def scaled(student, teacher, *, mask, factor):
    traced.append(factor)
    sums = squares(student, teacher, mask=mask)
    if isinstance(factor, int):
      factor *= 10
    return sums._replace(total=factor * sums.total)

  def total(seed, factor):
    sides = (attention.MeanMaps((base.QueryKey(*make(x), None),), 2)
             for x in (seed, seed + 1))
    return attention.compare(scaled, *sides, jnp.ones((1, N), bool),
                             options=dict(factor=factor)).total

  first = total(0, 2.0)
  once = len(traced)
  second = total(2, 2.0)
  assert len(traced) < once + once  # Of the second, the count alone.
  np.testing.assert_allclose(total(0, 6.0), 3 * first, rtol=1e-6)
  # 2 equals 2.0, but a loss may tell them apart.
  np.testing.assert_allclose(total(0, 2), 10 * first, rtol=1e-6)
  # An option that is an array, as of a schedule, cannot be part of a key.
  for factor, seed, expected in ((4.0, 0, first), (6.0, 2, second)):
    got = jax.jit(lambda x, s=seed: total(s, x))(factor)
    np.testing.assert_allclose(got, factor / 2 * expected, rtol=1e-6)
