"""Tests of bert."""

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
from haikd.models import bert
from haikd.models import encoder
from haikd.network import remat

V, D, DEPTH, H, HIDDEN, POSITIONS, OFFSET = 11, 12, 2, 4, 10, 8, 2
SMALL = dict(
    vocabulary=V, positions=POSITIONS, position_offset=OFFSET, types=2, width=D,
    depth=DEPTH, heads=H, hidden=HIDDEN, epsilon=1e-3, num_classes=3)
STACK = '__layer_stack_no_per_layer/block/'

TOKENS = np.random.default_rng(0).integers(0, V, (4, 5))
TYPES = np.random.default_rng(1).integers(0, 2, (4, 5))
# No padding, padding on the right, on the left, and on both sides.
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1],
                 [0, 1, 1, 1, 0]], bool)
INPUTS = dict(tokens=TOKENS, types=TYPES)


def transformed(**options):
  options = dict(is_training=False) | SMALL | options
  return hk.transform(
      lambda inputs, mask: bert.bert(inputs, mask=mask, **options))


def numbers(output):
  """Returns an output as an array."""
  if isinstance(output, base.Embedding):
    return output.vectors
  if isinstance(output, base.LinearLogits):
    return output.materialise()
  return output


def run(params, inputs=INPUTS, mask=MASK, **options):
  return numbers(transformed(**options).apply(params, None, inputs, mask))


def random_params(**options):
  """Returns parameters none of which is 0 or 1."""
  shapes = jax.eval_shape(
      transformed(**options).init, jax.random.key(0), INPUTS, MASK)
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


def linear(params, x):
  return x @ params['w'] + params['b']


def norm(params, x):
  centred = x - x.mean(-1, keepdims=True)
  scaled = centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + 1e-3)
  return scaled * params['scale'] + params['offset']


def gelu(x):
  return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def reference(params, inputs=INPUTS, mask=MASK, offset=OFFSET):
  """Returns features and maps of one text at a time, in float64.

  Only the real positions of a row are computed; padding is NaN in features and
  0 in maps.
  """
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  length = mask.shape[1]
  features = np.full((DEPTH, len(mask), length, D), np.nan)
  maps = np.zeros((DEPTH, len(mask), H, length, length))
  for row, real in enumerate(map(np.flatnonzero, mask)):
    tables = params['embed']
    x = (tables['embeddings'][inputs['tokens'][row, real]] +
         tables['positions'][offset + np.arange(len(real))])
    if 'types' in tables:
      x = x + tables['types'][inputs['types'][row, real]]
    x = norm(params['embed/norm'], x)
    for i in range(DEPTH):
      at = lambda name: params[f'block_{i}/{name}']  # noqa: B023
      query, key, value = (
          np.split(linear(at(f'attn/{name}'), x), H, axis=-1)
          for name in ('query', 'key', 'value'))
      mixed = []
      for head, (q, k, v) in enumerate(zip(query, key, value)):
        scores = np.exp(q @ k.T / math.sqrt(D / H))
        scores /= scores.sum(-1, keepdims=True)
        maps[i, row, head][np.ix_(real, real)] = scores
        mixed.append(scores @ v)
      x = norm(at('norm_attn'),
               x + linear(at('attn/output'), np.concatenate(mixed, -1)))
      x = norm(at('norm_mlp'),
               x + linear(at('mlp/down'), gelu(linear(at('mlp/up'), x))))
      features[i, row, real] = x
  return features, maps


def pooled(features, mask=MASK):
  """Returns the mean over the real positions of each row."""
  return np.stack([row[real].mean(0) for row, real in zip(features, mask)])


@pytest.mark.parametrize('scan', (False, True))
@pytest.mark.parametrize('types', (0, 2))
def test_default_taps_equal_numpy(scan, types):
  params = random_params(types=types)
  features, maps = reference(params)
  net = hk.transform(haikd.capture(
      lambda: bert.bert(
          dict(INPUTS), mask=jnp.asarray(MASK), is_training=False, scan=scan,
          **SMALL | dict(types=types, normalise=False)),
      {kind: glob for kind, glob in registry.models['bert'].taps.items()
       if kind != 'token_embedding'}))  # That of another pool.
  params = stack(params) if scan else params
  _, captured = jax.jit(lambda p: net.apply(p, None))(params)
  assert len(captured['attention']) == len(captured['features']) == DEPTH
  queries = lambda x: x.swapaxes(1, 2)[MASK]
  for i in range(DEPTH):
    query_key = captured['attention'][i]
    assert isinstance(query_key, base.QueryKey)
    np.testing.assert_allclose(
        queries(query_key.materialise()), queries(maps[i]), atol=1e-4)
    np.testing.assert_allclose(
        captured['features'][i][MASK], features[i][MASK], atol=1e-4)
  vectors, = captured['embedding']
  np.testing.assert_allclose(vectors, pooled(features[-1]), atol=1e-4)


