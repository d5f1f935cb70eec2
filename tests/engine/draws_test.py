"""Draws in loops give the numbers of draws by themselves."""

import re
import types

import haiku as hk
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.core import random_bits
from haikd.engine import draws
from haikd.engine import mesh as mesh_lib
from haikd.network import network as network_lib


def stacked(x):
  block = lambda x: jnp.tanh(hk.Linear(5)(x))
  return hk.experimental.layer_stack(3)(block)(x)


def other_draws(x):
  """Draws of several kinds, with keys of several kinds."""
  first = hk.get_parameter('a', (3, 5), init=hk.initializers.RandomUniform())
  keys = hk.next_rng_keys(3)
  second = [jax.random.normal(key, (3, 5)) for key in keys]
  third = jax.random.bernoulli(jax.random.fold_in(keys[0], 7), shape=(3, 5))
  fourth = jax.random.permutation(hk.next_rng_key(), 8)
  # A key that is drawn, so that one of two equal draws depends on the other.
  key = jax.random.fold_in(
      keys[1], lax.bitcast_convert_type(second[0][0, 0], np.uint32))
  fifth = jax.random.normal(key, (3, 5)) + jax.random.normal(keys[1], (3, 5))
  wide = jax.random.bits(keys[2], (3, 5), jnp.uint8)
  limits = [jax.random.uniform(key, (3,), maxval=limit)
            for key in keys for limit in (1.0, 2.0)]
  chain = jax.random.split(jax.random.split(jax.random.split(keys[0])[1])[0])
  hk.set_state('seen', (*second, third, fourth, fifth, wide, *limits,
                        jax.random.uniform(chain[1], (7,))))
  hk.set_state('key', hk.next_rng_key())
  return x @ hk.get_parameter('b', (5, 5), init=lambda shape, dtype: (
      jnp.linalg.qr(jax.random.normal(hk.next_rng_key(), shape))[0])) + first


def mlps(x):
  return sum(hk.nets.MLP([5, 5, 5, 5], name=f'mlp_{i}')(x) for i in range(4))


def init_of(function):
  network = hk.transform_with_state(function)
  return lambda rng: network.init(rng, jnp.ones((3, 5)))


def init_of_model(model, **options):
  config = config_lib.network()
  config.model, config.options = model, options
  network = network_lib.build_network(config, title='student', num_classes=7)
  inputs = (np.zeros((1, 8), np.int32) if model == 'llama' else
            np.zeros((1, 8, 8, 1), np.float32))
  batch = base.Batch(inputs=inputs, mask=np.ones(inputs.shape[:2], bool))
  return lambda rng: network.init(rng, batch)


INITS = dict(
    mlps=lambda: init_of(mlps),
    stacked=lambda: init_of(stacked),
    other_draws=lambda: init_of(other_draws),
    llama=lambda: init_of_model('llama', width=8, depth=3, heads=2, hidden=16),
    convnet=lambda: init_of_model('convnet', channels=(4, 4, 4)),
    vit=lambda: init_of_model('vit', patch_size=2, width=8, depth=2, heads=2))


def mesh_of(devices):
  return mesh_lib.build_mesh(config_lib.base().mesh, jax.devices()[:devices])


def as_numbers(tree):
  def number(x):
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)
  return jax.tree.map(number, tree)


def assert_same(expected, result):
  """Their bits are the same; XLA may round what follows in another way."""
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=5e-6),
               as_numbers(expected), as_numbers(result))


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('name', INITS)
def test_numbers_are_those_of_jax(name, devices):
  init = INITS[name]()
  traced = draws.trace(init, mesh_of(devices))
  rng = jax.random.key(3)
  expected, result = jax.jit(init)(rng), jax.jit(traced)(rng)
  assert_same(expected, result)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), result) == jax.tree.map(
      lambda x: (x.shape, x.dtype), traced.results)


def count_loops(function):
  return jax.jit(function).lower(
      jax.random.key(0)).compile().as_text().count(' while(')


def test_equal_draws_and_splits_take_a_loop_each():
  init = init_of(mlps)  # 16 matrices of one shape.
  assert count_loops(init) >= 16
  # The splits; the draws, with their parts and the rounds of the hash inside.
  assert count_loops(draws.trace(init, mesh_of(1))) <= 5


def test_one_kernel_takes_any_result_out_of_a_loop():
  def kernels(depth):  # By where they begin to read, if XLA knows that.
    init = init_of(lambda x: hk.nets.MLP([5] * depth)(x))
    traced = jax.jit(draws.trace(init, mesh_of(1)))
    text = traced.lower(jax.random.key(0)).compile().as_text()
    return set(re.findall(r'slice=\{\[(\d+):', text))

  assert kernels(3) == kernels(12)


def test_draws_that_are_too_large_are_made_as_usual(monkeypatch):
  monkeypatch.setattr(draws, '_MAX_BYTES', 2 * 100 * 7)  # Less than a MLP's.
  init = init_of(mlps)
  traced = draws.trace(init, mesh_of(1))
  assert count_loops(traced) > 5
  assert_same(*(jax.jit(f)(jax.random.key(3)) for f in (init, traced)))


def test_networks_that_need_keys_of_jax_get_them():
  init = lambda rng: jax.random.poisson(rng, 2.0, (3,))
  traced = draws.trace(init, mesh_of(1))
  np.testing.assert_array_equal(traced(jax.random.key(3)),
                                init(jax.random.key(3)))


def test_error_of_a_network_is_its_own():
  def init(rng):
    raise ValueError('of the user')

  with pytest.raises(ValueError, match='^of the user'):
    draws.trace(init, mesh_of(1))


def test_many_numbers_with_keys_of_their_own_take_no_more_room():
  init = lambda rng: jax.vmap(jax.random.uniform)(jax.random.split(rng, 2000))
  traced = draws.trace(init, mesh_of(1))
  rng = jax.random.key(3)
  assert_same(jax.jit(init)(rng), jax.jit(traced)(rng))
  size = [jax.jit(f).lower(rng).compile().memory_analysis().temp_size_in_bytes
          for f in (init, traced)]
  assert size[1] <= 2 * size[0]


def test_limit_is_lower_on_several_devices(monkeypatch):
  monkeypatch.setattr(draws, '_MAX_BYTES_OF_MANY', 0)
  init = init_of(mlps)
  assert count_loops(draws.trace(init, mesh_of(8))) == count_loops(init)


def test_other_platforms_keep_the_function_as_it_is():
  init = init_of(mlps)
  device = types.SimpleNamespace(platform='tpu')
  mesh = types.SimpleNamespace(devices=np.array([device]), size=1)
  traced = draws.trace(init, mesh)
  assert count_loops(traced) == count_loops(init)


def test_keys_of_another_kind_are_left_alone():
  key = jax.random.key(0, impl='rbg')
  assert random_bits.in_parts(key, 2**20) is key


def test_keys_are_left_alone_where_their_bits_are_others():
  key = jax.random.key(0)
  with jax.threefry_partitionable(False):
    assert random_bits.in_parts(key, 2**20) is key


@pytest.mark.parametrize('size', [1, 4095, 4096, 4097, 20000])
def test_bits_of_any_size_are_those_of_jax(size):
  key = jax.random.key(5)
  ours = random_bits.in_parts(key, 2**20)
  np.testing.assert_array_equal(
      jax.random.bits(ours, (size,)), jax.random.bits(key, (size,)))
