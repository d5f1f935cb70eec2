"""Tests of llama."""

import fnmatch
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
from haikd.core import transposed
from haikd.models import decoder
from haikd.models import llama
from haikd.models import rotary
from haikd.models import sequences

V, D, DEPTH, H, G, K = 11, 12, 3, 4, 2, 6
SMALL = dict(num_classes=V, width=D, depth=DEPTH, heads=H, key_value_heads=G,
             head_size=K, hidden=10, rope_base=100.0)
STACK = '__layer_stack_no_per_layer/block/'

TOKENS = np.random.default_rng(0).integers(0, V, (4, 5))
# No padding, padding on the right, on the left, and on both sides.
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1],
                 [0, 1, 1, 1, 0]], bool)


def transformed(**options):
  options = dict(is_training=False) | SMALL | options
  return hk.transform(
      lambda tokens, mask: llama.llama(tokens, mask=mask, **options))


def logits(params, tokens=TOKENS, mask=MASK, **options):
  output = transformed(**options).apply(params, None, tokens, mask)
  return output.materialise()


def random_params(**options):
  """Returns parameters none of which is 0 or 1."""
  shapes = jax.eval_shape(
      transformed(**options).init, jax.random.key(0), TOKENS, MASK)
  generator = np.random.default_rng(0)
  return jax.tree.map(
      lambda x: jnp.asarray(generator.normal(0.1, 0.4, x.shape), x.dtype),
      shapes)


def stack(params):
  """Returns the unrolled network's parameters as the looped network's."""
  stacked = {}
  for path, leaves in params.items():
    first, _, rest = path.partition('/')
    if first == 'block_0':
      blocks = [params[f'block_{i}/{rest}'] for i in range(DEPTH)]
      stacked[STACK + rest] = jax.tree.map(lambda *xs: jnp.stack(xs), *blocks)
    elif not first.startswith('block_'):
      stacked[path] = leaves
  return stacked


def norm(params, x, epsilon):
  return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + epsilon) * (
      params['scale'])


def rotated(x, position, rope_base=100.0):
  """Rotates one head, `[K]`, as K/2 complex numbers (x_i, x_{i + K/2})."""
  size = len(x) // 2
  turn = np.exp(1j * position * rope_base**(-np.arange(size) / size))
  turned = (x[:size] + 1j * x[size:]) * turn
  return np.concatenate([turned.real, turned.imag])


def reference(params, tokens, mask, *, heads=H, groups=G, epsilon=1e-5):
  """Returns logits, maps and features, position by position, in float64.

  The real tokens of a row have the positions 0, 1, 2 and so on. Attention gives
  0 to a position that may attend to nothing.
  """
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  table = params['embed']['embeddings']
  kernel = params['logits']['w'] if 'logits' in params else table.T
  out = dict(logits=[], maps=[], features=[])
  for row, real in zip(tokens, mask):
    positions = [max(sum(real[:i + 1]) - 1, 0) for i in range(len(row))]
    x = table[row]
    for i in range(DEPTH):
      at = lambda name: params[f'block_{i}/{name}']  # noqa: B023
      y = norm(at('norm_attn'), x, epsilon)
      query, key, value = (
          (y @ at(f'attn/{name}')['w']).reshape(len(row), count, -1)
          for name, count in (('query', heads), ('key', groups),
                              ('value', groups)))
      maps = np.zeros((heads, len(row), len(row)))
      mixed = np.zeros((len(row), heads, query.shape[-1]))
      for head in range(heads):
        group = head * groups // heads
        for n in range(len(row)):
          seen = [m for m in range(n + 1) if real[m]]
          scores = np.array([
              rotated(query[n, head], positions[n])
              @ rotated(key[m, group], positions[m]) for m in seen])
          weights = np.exp(scores / math.sqrt(query.shape[-1]))
          maps[head, n, seen] = weights / weights.sum() if seen else 0
          mixed[n, head] = maps[head, n] @ value[:, group]
      x = x + mixed.reshape(len(row), -1) @ at('attn/output')['w']
      y = norm(at('norm_mlp'), x, epsilon)
      gate = y @ at('mlp/gate')['w']
      hidden = gate / (1 + np.exp(-gate)) * (y @ at('mlp/up')['w'])
      x = x + hidden @ at('mlp/down')['w']
      out['maps'].append(maps)
      out['features'].append(x)
    out['logits'].append(norm(params['norm'], x, epsilon) @ kernel)
  by_layer = lambda values: np.swapaxes(
      np.reshape(values, (len(tokens), DEPTH, *values[0].shape)), 0, 1)
  return (np.stack(out['logits']), by_layer(out['maps']),
          by_layer(out['features']))


