"""Tests of convnet."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd.core import checks
from haikd.core import registry
from haikd.models import convnet


def transformed(**options):
  """Returns a network that trains; BatchNorm needs that to be initialised."""
  options = dict(num_classes=3, is_training=True) | options
  return hk.transform_with_state(lambda x: convnet.convnet(x, **options))


def stages(x, **options):
  """Returns the parameters and the outputs of the stages."""
  options = dict(num_classes=3, is_training=True) | options
  net = hk.transform_with_state(
      haikd.capture(lambda x: convnet.convnet(x, **options),
                    registry.models['convnet'].taps))

  def run(x):
    params, state = net.init(jax.random.key(0), x)
    (_, taps), _ = net.apply(params, state, None, x)
    return params, taps['features']

  return jax.jit(run)(x)


@pytest.mark.parametrize('norm, count', [
    ('none', (2 * 9 * 4 + 4) + (4 * 9 * 6 + 6)),
    ('batch', (2 * 9 * 4 + 2 * 4) + (4 * 9 * 6 + 2 * 6)),
    ('group', (2 * 9 * 4 + 2 * 4) + (4 * 9 * 6 + 2 * 6)),
])
def test_parameters_are_counted(norm, count):
  """3x3 kernels; a bias, or scale and offset of the norm; then 6·3 + 3."""
  net = transformed(channels=(4, 6), norm=norm, groups=2)
  params, _ = jax.eval_shape(net.init, jax.random.key(0),
                             jnp.ones((1, 8, 8, 2)))
  assert hk.data_structures.tree_size(params) == count + 21


@pytest.mark.parametrize('pool, sizes', [
    ('max', [(4, 3), (2, 1)]),
    ('avg', [(4, 3), (2, 1)]),
    ('none', [(8, 7), (8, 7)]),
])
def test_stages_halve_the_image(pool, sizes):
  """8 halves to 4 and 2; 7 to 3 and 1, rounded down."""
  _, outputs = jax.eval_shape(
      lambda x: stages(x, channels=(4, 6), pool=pool), jnp.ones((2, 8, 7, 1)))
  expected = [(2, *size, c) for size, c in zip(sizes, (4, 6))]
  assert [out.shape for out in outputs] == expected


@pytest.mark.parametrize('pool, reduce', [('max', np.max), ('avg', np.mean)])
def test_pooling_equals_numpy(pool, reduce):
  """A stage with pooling gives the pooled output of one without."""
  x = jax.random.normal(jax.random.key(1), (2, 4, 6, 1))
  _, (plain,) = stages(x, channels=(3,), norm='none', pool='none')
  _, (pooled,) = stages(x, channels=(3,), norm='none', pool=pool)
  windows = np.reshape(plain, (2, 2, 2, 3, 2, 3))
  np.testing.assert_allclose(pooled, reduce(windows, axis=(2, 4)), atol=1e-6)


def test_a_stage_equals_numpy():
  """The kernel covers a 3x3 image at its middle pixel: a dot product."""
  x = jax.random.normal(jax.random.key(1), (2, 3, 3, 2))
  params, (out,) = stages(x, channels=(4,), norm='none', pool='none')
  kernel = params['stage_0/conv']['w']
  expected = np.maximum(np.einsum('bhwc,hwcd->bd', x, kernel), 0)
  np.testing.assert_allclose(out[:, 1, 1], expected, atol=1e-5)


def test_batch_norm_keeps_a_running_mean():
  """After one step Haiku's debiased mean is that of the batch.

  The network then computes the same in inference as in training.
  """
  x = jax.random.normal(jax.random.key(1), (5, 4, 4, 1))
  net = transformed(channels=(3,))
  params, state = jax.jit(net.init)(jax.random.key(0), x)
  trained, state = jax.jit(net.apply)(params, state, None, x)
  net = transformed(is_training=False, channels=(3,))
  rested, _ = jax.jit(net.apply)(params, state, None, x)
  np.testing.assert_allclose(trained, rested, atol=1e-4)


@pytest.mark.parametrize('options, text', [
    (dict(channels=()),
     r'^channels must hold one or more positive integers; got \(\)'),
    (dict(norm='layer'), "^norm must be a known name; got 'layer'"),
    (dict(pool='mean'), "^pool must be a known name; got 'mean'"),
    (dict(norm='group', groups=3),
     '^groups must divide each of channels; got groups=3, channels='),
    (dict(channels=(4,) * 4), '^channels must have few enough stages .* got '
     r'channels=\(4, 4, 4, 4\), inputs.shape='),
    (dict(decay=1.0), '^decay must be at least 0 and below 1; got 1.0'),
])
def test_invalid_options_are_refused(options, text):
  with pytest.raises(checks.ConfigError, match=text):
    transformed(**options).init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))


def test_grey_images_without_channels_are_refused():
  text = r'^inputs must be images \[B, h, w, C\]; got inputs.shape='
  with pytest.raises(ValueError, match=text):
    transformed().init(jax.random.key(0), jnp.ones((1, 8, 8)))