@pytest.mark.slow
def test_vectors_agree_in_eager_and_jit():
  params = random_params()
  np.testing.assert_allclose(run(params), jax.jit(run)(params), atol=1e-5)


@pytest.mark.parametrize('pool', encoder.POOLS)
@pytest.mark.parametrize('normalise', (False, True))
def test_vectors_equal_numpy(pool, normalise):
  params = random_params()
  last = reference(params)[0][-1]
  positions = [row[real] for row, real in zip(last, MASK)]
  pools = dict(
      mean=lambda x: x.mean(0),
      token=lambda x: x[0],
      last_token=lambda x: x[-1],
      max=lambda x: x.max(0),
      mean_sqrt=lambda x: x.sum(0) / math.sqrt(len(x)))
  expected = np.stack([pools[pool](x) for x in positions])
  if normalise:
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
  actual = jax.jit(lambda p: run(p, pool=pool, normalise=normalise))(params)
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize('pooler, function', [
    ('tanh', np.tanh), ('relu', lambda x: np.maximum(x, 0)), (None, None)])
def test_logits_of_classes_equal_numpy(pooler, function):
  options = dict(head='classification', pooler_activation=pooler)
  params = random_params(**options)
  assert ('pooler' in params) == (pooler is not None)
  token = reference(params)[0][-1][range(4), MASK.argmax(1)]
  if pooler is not None:
    token = function(linear(params['pooler'], token))
  actual = jax.jit(lambda p: run(p, **options))(params)
  np.testing.assert_allclose(
      actual, linear(params['logits'], token), atol=1e-4)