@pytest.mark.parametrize('tied', (False, True))
@pytest.mark.parametrize('scan', (False, True))
def test_logits_equal_numpy(tied, scan):
  params = random_params(tied=tied)
  assert ('logits' in params) != tied
  expected, _, _ = reference(params, TOKENS, MASK)
  function = jax.jit(lambda p: logits(p, tied=tied, scan=scan))
  actual = function(stack(params) if scan else params)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_tied_embeddings_are_handed_on_as_they_are():
  # A copy of their transpose would cost a pass over the table in each step.
  params = random_params(tied=True)
  output = jax.eval_shape(
      transformed(tied=True).apply, params, None, TOKENS, MASK)
  assert isinstance(output.kernel, transposed.Transposed)
  assert output.kernel.table.shape == (V, D)


@pytest.mark.slow
def test_logits_agree_in_eager_and_jit():
  params = random_params()
  np.testing.assert_allclose(
      logits(params), jax.jit(logits)(params), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('heads, groups', [(4, 4), (4, 1)])
def test_other_groups_of_heads_equal_numpy(heads, groups):
  options = dict(heads=heads, key_value_heads=groups)
  params = random_params(**options)
  expected, _, _ = reference(params, TOKENS, MASK, heads=heads, groups=groups)
  actual = jax.jit(lambda p: logits(p, **options))(params)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_epsilon_is_added_to_the_mean_square():
  params = random_params()
  expected, _, _ = reference(params, TOKENS, MASK, epsilon=0.3)
  actual = jax.jit(lambda p: logits(p, epsilon=0.3))(params)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('bias, modules', [
    ('qkv_bias', ('attn/query', 'attn/key', 'attn/value')),
    ('output_bias', ('attn/output',)),
    ('mlp_bias', ('mlp/gate', 'mlp/up', 'mlp/down'))])
def test_biases_are_where_the_options_want_them(bias, modules):
  params = jax.eval_shape(
      transformed(**{bias: True}).init, jax.random.key(0), TOKENS, MASK)
  biased = {path for path, leaves in params.items() if 'b' in leaves}
  assert biased == {
      f'block_{i}/{module}' for i in range(DEPTH) for module in modules}


def test_norms_of_queries_and_keys_are_over_each_head():
  """With a scale of 0 for keys, maps are uniform for any queries."""
  params = random_params(qk_norm='head')
  for i in range(DEPTH):
    assert params[f'block_{i}/attn/norm_query']['scale'].shape == (K,)
    params[f'block_{i}/attn/norm_key']['scale'] = jnp.zeros(K)
  net = hk.transform(haikd.capture(
      lambda: llama.llama(jnp.asarray(TOKENS), is_training=False,
                          qk_norm='head', **SMALL), dict(maps='attn/maps')))
  _, captured = jax.jit(lambda p: net.apply(p, None))(params)
  even = np.tri(5) / np.arange(1, 6)[:, None]
  for query_key in captured['maps']:
    maps = query_key.materialise()
    np.testing.assert_allclose(
        maps, np.broadcast_to(even, maps.shape), rtol=1e-6)


@pytest.mark.parametrize('scan', (False, True))
def test_default_taps_equal_numpy(scan):
  params = random_params()
  _, maps, features = reference(params, TOKENS, MASK)
  net = hk.transform(haikd.capture(
      lambda: llama.llama(jnp.asarray(TOKENS), mask=jnp.asarray(MASK),
                          is_training=False, scan=scan, **SMALL),
      registry.models['llama'].taps))
  params = stack(params) if scan else params
  _, captured = jax.jit(lambda p: net.apply(p, None))(params)
  assert len(captured['attention']) == len(captured['features']) == DEPTH
  for i in range(DEPTH):
    query_key = captured['attention'][i]
    assert isinstance(query_key, base.QueryKey)
    np.testing.assert_allclose(query_key.materialise(), maps[i], atol=1e-4)
    np.testing.assert_allclose(
        captured['features'][i], features[i], rtol=1e-4, atol=1e-4)


def test_more_than_twelve_blocks_are_looped_over():
  for depth, looped in ((12, False), (13, True)):
    params = jax.eval_shape(
        transformed(depth=depth).init, jax.random.key(0), TOKENS, MASK)
    assert (f'{STACK}mlp/up' in params) == looped


def test_a_later_token_changes_no_earlier_logits():
  params, function = random_params(), jax.jit(logits)
  before = function(params)
  for position in range(1, 5):
    tokens = TOKENS.copy()
    tokens[:, position] = (tokens[:, position] + 1) % V
    after = function(params, tokens)
    np.testing.assert_array_equal(after[:, :position], before[:, :position])
    assert not np.allclose(after[0, position:], before[0, position:])


@pytest.mark.parametrize('layers', (None, (0, 2)))
@pytest.mark.parametrize('scan', (False, True))
def test_a_window_hides_what_is_far_behind(layers, scan):
  params = random_params()
  params = stack(params) if scan else params
  net = hk.transform(haikd.capture(
      lambda: llama.llama(
          jnp.asarray(TOKENS), mask=jnp.asarray(MASK), is_training=False,
          window=2, window_layers=layers, scan=scan, **SMALL),
      dict(maps='attn/maps')))
  _, captured = jax.jit(lambda p: net.apply(p, None))(params)
  position = np.arange(5)
  causal = (position <= position[:, None]) & MASK[:, None]
  near = causal & (position > position[:, None] - 2)
  for i, query_key in enumerate(captured['maps']):
    seen = near if layers is None or i in layers else causal
    maps = query_key.materialise()
    np.testing.assert_array_equal(
        maps > 0, np.broadcast_to(seen[:, None], maps.shape))


def test_values_in_padding_do_not_matter():
  params, function = random_params(), jax.jit(logits)
  spoilt = function(params, np.where(MASK, TOKENS, V - 1 - TOKENS))
  np.testing.assert_array_equal(spoilt[MASK], function(params)[MASK])


def test_a_sequence_gives_the_same_wherever_it_starts():
  """The three real tokens of rows 1, 2 and 3 start at 0, 2 and 1."""
  tokens = np.zeros_like(TOKENS)
  tokens[MASK] = np.concatenate([TOKENS[0], *[[3, 1, 4]] * 3])
  actual = jax.jit(logits)(random_params(), tokens)[1:][MASK[1:]]
  first, *others = actual.reshape(3, 3, V)
  for other in others:
    np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-4)


