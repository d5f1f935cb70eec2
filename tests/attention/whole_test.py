"""Tests of attention that keeps its maps, against materialised maps."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import attention
from haikd.attention import whole
from haikd.core import attention_mask
from haikd.core import base

B, H, N, K, E = 3, 4, 22, 4, 6  # Of the masks in conftest.
MASKS = ('none', 'causal', 'right', 'left', 'both_ways', 'window',
         'traced_window', 'local', 'segments', 'keys_array', 'array',
         'shared_array')


def draw(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=x), jnp.float32) for x in shapes]


def tapped(*fields):
  """Returns what `attend_and_tap` returns, and what it offers."""
  *query_key, value = fields
  network = hk.transform(haikd.capture(
      lambda: attention.attend_and_tap(base.QueryKey(*query_key), value),
      dict(attention='maps')))
  outputs, taps = network.apply({}, None)
  return outputs, taps['attention'][0]


def run(mask, soft_cap, bias, *arguments):
  query, key, value = arguments
  outputs, query_key = tapped(query, key, mask, soft_cap, bias, value)
  assert query_key.maps is not None
  return outputs, query_key.maps


def run_by_hand(masks, allowed, soft_cap, bias, *arguments):
  query, key, value = arguments
  maps = masks.by_hand(query, key, allowed, soft_cap, bias)
  value = jnp.repeat(value, H // value.shape[2], axis=2)
  return jnp.einsum('bhnm,bmhe->bnhe', maps, value), maps


def check(function, expected, arguments, real=None):
  """Compares outputs, maps, and the gradients of a sum of both."""
  weights = draw((B, N, H, E), (B, H, N, N), seed=1)
  if real is not None:  # Rows of padding must not be used.
    weights = [weights[0] * real[..., None, None],
               weights[1] * real[:, None, :, None]]

  def results(function):
    def total(*arguments):
      weighted = [x * y for x, y in zip(function(*arguments), weights)]
      return sum(map(jnp.sum, weighted)), weighted
    return jax.jit(jax.value_and_grad(
        total, range(len(arguments)), has_aux=True))(*arguments)

  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
      results(function), results(expected))


@pytest.mark.parametrize('groups', (2, 4))
@pytest.mark.parametrize('name', MASKS)
def test_outputs_and_maps_agree_with_materialised_ones(name, groups, masks):
  mask, real, allowed = masks.MASKS[name]
  arguments = draw((B, N, H, K), (B, N, groups, K), (B, N, groups, E))
  check(lambda *x: run(mask, None, None, *x),
        lambda *x: run_by_hand(masks, allowed, None, None, *x), arguments, real)


def test_scores_have_a_cap_and_a_bias(masks):
  mask, _, allowed = masks.MASKS['causal']
  *arguments, bias = draw(
      (B, N, H, K), (B, N, 2, K), (B, N, 2, E), (H, 2 * N - 1))
  check(lambda bias, *x: run(mask, jnp.float32(1.5), bias, *x),
        lambda bias, *x: run_by_hand(masks, allowed, 1.5, bias, *x),
        (bias, *arguments))


def test_large_maps_are_not_kept(monkeypatch):
  query, key, value = draw((B, N, H, K), (B, N, H, K), (B, N, H, E))
  monkeypatch.setattr(whole, '_MAX_BYTES', 4 * B * H * N * N)
  kept, query_key = tapped(query, key, None, None, None, value)
  assert query_key.maps.shape == query_key.shape == (B, H, N, N)
  monkeypatch.setattr(whole, '_MAX_BYTES', 4 * B * H * N * N - 1)
  computed_again, query_key = tapped(query, key, None, None, None, value)
  assert query_key.maps is None
  np.testing.assert_allclose(kept, computed_again, rtol=1e-6, atol=1e-6)


def test_a_causal_map_that_is_cut_is_not_kept():
  """Above 128 positions, half of the map is not computed."""
  shapes = [(1, 129, 1, 2)] * 3
  causal = attention_mask.AttentionMask(causal=True)
  for mask, is_kept in ((None, True), (causal, False)):
    query, key, value = draw(*shapes)
    _, query_key = tapped(query, key, mask, None, None, value)
    assert (query_key.maps is not None) == is_kept


@pytest.mark.parametrize('heads', ((2, 4), (4, 6)))
@pytest.mark.parametrize('weighted', (False, True))
def test_losses_read_the_maps(heads, weighted, masks):
  """They are those of lazy maps, gradients and all."""
  mask, real, _ = masks.MASKS['left']
  options = dict(mask=jnp.asarray(real))
  if weighted:
    options['block_weight'] = jnp.float32([2, 0.5, 3])
  sides = [draw(*[(B, N, x, K)] * 3, seed=x) for x in heads]

  def loss(sides, keep):
    maps = []
    for query, key, value in sides:
      _, query_key = tapped(query, key, mask, None, None, value)
      assert query_key.maps is not None
      if not keep:
        query_key = query_key._replace(maps=None)
      maps.append(attention.MeanMaps((query_key,), min(heads)))
    result = haikd.losses.attention_transfer(*maps, **options)
    return result.total, result.count

  got, expected = (
      jax.jit(jax.value_and_grad(lambda x: loss(x, keep), has_aux=True))(sides)
      for keep in (True, False))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(
      x, y, rtol=1e-5, atol=1e-6), got, expected)


def test_padding_does_not_reach_a_loss_on_kept_maps(masks):
  """Nor its gradient: the maps and their gradient are 0 there."""
  mask, real, _ = masks.MASKS['right']
  query, key, value = draw(*[(B, N, H, K)] * 3)

  def loss(query):
    _, query_key = tapped(query, key, mask, None, None, value)
    maps = jnp.where(real[:, None, :, None], query_key.maps, jnp.nan)
    maps = attention.MeanMaps((query_key._replace(maps=maps),), H)
    return haikd.losses.attention_transfer(
        maps, jax.lax.stop_gradient(maps), mask=jnp.asarray(real)).total

  total, gradient = jax.value_and_grad(loss)(query)
  assert np.isfinite(total) and np.isfinite(gradient).all()


def test_maps_do_not_outlive_a_change():
  query, key, value, other = draw(*[(B, N, H, K)] * 4)
  _, query_key = tapped(query, key, None, None, None, value)
  changed = query_key._replace(query=other)
  expected = base.QueryKey(other, key).materialise()
  np.testing.assert_allclose(changed.materialise(), expected, rtol=1e-6)


@pytest.mark.parametrize('shape', ((B, H, N, 9), (B, 1, 1, 9), (1, 1, N, 1)))
def test_keys_may_be_of_another_sequence(shape):
  mask = jnp.asarray(np.random.default_rng(3).random(shape) < 0.7)
  query, key, value = draw((B, N, H, K), (B, 9, 2, K), (B, 9, 2, E))
  outputs, query_key = tapped(query, key, mask, None, None, value)
  scores = jnp.einsum('bnhk,bmhk->bhnm', query, jnp.repeat(key, 2, axis=2))
  maps = jax.nn.softmax(scores, where=mask)
  np.testing.assert_allclose(query_key.maps, maps, rtol=1e-5, atol=1e-6)
  expected = jnp.einsum('bhnm,bmhe->bnhe', maps, jnp.repeat(value, 2, axis=2))
  np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('is_small', (True, False))
def test_gradient_of_a_bias_may_vary_between_devices(is_small, monkeypatch):
  """In a `jax.shard_map` of a user, which checks what varies."""
  if not is_small:
    monkeypatch.setattr(whole, '_MAX_BYTES', 0)
  query, key, value, bias = draw(*[(8, N, H, K)] * 3, (H, 2 * N - 1))

  def loss(query, key, value, bias):
    outputs = attention.attend(
        base.QueryKey(query, key, bias=bias), value)
    return jnp.sum(jnp.sin(outputs))

  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  split, same = jax.P('x'), jax.P()
  on_devices = jax.shard_map(
      lambda *x: jax.lax.psum(loss(*x), 'x'), mesh=mesh,
      in_specs=(split, split, split, same), out_specs=same)
  got, expected = (jax.jit(jax.grad(x, 3))(query, key, value, bias)
                   for x in (on_devices, loss))
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
