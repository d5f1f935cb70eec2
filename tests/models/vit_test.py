"""Tests of vit."""

import fnmatch
import functools
import math

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.models import transformer
from haikd.models import vit

SMALL = dict(
    num_classes=3, is_training=False, patch_size=2, width=8, depth=3, heads=2)


def transformed(**options):
  return hk.transform(lambda x: vit.vit(x, **(SMALL | options)))


def images(dtype=jnp.float32):
  return jax.random.normal(jax.random.key(1), (2, 4, 6, 2), dtype)


def stack(params, depth):
  """Returns the unrolled network's parameters as the looped network's."""
  stacked = {}
  for path, leaves in params.items():
    first, _, rest = path.partition('/')
    if first == 'block_0':
      layers = [params[f'block_{i}/{rest}'] for i in range(depth)]
      stacked[f'__layer_stack_no_per_layer/block/{rest}'] = jax.tree.map(
          lambda *xs: jnp.stack(xs), *layers)
    elif not first.startswith('block_'):
      stacked[path] = leaves
  return stacked


def linear(params, x):
  return x @ params['w'] + params.get('b', 0)


def norm(params, x, epsilon):
  centred = x - x.mean(-1, keepdims=True)
  scaled = centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + epsilon)
  return scaled * params['scale'] + params['offset']


