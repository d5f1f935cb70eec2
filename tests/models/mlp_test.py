"""Tests of mlp."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd.core import checks
from haikd.core import registry
from haikd.models import mlp


def transformed(**options):
  options = dict(num_classes=3, is_training=False) | options
  return hk.without_apply_rng(hk.transform(lambda x: mlp.mlp(x, **options)))


def test_parameters_are_counted():
  """[4, 4, 2] is 32 inputs: 32·5 + 5 and 5·7 + 7 and 7·3 + 3."""
  params = transformed(hidden=(5, 7)).init(
      jax.random.key(0), jnp.ones((2, 4, 4, 2)))
  assert hk.data_structures.tree_size(params) == 165 + 42 + 24


def test_logits_equal_numpy():
  x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
  net = transformed(hidden=[5], activation='tanh')
  params = net.init(jax.random.key(0), x)
  first, last = params['hidden_0/linear'], params['logits']
  expected = np.tanh(x @ first['w'] + first['b']) @ last['w'] + last['b']
  np.testing.assert_allclose(net.apply(params, x), expected, atol=1e-6)


def test_the_tapped_hidden_layer_is_free_of_dropout():
  """relu(1·w) has a zero only where w is negative, dropout would add some."""
  seen = []

  def interceptor(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if isinstance(context.module, mlp.Hidden):
      if context.method_name == '__call__':
        seen.append(out)
    return out

  net = hk.transform(
      lambda x: mlp.mlp(
          x, num_classes=2, is_training=True, hidden=(50,), dropout=0.9))
  params = net.init(jax.random.key(0), jnp.ones((1, 1)))
  with hk.experimental.intercept_methods(interceptor):
    net.apply(params, jax.random.key(1), jnp.ones((1, 1)))
  kernel = params['hidden_0/linear']['w']
  np.testing.assert_allclose(seen[0], np.maximum(kernel, 0))


def test_features_are_the_hidden_layers():
  assert registry.models['mlp'].taps == dict(features='hidden_*')


@pytest.mark.parametrize('options, text', [
    (dict(hidden=()), r'models.mlp: hidden must hold .* got hidden=\(\)'),
    (dict(hidden=(4, 0)), r'models.mlp: hidden must hold .* got hidden=\(4, 0'),
    (dict(hidden=4), r'models.mlp: hidden must hold .* got hidden=4'),
    (dict(activation='rellu'), "activation='rellu'. Did you mean 'relu'"),
    (dict(dropout=1.0), 'models.mlp: dropout must .* got dropout=1.0'),
    (dict(num_classes=0), 'models.mlp: num_classes must .* got num_classes=0'),
])
def test_options_that_cannot_be_are_refused(options, text):
  with pytest.raises(checks.ConfigError, match=text):
    transformed(**options).init(jax.random.key(0), jnp.ones((1, 4)))
