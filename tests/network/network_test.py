"""A network from its config: what it keeps, gathers and is cast to."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
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


def keep_whole(value, shape, dtype):
  assert value.shape == tuple(shape)
  return value.astype(dtype)


@pytest.mark.parametrize('fields, gather, is_training, blocks', [
    ({}, None, True, 0),
    # Where parameters are gathered, blocks keep no whole ones.
    ({}, keep_whole, True, DEPTH),
    ({}, keep_whole, False, 0),
    ({'remat': 'none'}, keep_whole, True, 0),
    ({'remat': 'full'}, None, True, DEPTH),
    ({'remat': 'full', 'remat_modules': 'block_1'}, None, True, 1),
    ({'remat_modules': 'block_*/mlp'}, keep_whole, True, DEPTH),
])
def test_blocks_are_computed_again_as_the_config_says(
    fields, gather, is_training, blocks):
  network, batch = build(**fields), make_batch()
  params, state = network.init(jax.random.key(0), batch)

  def run(params):
    output, _ = network.apply(params, state, jax.random.key(0), batch,
                              is_training=is_training, gather=gather)
    return output.logits

  assert str(jax.make_jaxpr(run)(params)).count('= remat2[') == blocks


def test_policy_where_parameters_are_gathered_is_that_of_gathers():
  network, batch = build(), make_batch()
  params, state = network.init(jax.random.key(0), batch)

  def products(gather):
    loss = lambda params: network.apply(
        params, state, jax.random.key(0), batch, is_training=True,
        gather=gather)[0].logits.sum()
    return str(jax.make_jaxpr(jax.grad(loss))(params)).count('dot_general[')

  assert products(keep_whole) == products(None)  # None is computed again.


@pytest.mark.parametrize('precision, dtype', [
    ('float32', jnp.float32), ('bfloat16', jnp.bfloat16)])
def test_parameters_are_gathered_as_they_lie_and_used_in_the_compute_dtype(
    precision, dtype):
  seen = set()

  def gather(value, shape, wanted):
    seen.add((value.dtype, jnp.dtype(wanted)))
    return keep_whole(value, shape, wanted)

  network, batch = build(precision=precision), make_batch()
  params, state = network.init(jax.random.key(0), batch)
  gathered, whole = (
      network.apply(params, state, None, batch, is_training=False, gather=f)[0]
      for f in (gather, None))
  # What is cast before it is gathered has its gradient summed in that dtype.
  assert seen == {(jnp.dtype('float32'), jnp.dtype(dtype))}
  assert gathered.logits.dtype == whole.logits.dtype == dtype
  np.testing.assert_array_equal(
      *(np.float32(x.logits) for x in (gathered, whole)))


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_numbers_that_are_not_real_keep_their_dtype(precision):

  def counting(inputs, *, is_training, num_classes):
    table = hk.get_parameter('table', (8, 2), jnp.int32, jnp.ones)
    return hk.Linear(num_classes)(inputs.reshape(2, -1)) + table.sum()

  seen = {}

  def gather(value, shape, dtype):
    seen[tuple(shape)] = jnp.dtype(dtype)
    return keep_whole(value, shape, dtype)

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


def test_taps_of_the_config_come_before_those_of_the_model():
  config = config_lib.base().student
  config.model = 'vit'
  config.options = dict(patch_size=4, width=8, depth=DEPTH, heads=2)
  config.taps = dict(features='block_1')
  network = network_lib.build_network(
      config, title='student', num_classes=5, kinds=('features', 'attention'))
  batch = make_batch()
  params, state = network.init(jax.random.key(0), batch)
  output, _ = network.apply(params, state, None, batch, is_training=False)
  assert {kind: len(x) for kind, x in output.taps.items()} == dict(
      features=1, attention=DEPTH)