def test_logits_of_tokens_equal_numpy():
  params = random_params(head='masked_lm')
  last = np.nan_to_num(reference(params)[0][-1])
  hidden = norm(params['transform_norm'],
                gelu(linear(params['transform'], last)))
  expected = hidden @ params['embed']['embeddings'].T + params['logits']['b']
  output = transformed(head='masked_lm').apply(params, None, INPUTS, MASK)
  assert isinstance(output, base.LinearLogits)
  np.testing.assert_allclose(
      output.materialise()[MASK], expected[MASK], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('head', encoder.HEADS)
def test_values_in_padding_do_not_matter(head):
  params = random_params(head=head)
  function = jax.jit(lambda inputs: run(params, inputs, head=head))
  spoilt = dict(tokens=np.where(MASK, TOKENS, V - 1 - TOKENS),
                types=np.where(MASK, TYPES, 1 - TYPES))
  actual, expected = function(spoilt), function(INPUTS)
  if head == 'masked_lm':
    actual, expected = actual[MASK], expected[MASK]
  np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize('head', encoder.HEADS)
def test_texts_of_a_pair_are_rows_like_others(head):
  params = random_params(head=head)
  function = jax.jit(lambda inputs, mask: run(params, inputs, mask, head=head))
  rows = function(INPUTS, MASK)
  pairs = {name: x.reshape(2, 2, 5) for name, x in INPUTS.items()}
  actual = function(pairs, MASK.reshape(2, 2, 5))
  np.testing.assert_array_equal(actual, rows.reshape(2, 2, *rows.shape[1:]))


def test_a_mask_of_examples_means_both_texts_of_a_pair():
  params, function = random_params(), jax.jit(run)
  pairs = {name: x.reshape(2, 2, 5) for name, x in INPUTS.items()}
  actual = function(params, pairs, np.array([False, True]))
  expected = function(params, INPUTS, np.ones((4, 5), bool))
  np.testing.assert_array_equal(actual[1], expected[2:])
  np.testing.assert_array_equal(actual[0], np.zeros((2, D)))


def test_tokens_alone_have_the_first_type_and_no_padding():
  params, function = random_params(), jax.jit(run)
  actual = function(params, TOKENS, None)
  expected = function(params, dict(tokens=TOKENS, types=np.zeros_like(TYPES)),
                      np.ones((4, 5), bool))
  np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_packed_texts_do_not_see_each_other():
  """Rows 1 and 3 share a row, one after the other."""
  params = random_params(head='masked_lm')
  apart = run(params, head='masked_lm')
  join = lambda x: np.concatenate([x[1][MASK[1]], x[3][MASK[3]]])[None]
  packed = {name: join(x) for name, x in INPUTS.items()}
  packed['segments'] = np.array([[1, 1, 1, 2, 2, 2]])
  packed['positions'] = np.array([[0, 1, 2, 0, 1, 2]])
  actual = run(params, packed, np.ones((1, 6), bool), head='masked_lm')
  np.testing.assert_allclose(actual, join(apart), atol=1e-4)


@pytest.mark.parametrize('head, scan', [
    ('embedding', False), ('embedding', True), ('classification', True),
    ('masked_lm', True)])
def test_rows_of_padding_give_finite_values_and_gradients(head, scan):
  mask = MASK.copy()
  mask[1:3] = False
  params = random_params(head=head)
  params = stack(params) if scan else params

  def loss(params):
    return jnp.sum(jnp.sin(run(params, mask=mask, scan=scan, head=head)))

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  assert np.isfinite(value)
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert np.all(np.isfinite(leaf)), path
    assert np.any(leaf != 0), path


def test_the_vector_of_padding_is_zero_and_has_a_finite_gradient():
  """The length of a vector has no derivative at 0."""
  params = random_params()

  def loss(params):
    vectors = run(params, mask=np.zeros((4, 5), bool))
    return jnp.sum(jnp.where(jnp.arange(4)[:, None] > 4, vectors, 0)), vectors

  grads, vectors = jax.jit(jax.grad(loss, has_aux=True))(params)
  np.testing.assert_array_equal(vectors, np.zeros((4, D)))
  for leaf in jax.tree.leaves(grads):
    np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


@pytest.mark.parametrize('head, scan', [
    ('embedding', True), ('classification', False), ('masked_lm', True)])
def test_bfloat16_follows_float32(head, scan):
  """The error is a few times 2^-8, relative to the largest number."""
  params = random_params(head=head)
  expected = run(params, head=head)
  params = stack(params) if scan else params
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  actual = jax.jit(lambda p: run(p, head=head, scan=scan))(half)
  real = MASK if head == 'masked_lm' else slice(None)
  error = np.abs(actual.astype(jnp.float32) - expected)[real]
  assert np.max(error) < 0.04 * np.max(np.abs(expected[real]))


def test_modules_return_the_dtype_of_the_tables(without_maps):
  dtypes = {}
  norms = []

  def interceptor(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if context.method_name == '__call__':
      if isinstance(context.module, hk.LayerNorm):
        norms.append(args[0].dtype)
      else:
        dtypes[context.module.module_name] = without_maps(out)
    return out

  def call(params):
    with hk.intercept_methods(interceptor):
      return transformed().apply(params, None, INPUTS, MASK)

  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params())
  jax.eval_shape(call, half)
  assert norms == [jnp.float32] * (2 * DEPTH + 1)
  assert dtypes.pop('embedding').dtype == jnp.float32
  leaf_dtypes = {leaf.dtype for out in dtypes.values()
                 for leaf in jax.tree.leaves(out) if leaf.dtype != bool}
  assert len(dtypes) > 7 * DEPTH and leaf_dtypes == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize('scan', (False, True))
def test_blocks_can_be_recomputed_in_the_backward_pass(scan):
  params = random_params()
  params = stack(params) if scan else params

  def loss(params, policy):
    net = hk.transform(lambda: remat.rematerialised(
        lambda inputs: bert.bert(
            inputs, mask=MASK, is_training=True, scan=scan, **SMALL).vectors,
        registry.models['bert'].taps['features'], policy)(INPUTS))
    return jnp.sum(jnp.sin(net.apply(params, jax.random.key(0))))

  saved, recomputed = (
      jax.jit(jax.grad(loss), static_argnums=1)(params, policy)
      for policy in ('none', 'full'))
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), recomputed,
      saved)


def test_only_training_is_random_and_only_with_dropout():
  params = stack(random_params())
  for is_training, dropout in ((True, 0.5), (True, 0.0), (False, 0.5)):
    net = transformed(is_training=is_training, dropout=dropout, scan=True)
    apply = jax.jit(net.apply)
    one, two = (apply(params, jax.random.key(i), INPUTS, MASK).vectors
                for i in (1, 2))
    assert np.array_equal(one, two) != (is_training and dropout > 0)


def test_dropout_is_on_the_embedding_each_branch_and_before_the_classes(
    monkeypatch):
  # Doubling in place of dropout equals doubling the last parameters before it,
  # or, for the classes, the first after it.
  options = dict(head='classification')
  params = random_params(**options)
  monkeypatch.setattr(bert.layers, 'dropout', lambda x, *unused: 2 * x)
  actual = run(params, **options)
  monkeypatch.undo()
  doubled = dict(params)
  for path, leaves in params.items():
    if path.endswith(('embed/norm', 'attn/output', 'mlp/down')):
      doubled[path] = jax.tree.map(lambda x: 2 * x, leaves)
  doubled['logits'] = params['logits'] | dict(w=2 * params['logits']['w'])
  np.testing.assert_allclose(actual, run(doubled, **options), atol=1e-4)