def test_no_mask_and_a_mask_of_rows_mean_rows_without_padding():
  params, function = random_params(), jax.jit(logits)
  expected = function(params, TOKENS, np.ones((4, 5), bool))
  np.testing.assert_array_equal(function(params, TOKENS, None), expected)
  rows = function(params, TOKENS, np.array([True, False, True, True]))
  real = np.array([0, 2, 3])
  np.testing.assert_array_equal(rows[real], expected[real])


@pytest.mark.parametrize('scan', (False, True))
def test_rows_of_padding_give_finite_values_and_gradients(scan):
  mask = MASK.copy()
  mask[1:3] = False
  params = random_params()
  params = stack(params) if scan else params

  def loss(params):
    return jnp.sum(jnp.sin(logits(params, mask=mask, scan=scan)))

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  assert np.isfinite(value)
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert np.all(np.isfinite(leaf)), path
    assert np.any(leaf != 0), path


def test_rotation_equals_a_value_by_hand():
  """Base 100 and K = 4: position 3 turns (1, 0) by 3 and (0, 1) by 3/10.

  (1 + 0i) e^(3i) is cos 3 + i sin 3, and (0 + 1i) e^(0.3i) is
  -sin 0.3 + i cos 0.3; real parts come first.
  """
  mask = np.array([[False, True, True, True, True]])
  rows = sequences.read(np.zeros((1, 5), int), mask)
  head = np.broadcast_to(np.float32([1, 0, 0, 1]), (1, 5, 1, 4))
  actual = rotary.rotate(head, rotary.angles(rows, 4, 100.0))
  expected = [-0.9899925, -0.2955202, 0.1411200, 0.9553365]
  np.testing.assert_allclose(actual[0, 4, 0], expected, atol=1e-6)
  # The first real position, and padding before it, are not turned.
  np.testing.assert_array_equal(actual[0, :2, 0], head[0, :2, 0])


