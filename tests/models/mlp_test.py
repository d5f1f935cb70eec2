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


def test_captured_hidden_layers_have_no_dropout():
  """relu(1·w) is 0 only where w is negative; dropout would add zeros."""
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
    (dict(hidden=()),
     r'^hidden must hold one or more positive integers; got \(\)'),
    (dict(hidden=(4, 0)),
     r'^hidden must hold one or more positive integers; got \(4, 0\)'),
    (dict(hidden=4), '^hidden must hold one or more positive integers; got 4'),
    (dict(activation='rellu'),
     "^activation must be a known name; got 'rellu'. Did you mean 'relu'"),
    (dict(dropout=1.0), '^dropout must be at least 0 and below 1; got 1.0'),
    (dict(num_classes=0), '^num_classes must be a positive integer; got 0'),
])
def test_invalid_options_are_refused(options, text):
  with pytest.raises(checks.ConfigError, match=text):
    transformed(**options).init(jax.random.key(0), jnp.ones((1, 4)))
