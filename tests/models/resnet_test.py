"""Tests of resnet."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd.core import checks
from haikd.core import registry
from haikd.models import resnet

CIFAR = dict(blocks=(3, 3, 3), channels=(16, 32, 64), small_images=True)
TINY = dict(blocks=(1, 1), channels=(4, 8), small_images=True)


def transformed(**options):
  """Returns a network that trains; BatchNorm needs that to be initialised."""
  options = dict(num_classes=10, is_training=True) | options
  return hk.transform_with_state(lambda x: resnet.resnet(x, **options))


def shapes(size, **options):
  """Returns the shapes of the parameters for images of that size."""
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  init = transformed(**options).init
  return jax.eval_shape(init, jax.random.key(0), images)[0]


@pytest.mark.parametrize('depth, count', [(18, 11_689_512), (50, 25_557_032)])
def test_published_depths_have_their_published_number_of_parameters(
    depth, count):
  """The counts that are usually quoted, for 1000 classes."""
  params = shapes(224, depth=depth, num_classes=1000)
  assert hk.data_structures.tree_size(params) == count


def test_parameters_of_resnet_20_are_counted():
  """ResNet-20: three groups of three blocks.

  Stem 3·9·16 + 2·16 = 464. A block of C channels 2·(9·C² + 2·C), where the
  first of a group takes C/2 at half the cost of that kernel and adds a
  shortcut C/2·C + 2·C. Group 1: 3·4672 = 14016. Group 2: 4640 + 9280 + 576 =
  14496 (9·16·32 + 64 = 4672; 9·32·32 + 64 = 9280; 16·32 + 64 = 576), so 4672 +
  9280 + 576 + 2·18560 = 51648. Group 3: 18560 + 36992 + 2176 + 2·73984 =
  205696. Logits 64·10 + 10 = 650.
  """
  params = shapes(32, **CIFAR)
  expected = 464 + 14016 + 51648 + 205696 + 650
  assert hk.data_structures.tree_size(params) == expected


def test_parameters_of_wrn_16_2_are_counted():
  """WRN-16-2: groups of two blocks; every convolution has a norm before it.

  Stem 432. A norm before a kernel has 2 values a channel of its input. Group 1,
  16 to 32: 32 + 4608 + 64 + 9216 + 512 = 14432, then 2·(64 + 9216) = 18560.
  Group 2, 32 to 64: 64 + 18432 + 128 + 36864 + 2048 = 57536, then 73984. Group
  3, 64 to 128: 128 + 73728 + 256 + 147456 + 8192 = 229760, then 295424. The
  last norm 256, the logits 1290.
  """
  params = shapes(
      32,
      blocks=(2, 2, 2),
      channels=(32, 64, 128),
      stem=16,
      preactivation=True,
      small_images=True)
  expected = 432 + 32992 + 131520 + 525184 + 256 + 1290
  assert hk.data_structures.tree_size(params) == expected


@pytest.mark.parametrize('bottleneck, preactivation', [(False, False),
                                                       (True, True)])
def test_equals_hk_nets_resnet(bottleneck, preactivation):
  """Haiku's own network takes our parameters and returns our logits."""
  blocks, channels = (1, 2, 1, 1), (8, 8, 12, 16)
  ours = transformed(
      blocks=blocks,
      channels=channels,
      bottleneck=bottleneck,
      preactivation=preactivation,
      stem=8)
  theirs = hk.transform_with_state(
      lambda x: hk.nets.ResNet(
          blocks,
          num_classes=10,
          resnet_v2=preactivation,
          bottleneck=bottleneck,
          channels_per_group=channels,
          use_projection=(False, True, True, True),
          initial_conv_config=dict(output_channels=8))(x, is_training=True))
  x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
  generator = np.random.default_rng(0)
  params, state = jax.tree.map(
      lambda x: jnp.asarray(generator.normal(0.1, 0.3, x.shape), x.dtype),
      jax.eval_shape(ours.init, jax.random.key(0), x))
  logits, after = jax.jit(ours.apply)(params, state, None, x)
  expected, expected_after = jax.jit(theirs.apply)(params, state, None, x)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
  assert jax.tree.structure(after) == jax.tree.structure(expected_after)


@pytest.mark.parametrize('depth', (18, 50))
def test_parameters_have_the_names_and_shapes_of_hk_nets(depth):
  network = getattr(hk.nets, f'ResNet{depth}')
  init = hk.transform_with_state(lambda x: network(10)(x, True)).init
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  expected, _ = jax.eval_shape(init, jax.random.key(0), images)
  assert shapes(64, depth=depth) == expected


@pytest.mark.parametrize('small, sizes', [(False, (8, 4)), (True, (32, 16))])
def test_features_are_the_groups(small, sizes):
  """The stem for large images divides by four, each later group by two."""
  options = TINY | dict(
      small_images=small, num_classes=10, is_training=True)
  taps = registry.models['resnet'].taps
  net = hk.transform_with_state(
      haikd.capture(lambda x: resnet.resnet(x, **options), taps))
  x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  params, state = jax.eval_shape(net.init, jax.random.key(0), x)
  (_, captured), _ = jax.eval_shape(net.apply, params, state, None, x)
  expected = [(2, size, size, c) for size, c in zip(sizes, (4, 8))]
  assert [value.shape for value in captured['features']] == expected


def test_width_multiplies_all_channels():
  kernels = {
      path: leaves['w'].shape
      for path, leaves in shapes(16, width=1.5, **TINY).items()
      if 'w' in leaves
  }
  assert kernels['res_net/~/initial_conv'] == (3, 3, 3, 6)
  assert kernels['res_net/~/block_group_1/~/block_0/~/conv_1'] == (3, 3, 12, 12)
  assert kernels['res_net/~/logits'] == (12, 10)


@pytest.mark.parametrize('options, text', [
    (dict(), '^depth must be given, or both blocks and channels; got depth=No'),
    (dict(depth=20), '^depth must be one of 18, 34, .* got 20. Give blocks'),
    (dict(depth=18, blocks=(1,)),
     '^depth must come alone; got depth=18 and blocks'),
    (dict(depth=18, bottleneck=False),
     '^depth must come alone; got depth=18 and bottleneck'),
    (dict(blocks=(1, 1)), '^depth must be given, or both blocks and channels; '
     r'got depth=None, blocks=\(1, 1\), channels=None'),
    (dict(blocks=(), channels=()),
     r'^blocks must hold one or more positive integers; got \(\)'),
    (dict(blocks=(1, 1), channels=(4,)),
     '^blocks must have as many groups as channels; got blocks='),
    (dict(depth=18, width=0.001),
     '^width must leave at least one channel; got 0.001 for 64 channels'),
    (dict(blocks=(1,), channels=(6,), bottleneck=True),
     '^channels must be multiples of 4 with bottlenecks'),
    (dict(depth=18, stem=0), '^stem must be a positive integer; got 0'),
])
def test_invalid_options_are_refused(options, text):
  with pytest.raises(checks.ConfigError, match=text):
    shapes(32, **options)