@pytest.mark.parametrize('scan', (False, True))
def test_bfloat16_follows_float32(scan):
  """The error is a few times 2^-8, relative to the largest logit."""
  params = random_params()
  expected = logits(params)
  params = stack(params) if scan else params
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  output = jax.jit(
      transformed(scan=scan).apply)(half, None, TOKENS, MASK)
  assert output.hidden.dtype == output.kernel.dtype == jnp.bfloat16
  error = np.abs(output.materialise() - expected)
  assert np.max(error) < 0.03 * np.max(np.abs(expected))


def test_modules_return_the_dtype_of_the_embedding(without_maps):
  dtypes = {}

  def interceptor(call, args, kwargs, context):
    out = call(*args, **kwargs)
    name = context.module.name
    if context.method_name == '__call__' and not name.startswith('norm'):
      dtypes[context.module.module_name] = without_maps(out)
    return out

  def run(params):
    with hk.intercept_methods(interceptor):
      return transformed().apply(params, None, TOKENS, MASK)

  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params())
  jax.eval_shape(run, half)
  leaf_dtypes = {leaf.dtype for name, out in dtypes.items()
                 for leaf in jax.tree.leaves(out) if leaf.dtype != bool}
  assert len(dtypes) > 9 * DEPTH and leaf_dtypes == {jnp.dtype(jnp.bfloat16)}


def test_only_training_is_random_and_only_with_dropout():
  params = random_params()
  for is_training, dropout in ((True, 0.5), (True, 0.0), (False, 0.5)):
    net = transformed(is_training=is_training, dropout=dropout, scan=True)
    apply = jax.jit(net.apply)
    one, two = (apply(stack(params), jax.random.key(i), TOKENS, MASK).hidden
                for i in (1, 2))
    assert np.array_equal(one, two) != (is_training and dropout > 0)


def test_dropout_is_on_the_embedding_and_at_the_end_of_each_branch(monkeypatch):
  # Doubling in place of dropout equals doubling the last kernel before it.
  monkeypatch.setattr(llama.layers, 'dropout', lambda x, *unused: 2 * x)
  params = random_params()
  actual = logits(params)
  monkeypatch.undo()
  doubled = {
      path: jax.tree.map(lambda x: 2 * x, leaves) if path.endswith(
          ('embed', 'attn/output', 'mlp/down')) else leaves
      for path, leaves in params.items()}
  np.testing.assert_allclose(actual, logits(doubled), rtol=1e-4, atol=1e-4)


def test_norms_are_computed_in_float32():
  """All of 1,200 bfloat16 outputs are the exact values, rounded once."""
  generator = np.random.default_rng(0)
  inputs, scale = (jnp.asarray(generator.normal(size=shape), jnp.bfloat16)
                   for shape in ((100, D), (D,)))
  net = hk.transform(lambda x: decoder.norm(
      x, 'norm', epsilon=1e-5, unit_offset=True))
  actual = net.apply(dict(norm=dict(scale=scale)), None, inputs)
  exact = np.asarray(inputs, np.float64)
  exact /= np.sqrt(np.mean(exact**2, -1, keepdims=True) + 1e-5)
  exact *= 1 + np.asarray(scale, np.float64)
  np.testing.assert_array_equal(actual, exact.astype(jnp.bfloat16))