def test_more_than_twelve_blocks_are_looped_over():
  for depth, looped in ((12, False), (13, True)):
    params = jax.eval_shape(
        transformed(depth=depth).init, jax.random.key(0), TOKENS, MASK)
    assert (f'{STACK}mlp/up' in params) == looped


@pytest.mark.parametrize('options, count', [
    (dict(), 108_891_648),
    (dict(width=384, depth=6, hidden=1536), 22_565_376),
    (dict(types=0, depth=6), 66_362_880),
    (dict(vocabulary=50265, positions=514, position_offset=2, types=1),
     124_055_040),
])
def test_published_sizes_have_their_published_number_of_parameters(
    options, count):
  """BERT, MiniLM-L6-H384, DistilBERT and RoBERTa, without their poolers.

  109,482,240, 22,713,216 and 124,645,632 with poolers of D·(D + 1), as
  transformers counts them; DistilBERT has none. A block has 4 D·D + 2 D·M
  numbers in kernels, 5 D + M in their biases and 4 D in norms.
  """
  width = options.get('width', 768)
  if count != 66_362_880:
    assert count + width * (width + 1) in (109_482_240, 22_713_216,
                                           124_645_632)
  net = hk.transform(lambda x: bert.bert(x, is_training=False, **options))
  params = jax.eval_shape(
      net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 5), jnp.int32))
  assert hk.data_structures.tree_size(params) == count


def test_tensor_axes_fit_the_parameters():
  """Each glob matches parameters; its axis is that of heads, units or D."""
  shapes = jax.eval_shape(
      transformed(scan=True).init, jax.random.key(0), TOKENS, MASK)
  flat = {f'{path}/{name}': leaf.shape
          for path, leaves in shapes.items() for name, leaf in leaves.items()}
  for glob, axis in registry.models['bert'].tensor.items():
    sizes = [shape[axis] for name, shape in flat.items()
             if name.rpartition('block/')[2].startswith(glob.rstrip('*'))]
    assert set(sizes) == {HIDDEN if 'mlp' in glob else D}, glob


@pytest.mark.parametrize('options, text', [
    (dict(vocabulary=0), '^vocabulary must be a positive integer; got 0'),
    (dict(width=13), '^heads must divide width; got heads=4, width=13'),
    (dict(types=-1), '^types must be an integer of at least 0; got -1'),
    (dict(position_offset=None),
     '^position_offset must be an integer of at least 0; got None'),
    (dict(head='token'), "^head must be a known name; got 'token'"),
    (dict(pool='median'), "^pool must be a known name; got 'median'"),
    (dict(activation='gleu'),
     "^activation must be a known name; got 'gleu'. Did you mean 'gelu'"),
    (dict(head='classification', pooler_activation='tahn'),
     "^pooler_activation must be a known name; got 'tahn'"),
    (dict(head='classification', num_classes=None),
     "^num_classes must be given with head='classification'; got None"),
    (dict(head='classification', num_classes=0),
     '^num_classes must be a positive integer; got 0'),
    (dict(epsilon=0), '^epsilon must be a number above 0; got 0'),
    (dict(dropout=1.0), '^dropout must be at least 0 and below 1; got 1.0'),
    (dict(positions=6), '^positions - position_offset must be at least the '
     'length of rows; got 4, and rows of 5 tokens'),
])
def test_invalid_options_are_refused(options, text):
  with pytest.raises(checks.ConfigError, match=text):
    jax.eval_shape(transformed(**options).init, jax.random.key(0), TOKENS, MASK)


@pytest.mark.parametrize('inputs, mask, error, text', [
    (np.ones((2, 3), np.float32), None, TypeError, 'tokens must be integers'),
    (np.ones(3, int), None, ValueError, r'must be of shape \[B, N\]'),
    (dict(types=TYPES), None, ValueError, 'inputs must be tokens, or a dict'),
    (np.ones((2, 3), int), np.ones((2, 3)), TypeError, 'mask must be boolean'),
    (np.ones((2, 2, 3), int), np.ones((4, 3), bool), ValueError,
     'mask must have the leading axes of tokens'),
    (dict(tokens=TOKENS, segments=TOKENS, positions=TOKENS), None, ValueError,
     "rows must hold one text each for head='embedding'"),
])
def test_invalid_inputs_are_refused(inputs, mask, error, text):
  with pytest.raises(error, match=text):
    jax.eval_shape(transformed().init, jax.random.key(0), inputs, mask)
