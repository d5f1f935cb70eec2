"""`tap`: what capture sees of it, and what it leaves in a network."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd.core import base
from haikd.core import tap as tap_lib


class Block(hk.Module):

  def __call__(self, x):
    x = hk.Linear(3, name='linear')(x)
    tap_lib.tap('inner', x)
    return jnp.tanh(x)


class Pair(hk.Module):
  """Taps two values under one name."""

  def __call__(self, x):
    return tap_lib.tap('maps', x) + tap_lib.tap('maps', 2 * x)


def plain(x):
  for _ in range(2):
    x = Block(name='block')(x)
  return x


def remat(x):
  return hk.remat(Block(name='block'))(x)


def stacked(x):
  return hk.layer_stack(2)(lambda x: Block(name='block')(x))(x)


def stacked_remat(x):
  return hk.layer_stack(2)(lambda x: hk.remat(Block(name='block'))(x))(x)


def observed(function, *args):
  """Returns {path: output} of the taps called while `function` runs."""
  seen = {}

  def interceptor(call, call_args, kwargs, context):
    out = call(*call_args, **kwargs)
    if isinstance(context.module, tap_lib.Tap):
      if context.method_name == '__call__':
        seen[context.module.module_name] = out
    return out

  def wrapped(*args):
    with hk.experimental.intercept_methods(interceptor):
      return function(*args)

  net = hk.transform(wrapped)
  params = net.init(jax.random.key(0), *args)
  seen.clear()
  net.apply(params, None, *args)
  return seen


def test_tap_returns_its_value_and_is_seen_at_its_path():
  x = jnp.arange(3.0)
  seen = observed(lambda x: tap_lib.tap('here', x), x)
  np.testing.assert_array_equal(seen['here'], x)


def test_tap_takes_a_pytree():
  value = base.QueryKey(jnp.ones((1, 2, 1, 3)), jnp.ones((1, 2, 1, 3)))
  seen = observed(lambda value: tap_lib.tap('maps', value).query, value)
  assert isinstance(seen['maps'], base.QueryKey)


def test_name_used_twice_in_a_module_is_numbered():
  seen = observed(lambda x: Pair(name='pair')(x), jnp.ones(2))
  assert {path: float(value[0]) for path, value in seen.items()} == {
      'pair/maps': 1.0,
      'pair/maps_1': 2.0
  }


def test_each_module_has_its_own_tap():
  seen = observed(plain, jnp.ones((1, 3)))
  assert list(seen) == ['block/inner', 'block_1/inner']


@pytest.mark.parametrize('network', (remat, stacked, stacked_remat))
def test_tap_is_seen_inside_transformed_modules(network):
  seen = observed(network, jnp.ones((1, 3)))
  assert [path.split('/')[-2:] for path in seen] == [['block', 'inner']]


@pytest.mark.parametrize('network', (plain, remat, stacked, stacked_remat))
def test_tap_adds_neither_parameters_nor_computation(network):
  x = jnp.ones((2, 3))
  net = hk.transform(network)
  params = net.init(jax.random.key(0), x)
  assert all(path.endswith('block/linear') or path.endswith('block_1/linear')
             for path in params)
  jaxpr = str(jax.make_jaxpr(net.apply)(params, None, x))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tap_lib, 'tap', lambda name, value: value)
    assert str(jax.make_jaxpr(net.apply)(params, None, x)) == jaxpr


@pytest.mark.parametrize('network', (plain, remat, stacked, stacked_remat))
def test_gradients_flow_through_a_tap(network):
  """Compares with the same network without taps."""
  x = jax.random.normal(jax.random.key(1), (2, 3))
  net = hk.transform(lambda x: tap_lib.tap('out', network(x)))
  bare = hk.transform(network)
  params = net.init(jax.random.key(0), x)
  grads = jax.grad(lambda p: jnp.sum(net.apply(p, None, x)))(params)
  expected = jax.grad(lambda p: jnp.sum(bare.apply(p, None, x)))(params)
  jax.tree.map(np.testing.assert_array_equal, grads, expected)
  assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))


def test_name_that_is_not_an_identifier_is_refused():
  with pytest.raises(ValueError, match='valid module name'):
    observed(lambda x: tap_lib.tap('a b', x), jnp.ones(2))