def test_scale_of_embeddings_is_rounded_to_their_dtype():
  """The square root of 3072 is 55.4256, which as a bfloat16 is 55.5.

  transformers says so where it does the same (modeling_gemma2.py, 5.24).
  """
  tokens = jnp.zeros((1, 1), int)
  for dtype, expected in ((jnp.bfloat16, 55.5), (jnp.float32, 55.42563)):
    params = dict(embed=dict(embeddings=jnp.ones((1, 3072), dtype)))
    net = hk.transform(lambda x: decoder.Embed(1, 3072, 'sqrt_width')(x))
    assert float(net.apply(params, None, tokens)[0, 0, 0]) == pytest.approx(
        expected, abs=1e-5)


def test_scale_of_a_branch_is_not_rounded():
  """51 x 0.22 is 11.22; bfloat16 has 11.1875 and 11.25 next to it.

  PyTorch 2.13 gives 11.25 for torch.tensor(51., dtype=torch.bfloat16) * 0.22.
  With 0.22 as a bfloat16, 0.2197265625, it would be 11.1875.
  """
  actual = decoder.scaled(jnp.bfloat16(51), 0.22)
  assert actual.dtype == jnp.bfloat16 and float(actual) == 11.25


@pytest.mark.parametrize('unit_offset', (False, True))
def test_norms_start_out_with_a_scale_of_1(unit_offset):
  params = jax.jit(transformed(norm_unit_offset=unit_offset).init)(
      jax.random.key(0), TOKENS, MASK)
  scales = [leaves['scale'] for leaves in params.values() if 'scale' in leaves]
  assert len(scales) == 2 * DEPTH + 1
  for scale in scales:
    np.testing.assert_array_equal(scale, np.full(D, 1 - unit_offset))


def test_embedding_and_logits_start_out_small():
  """Normal with deviations 0.02 and 1 / sqrt(64), truncated at twice that.

  The truncated distribution has 0.8796 times the deviation.
  """
  options = SMALL | dict(num_classes=1000, width=64, depth=1)
  params = jax.jit(transformed(**options).init)(
      jax.random.key(0), TOKENS, MASK)
  for values, deviation in ((params['embed']['embeddings'], 0.02),
                            (params['logits']['w'], 1 / 8)):
    assert np.std(values) == pytest.approx(0.8796 * deviation, rel=0.02)
    assert 1.9 * deviation < np.max(np.abs(values)) <= 2 * deviation


def test_stacked_blocks_start_out_different():
  params = jax.jit(transformed(scan=True).init)(
      jax.random.key(0), TOKENS, MASK)
  kernel = params[f'{STACK}mlp/up']['w']
  assert kernel.shape == (DEPTH, D, 10)
  assert not np.array_equal(kernel[0], kernel[1])


def test_hidden_units_are_eight_thirds_of_the_width():
  """8/3 of 96 is 256, and of 97 is 258.7, which is rounded up to 320."""
  for width, hidden in ((96, 256), (97, 320)):
    params = jax.eval_shape(
        transformed(width=width, hidden=None).init, jax.random.key(0), TOKENS,
        MASK)
    assert params['block_0/mlp/up']['w'].shape == (width, hidden)


