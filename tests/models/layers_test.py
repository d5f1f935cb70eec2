"""What the models' layers compute, on numbers worked out by hand."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd.models import layers
from haikd.network import precision


@pytest.mark.parametrize('offset', (True, False))
def test_layer_norm(offset):
  norm = hk.transform(
      lambda x: layers.LayerNorm(3.0, 'norm', offset=offset)(x))
  params = {'norm': dict(scale=jnp.float32([2, 4]))}
  if offset:
    params['norm']['offset'] = jnp.float32([10, 20])
  # A row of mean 2 and variance 1 is divided by the root of 1 + 3, that of mean
  # 0 and variance 6 by 3.
  inputs = jnp.float32([[[1, 3]], [[6**0.5, -6**0.5]]])
  outputs = norm.apply(params, None, inputs)
  expected = np.float32([[[-1, 2]], [[2 * 6**0.5 / 3, -4 * 6**0.5 / 3]]])
  np.testing.assert_allclose(
      outputs, expected + (np.float32([10, 20]) if offset else 0), rtol=1e-6)
  initial = norm.init(jax.random.key(0), inputs)
  assert jax.tree.map(jnp.shape, initial) == jax.tree.map(jnp.shape, params)


def test_layer_norm_has_the_gradient_of_haiku():
  inputs = jax.random.normal(jax.random.key(0), (2, 3, 5)) + 7

  def gradient(norm):
    function = hk.transform(lambda x: jnp.sum(jnp.sin(norm()(x))))
    params = function.init(jax.random.key(1), inputs)
    return jax.grad(function.apply, argnums=(0, 2))(params, None, inputs)

  expected = gradient(lambda: hk.LayerNorm(-1, True, True, name='norm'))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6),
               gradient(lambda: layers.LayerNorm(1e-5, 'norm')), expected)


def test_layer_norm_computes_in_float32():
  norm = hk.transform(lambda x: layers.LayerNorm(1e-5, 'norm')(x))
  inputs = jax.random.normal(jax.random.key(0), (4, 64)).astype(jnp.bfloat16)
  params = norm.init(jax.random.key(1), inputs.astype(jnp.float32))
  with precision.norms_in_float32():
    outputs = norm.apply(params, None, inputs)
  expected = norm.apply(params, None, inputs.astype(jnp.float32))
  np.testing.assert_array_equal(outputs, expected.astype(jnp.bfloat16))
