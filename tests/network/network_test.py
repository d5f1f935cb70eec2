"""Tests of networks: remat, gathers, dtypes, taps and errors."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.network import network as network_lib

DEPTH = 3


def build(**fields):
  config = config_lib.base().student
  config.model = 'vit'
  config.options = dict(patch_size=4, width=8, depth=DEPTH, heads=2)
  config.update_from_flattened_dict(fields)
  return network_lib.build_network(config, title='student', num_classes=5)


def make_batch():
  image = np.random.RandomState(0).rand(2, 8, 8, 1).astype(np.float32)
  return base.Batch(image, np.ones(2, bool))


def pass_through(value, shape, dtype):
  assert value.shape == tuple(shape)
  return value.astype(dtype)


@pytest.mark.parametrize('fields, gather, is_training, blocks', [
    ({}, None, True, 0),
    # If parameters are gathered, blocks save no gathered ones.
    ({}, pass_through, True, DEPTH),
    ({}, pass_through, False, 0),
    ({'remat': 'none'}, pass_through, True, 0),
    ({'remat': 'full'}, None, True, DEPTH),
    ({'remat': 'full', 'remat_modules': 'block_1'}, None, True, 1),
    ({'remat_modules': 'block_*/mlp'}, pass_through, True, DEPTH),
])
def test_blocks_are_recomputed_as_the_config_says(
    fields, gather, is_training, blocks):
  network, batch = build(**fields), make_batch()
  params, state = network.init(jax.random.key(0), batch)

  def run(params):
    output, _ = network.apply(params, state, jax.random.key(0), batch,
                              is_training=is_training, gather=gather)
    return output.logits

  assert str(jax.make_jaxpr(run)(params)).count('= remat2[') == blocks


def test_gathered_parameters_have_the_policy_gathers():
  network, batch = build(), make_batch()
  params, state = network.init(jax.random.key(0), batch)

  def products(gather):
    loss = lambda params: network.apply(
        params, state, jax.random.key(0), batch, is_training=True,
        gather=gather)[0].logits.sum()
    return str(jax.make_jaxpr(jax.grad(loss))(params)).count('dot_general[')

  assert products(pass_through) == products(None)  # No product is recomputed.


@pytest.mark.parametrize('precision, compute_dtype', [
    ('float32', jnp.float32), ('bfloat16', jnp.bfloat16)])
def test_parameters_are_gathered_uncast_and_used_in_the_compute_dtype(
    precision, compute_dtype):
  seen = set()

  def gather(value, shape, dtype):
    seen.add((value.dtype, jnp.dtype(dtype)))
    return pass_through(value, shape, dtype)

  network, batch = build(precision=precision), make_batch()
  params, state = network.init(jax.random.key(0), batch)
  gathered, replicated = (
      network.apply(params, state, None, batch, is_training=False, gather=f)[0]
      for f in (gather, None))
  # A cast before the gather would sum the gradient in the compute dtype.
  assert seen == {(jnp.dtype('float32'), jnp.dtype(compute_dtype))}
  assert gathered.logits.dtype == replicated.logits.dtype == compute_dtype
  np.testing.assert_array_equal(
      *(np.float32(x.logits) for x in (gathered, replicated)))


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_integer_parameters_keep_their_dtype(precision):

  def counting(inputs, *, is_training, num_classes):
    table = hk.get_parameter('table', (8, 2), jnp.int32, jnp.ones)
    return hk.Linear(num_classes)(inputs.reshape(2, -1)) + table.sum()

  seen = {}

  def gather(value, shape, dtype):
    seen[tuple(shape)] = jnp.dtype(dtype)
    return pass_through(value, shape, dtype)

  with registry.models.temporary():
    registry.register_model()(counting)
    config = config_lib.base().student
    config.model, config.precision = 'counting', precision
    network = network_lib.build_network(config, title='student', num_classes=5)
    params, state = network.init(jax.random.key(0), make_batch())
    network.apply(params, state, None, make_batch(), is_training=False,
                  gather=gather)
  real = jnp.dtype(precision)
  assert seen == {(8, 2): jnp.dtype('int32'), (64, 5): real, (5,): real}


def test_taps_of_the_config_override_those_of_the_model():
  config = config_lib.base().student
  config.model = 'vit'
  config.options = dict(patch_size=4, width=8, depth=DEPTH, heads=2)
  # That no loss compares what is looked at is no mistake.
  config.taps = dict(features='block_1', early_features='block_0')
  network = network_lib.build_network(
      config, title='student', num_classes=5, kinds=('features', 'attention'))
  batch = make_batch()
  params, state = network.init(jax.random.key(0), batch)
  output, _ = network.apply(params, state, None, batch, is_training=False)
  assert {kind: len(x) for kind, x in output.taps.items()} == dict(
      features=1, attention=DEPTH)


@pytest.mark.parametrize('fields, kinds, text', [
    ({'options.heads': 3}, (),
     r'^config\.student\.options\.heads must divide width; got heads=3'),
    ({'options.image_size': 4}, (),
     r'^config\.student: images must be 4 x 4 x 1, as image_size'),
    ({'taps.features': 'blok_*'}, ('features',),
     r'^config\.student\.taps\.features must match a module that is called'),
    ({'remat': 'full', 'remat_modules': 'blok_*'}, (),
     r'^config\.student\.remat_modules must match a module that is called'),
])
def test_errors_begin_with_the_config_field(fields, kinds, text):
  config = config_lib.base().student
  config.model = 'vit'
  config.options = dict(patch_size=4, width=8, depth=DEPTH, heads=2)
  with config.unlocked():
    for name, value in fields.items():
      section, _, leaf = name.rpartition('.')
      (config[section] if section else config)[leaf] = value

  network = network_lib.build_network(
      config, title='student', num_classes=5, kinds=kinds)

  def run():
    params, state = network.init(jax.random.key(0), make_batch())
    network.apply(params, state, jax.random.key(0), make_batch(),
                  is_training=True)

  with pytest.raises(checks.ConfigError, match=text):
    jax.eval_shape(run)


def test_a_kind_without_a_tap_is_refused():
  config = config_lib.base().student
  config.model = 'mlp'
  with pytest.raises(checks.ConfigError,
                     match=r'^config\.student\.taps\.attention must be given, '
                     "since a loss uses it and model 'mlp' has no such tap"):
    network_lib.build_network(
        config, title='student', num_classes=5, kinds=('attention',))


def test_a_tap_that_no_loss_of_the_run_uses_may_stay():
  config = config_lib.base().student
  config.model, config.taps = 'mlp', dict(attention='attn*', features2='x*',
                                          features_of_mine='x*')
  network_lib.build_network(config, title='student', num_classes=5)