def gelu(x):
  return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def reference(params, images, *, depth=3, heads=2, size=2, epsilon=1e-6):
  """Returns logits, maps and features of one image at a time, in float64."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  logits, maps, features = [], [], []
  for image in np.asarray(images, np.float64):
    patches = [
        image[row:row + size, column:column + size].ravel()
        for row in range(0, image.shape[0], size)
        for column in range(0, image.shape[1], size)
    ]
    x = linear(params['embed/patches'], np.stack(patches))
    tokens = [params['embed'][name][0]
              for name in ('token', 'distillation_token')
              if name in params['embed']]
    x = np.concatenate([*tokens, x])
    x = x + params['embed']['positions']
    for i in range(depth):
      at = lambda name: params[f'block_{i}/{name}']  # noqa: B023
      y = norm(at('norm_attn'), x, epsilon)
      query, key, value = (
          np.split(linear(at(f'attn/{name}'), y), heads, axis=-1)
          for name in ('query', 'key', 'value'))
      mixed = []
      for q, k, v in zip(query, key, value):
        scores = np.exp(q @ k.T / math.sqrt(q.shape[-1]))
        maps.append(scores / scores.sum(-1, keepdims=True))
        mixed.append(maps[-1] @ v)
      x = x + linear(at('attn/output'), np.concatenate(mixed, -1))
      y = gelu(linear(at('mlp/up'), norm(at('norm_mlp'), x, epsilon)))
      x = x + linear(at('mlp/down'), y)
      features.append(x)
    x = norm(params['norm'], x, epsilon)
    pooled = x[0] if 'token' in params['embed'] else x.mean(0)
    logits.append(linear(params['logits'], pooled))
    if 'distillation_logits' in params:
      second = linear(params['distillation_logits'], x[1])
      logits[-1] = (logits[-1] + second) / 2
  batch = len(images)
  maps = np.reshape(maps, (batch, depth, heads, *maps[0].shape))
  features = np.reshape(features, (batch, depth, *features[0].shape))
  return np.stack(logits), maps.swapaxes(0, 1), features.swapaxes(0, 1)


def random_params(**options):
  """Returns parameters none of which is 0 or 1."""
  shapes = jax.eval_shape(
      transformed(**options).init, jax.random.key(0), images())
  generator = np.random.default_rng(0)
  return jax.tree.map(
      lambda x: jnp.asarray(generator.normal(0.1, 0.3, x.shape), x.dtype),
      shapes)


@pytest.mark.parametrize('options, count', [
    (dict(), 5_717_416),
    (dict(width=768, heads=12), 86_567_656),
])
def test_published_sizes_have_their_published_number_of_parameters(
    options, count):
  """The counts of DeiT-Ti and ViT-B for 224 pixels and 1000 classes.

  12 blocks of 12·D² + 13·D each; the patches 768·D + D, the token and 196 + 1
  positions D each, the last norm 2·D, and the logits 1000·(D + 1).
  """
  net = hk.transform(
      lambda x: vit.vit(x, is_training=False, num_classes=1000, **options))
  params = jax.eval_shape(net.init, jax.random.key(0),
                          jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
  width = options.get('width', 192)
  assert count == (12 * (12 * width**2 + 13 * width) + 769 * width +
                   (1 + 197 + 2) * width - width + 1000 * (width + 1) + width)
  assert hk.data_structures.tree_size(params) == count


@pytest.mark.parametrize('pool', vit.POOLS)
@pytest.mark.parametrize('wrap', (lambda f: f, jax.jit), ids=('eager', 'jit'))
def test_logits_equal_numpy(pool, wrap):
  params = random_params(pool=pool)
  logits = wrap(transformed(pool=pool).apply)(params, None, images())
  expected, _, _ = reference(params, images())
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('options, count', [
    (dict(), 0),
    (dict(qkv_bias=False), -3 * 3 * 8),
    (dict(distilled=True), 8 + 8),
    (dict(distilled=True, distillation_head=True), 8 + 8 + 3 * (8 + 1)),
])
def test_logits_of_other_networks_equal_numpy(options, count):
  """They have `count` more parameters than the default, worked out by hand."""
  default, params = random_params(), random_params(**options)
  size = hk.data_structures.tree_size
  assert size(params) - size(default) == count
  logits = jax.jit(transformed(**options).apply)(params, None, images())
  expected, _, _ = reference(params, images())
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_epsilon_is_added_to_the_variance():
  params = random_params()
  expected, _, _ = reference(params, images(), epsilon=0.3)
  logits = jax.jit(transformed(epsilon=0.3).apply)(params, None, images())
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_mlp_ratio_gives_the_hidden_units_it_was_made_from():
  """In floating point 15 / 22 x 22 is 14.99…."""
  assert int(15 / 22 * 22) == 14
  options = dict(width=22, mlp_ratio=15 / 22)
  params = jax.eval_shape(
      transformed(**options).init, jax.random.key(0), images())
  assert params['block_0/mlp/up']['w'].shape == (22, 15)


@pytest.mark.parametrize('scan', (False, True))
def test_default_taps_equal_numpy(scan):
  params = random_params()
  _, maps, features = reference(params, images())
  options = SMALL | dict(scan=scan)
  net = hk.transform(
      haikd.capture(lambda x: vit.vit(x, **options),
                    registry.models['vit'].taps))
  if scan:
    params = stack(params, 3)
  _, captured = jax.jit(net.apply)(params, None, images())
  assert len(captured['attention']) == len(captured['features']) == 3
  for i in range(3):
    query_key = captured['attention'][i]
    assert isinstance(query_key, base.QueryKey)
    np.testing.assert_allclose(query_key.materialise(), maps[i], atol=1e-4)
    np.testing.assert_allclose(
        captured['features'][i], features[i], rtol=1e-4, atol=1e-4)


def test_scan_computes_the_same_function_and_gradient():

  def loss(params, **options):
    net = transformed(**options)
    return jnp.sum(jnp.sin(net.apply(params, None, images())))

  params = random_params()
  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  function = functools.partial(loss, scan=True)
  same_params, expected = (stack(tree, 3) for tree in (params, grads))
  same_value, same_grads = jax.jit(jax.value_and_grad(function))(same_params)
  np.testing.assert_allclose(same_value, value, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
               same_grads, expected)


@pytest.mark.parametrize('dtype, tolerance', [(jnp.bfloat16, 0.03),
                                              (jnp.float16, 0.004)])
def test_attention_in_half_precision_is_close_to_float32(dtype, tolerance):
  """The error is a few times 2^-8 or 2^-11, relative to the largest value."""
  net = hk.transform(lambda x: transformer.Attention(2)(x))
  x = jax.random.normal(jax.random.key(1), (2, 5, 8))
  params = jax.jit(net.init)(jax.random.key(0), x)

  def loss(params, x):
    return jnp.sum(jnp.sin(net.apply(params, None, x).astype(jnp.float32)))

  run = jax.jit(jax.grad(loss, argnums=1))
  expected = run(params, x)
  half = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, x))
  assert jax.eval_shape(net.apply, half[0], None, half[1]).dtype == dtype
  error = np.max(np.abs(run(*half).astype(jnp.float32) - expected))
  assert error < tolerance * np.max(np.abs(expected))


def test_stacked_blocks_start_out_different():
  params = jax.jit(transformed(scan=True).init)(jax.random.key(0), images())
  kernel = params['__layer_stack_no_per_layer/block/mlp/up']['w']
  assert kernel.shape == (3, 8, 32)
  assert not np.array_equal(kernel[0], kernel[1])
  np.testing.assert_allclose(np.std(kernel[0]), 1 / np.sqrt(8), rtol=0.2)


def test_linear_maps_of_attention_keep_the_axis_of_positions():
  taps = dict(query='attn/query', value='attn/value', output='attn/output')
  net = hk.transform(haikd.capture(lambda x: vit.vit(x, **SMALL), taps))
  params = jax.eval_shape(net.init, jax.random.key(0), images())
  _, captured = jax.eval_shape(net.apply, params, None, images())
  shapes = {kind: value[2].shape for kind, value in captured.items()}
  assert shapes == dict.fromkeys(taps, (2, 7, 8))


@pytest.mark.parametrize('options, text', [
    (dict(patch_size=3), '^patch_size must divide the height and width of '
     'images; got patch_size=3, inputs.shape='),
    (dict(width=10, heads=4), '^heads must divide width; got heads=4, width=10.'
     ' It divides 8 and 12'),
    (dict(width=3, heads=4), '^heads must divide width; got heads=4, width=3. '
     'It divides 4 and 8'),
    (dict(depth=0), '^depth must be a positive integer; got 0'),
    (dict(pool='cls'), "^pool must be a known name; got 'cls'"),
    (dict(mlp_ratio=0.1), '^mlp_ratio must give at least one hidden unit; got '
     'mlp_ratio=0.1, width=8'),
    (dict(epsilon=0), '^epsilon must be a number above 0; got 0'),
    (dict(image_size=4), '^images must be 4 x 4 x 2, as image_size and '
     'channels say; got 4 x 6 x 2. Resize'),
    (dict(channels=3), '^images must be 4 x 6 x 3, as image_size and channels '
     'say; got 4 x 6 x 2. Resize'),
    (dict(pool='mean', distilled=True),
     "^pool must be 'token' with a distillation token; got pool='mean'"),
    (dict(distillation_head=True),
     '^distilled must be True for distillation_head'),
    (dict(dropout=-0.1), '^dropout must be at least 0 and below 1; got -0.1'),
])
def test_invalid_options_are_refused(options, text):
  with pytest.raises(checks.ConfigError, match=text):
    transformed(**options).init(jax.random.key(0), images())


@pytest.mark.parametrize('scan', (False, True))
def test_tensor_axes_fit_the_parameters(scan):
  """Each glob matches parameters; its axis is that of heads or units."""
  shapes = jax.eval_shape(
      transformed(mlp_ratio=4.0, scan=scan).init, jax.random.key(0), images())
  flat = {f'{path}/{name}': leaf.shape
          for path, leaves in shapes.items() for name, leaf in leaves.items()}
  for glob, axis in registry.models['vit'].tensor.items():
    sizes = [shape[axis] for name, shape in flat.items()
             if fnmatch.fnmatch(name, f'*/{glob}')]
    assert set(sizes) == {32 if 'mlp' in glob else 8}, glob