def test_tensor_axes_fit_the_parameters():
  """Each glob matches parameters; its axis is that of heads, units or D."""
  shapes = {}
  for experts in (None, 1):
    shapes |= jax.eval_shape(
        transformed(scan=True, qkv_bias=True, mlp_bias=True, experts=experts,
                    experts_per_token=1).init,
        jax.random.key(0), TOKENS, MASK)
  sizes = {'embed/embeddings': D, 'attn/query/*': H * K, 'attn/key/*': G * K,
           'attn/value/*': G * K, 'attn/output/w': H * K, 'mlp/gate/*': 10,
           'mlp/up/*': 10, 'mlp/down/w': 10, 'expert_*/gate/*': 10,
           'expert_*/up/*': 10, 'expert_*/down/w': 10, 'logits/w': V}
  flat = {f'{path}/{name}': leaf.shape
          for path, leaves in shapes.items() for name, leaf in leaves.items()}
  axes = registry.models['llama'].tensor
  assert set(axes) == set(sizes)
  for glob, axis in axes.items():
    shapes = [shape for name, shape in flat.items()
              if fnmatch.fnmatch(name, f'*{glob}')]
    assert len(shapes) == 1 + glob.endswith('*')
    assert {shape[axis] for shape in shapes} == {sizes[glob]}


@pytest.mark.parametrize('options, text', [
    (dict(num_classes=0), '^num_classes must be a positive integer; got 0'),
    (dict(depth=0), '^depth must be a positive integer; got 0'),
    (dict(width=13, head_size=None),
     '^heads must divide width; got heads=4, width=13. It divides 12 and 16'),
    (dict(key_value_heads=3), '^key_value_heads must divide heads; got '
     'key_value_heads=3, heads=4. It divides 3 and 6'),
    (dict(head_size=3), '^head_size must be even, .* got head_size=3'),
    (dict(hidden=0), '^hidden must be a positive integer; got 0'),
    (dict(dropout=1.0), '^dropout must be at least 0 and below 1; got 1.0'),
    (dict(rope_base=0), '^rope_base must be a number above 0; got 0'),
    (dict(epsilon=-1), '^epsilon must be a number above 0; got -1'),
    (dict(activation='glu'), "^activation must be a known name; got 'glu'"),
    (dict(rope_scaling=dict(kind='ntk')),
     '^rope_scaling must be None or a dict whose kind is one of'),
    (dict(window=0), '^window must be a positive integer; got 0'),
    (dict(window_layers=(1,)), '^window must be given with window_layers; got '
     r'window=None, window_layers=\(1,\)'),
    (dict(window=2, window_layers=(0, 3)), '^window_layers must be blocks, '
     r'from 0 to 2; got \(0, 3\), depth=3'),
    (dict(window_rope_base=10.0), '^window must be given with window_rope_base;'
     ' got window=None, window_rope_base=10.0'),
    (dict(experts=2, experts_per_token=3), '^experts_per_token must be at most '
     '2, the number of experts; got 3'),
    (dict(unrotated_layers=(3,)), '^unrotated_layers must be blocks, from 0 to '
     r'2; got \(3,\), depth=3'),
    (dict(rope_fraction=1.5), '^rope_fraction must be at most 1; got 1.5'),
    (dict(rope_fraction=0.5), '^head_size must be even, .* got head_size=6, of '
     'which 3 are rotated'),
    (dict(norms='none'), "^norms must be a known name; got 'none'"),
    (dict(qk_norm=True), '^qk_norm must be a known name; got True'),
    (dict(embedding_scale='width'),
     "^embedding_scale must be a number above 0; got 'width'"),
    (dict(logits_soft_cap=0), '^logits_soft_cap must be a number above 0'),
])
def test_invalid_options_are_refused(options, text):
  with pytest.raises(checks.ConfigError, match=text):
    jax.eval_shape(transformed(**options).init, jax.random.key(0), TOKENS, MASK)


@pytest.mark.parametrize('tokens, mask, error, text', [
    (np.ones((2, 3), np.float32), None, TypeError, 'tokens must be integers'),
    (np.ones((2, 3, 4), int), None, ValueError, r'must be of shape \[B, N\]'),
    (np.ones((2, 3), int), np.ones((2, 3)), TypeError, 'mask must be boolean'),
    (np.ones((2, 3), int), np.ones((2, 4), bool), ValueError,
     'mask must have the leading axes of tokens'),
])
def test_invalid_inputs_are_refused(tokens, mask, error, text):
  with pytest.raises(error, match=text):
    jax.eval_shape(transformed().init, jax.random.key(0), tokens, mask)
