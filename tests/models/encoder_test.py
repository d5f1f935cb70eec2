"""Tests of what text encoders share, on each kind of them.

That they compute what transformers does is tested in tests/interop.
"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.models import encoder

V, D = 11, 12
SIZES = dict(vocabulary=V, width=D, depth=2, heads=2, hidden=10)
CASES = dict(
    mpnet=('bert', dict(positions=9, types=0, relative_buckets=8)),
    modernbert=('modernbert', dict(window=2, window_layers=(1,))),
    modernbert_tokens=('modernbert', dict(
        head='masked_lm', attention_bias=True, mlp_bias=True, norm_offset=True,
        transform_bias=True, depth=3, scan=True)),
    modernbert_classes=('modernbert', dict(
        head='classification', num_classes=3, pool='mean')),
    t5_encoder=('t5_encoder', dict(
        head_size=5, relative_buckets=8, gated=True, scan=True, dense=(
            dict(size=4, activation='tanh'),
            dict(size=3, bias=False, normalise=True)))),
)
TOKENS = np.random.default_rng(0).integers(0, V, (4, 7))
MASK = np.arange(7) < np.array([[7], [3], [5], [4]])


def network(case, **options):
  model, own = CASES[case]
  options = dict(is_training=False) | SIZES | own | options
  return hk.transform(lambda inputs, mask: _numbers(
      registry.models[model].function(inputs, mask=mask, **options)))


def _numbers(output):
  if isinstance(output, base.LinearLogits):
    return output.materialise()
  return output.vectors if isinstance(output, base.Embedding) else output


def random_params(case):
  """Returns parameters none of which is 0 or 1."""
  shapes = jax.eval_shape(
      network(case).init, jax.random.key(0), TOKENS, MASK)
  generator = np.random.default_rng(0)
  return jax.tree.map(
      lambda x: jnp.asarray(generator.normal(0.1, 0.4, x.shape), x.dtype),
      shapes)


@pytest.mark.parametrize('case', [case for case in CASES
                                  if case != 'modernbert'])
def test_padding_does_not_matter(case):
  """Neither values nor gradients; and no parameter is without a gradient."""
  params, net = random_params(case), network(case)
  keep = MASK if 'tokens' in case else slice(None)

  def run(params, tokens):
    outputs = net.apply(params, None, tokens, MASK)
    return jnp.sum(jnp.sin(outputs[keep])), outputs

  gradient = jax.jit(jax.grad(run, has_aux=True))
  left, outputs = gradient(params, TOKENS)
  spoilt = np.where(MASK, TOKENS, V - 1 - TOKENS)
  right, again = gradient(params, spoilt)
  np.testing.assert_array_equal(outputs[keep], again[keep])
  jax.tree.map(np.testing.assert_array_equal, left, right)
  for path, leaf in jax.tree_util.tree_leaves_with_path(left):
    # A bias common to all keys cancels in the softmax over keys.
    if not jax.tree_util.keystr(path).endswith("attn/key']['b']"):
      assert np.any(np.abs(leaf) > 1e-6), path


@pytest.mark.parametrize('case', ('mpnet', 'modernbert', 't5_encoder'))
def test_modules_return_the_dtype_of_the_tables(case, without_maps):
  dtypes = {}

  def interceptor(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if context.method_name == '__call__' and not isinstance(
        context.module, (hk.LayerNorm, hk.RMSNorm)):
      dtypes[context.module.module_name] = without_maps(out)
    return out

  def call(params):
    with hk.intercept_methods(interceptor):
      return network(case).apply(params, None, TOKENS, MASK)

  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params(case))
  jax.eval_shape(call, half)
  assert dtypes.pop('embedding').dtype == jnp.float32
  leaves = jax.tree.leaves([out for name, out in dtypes.items()
                            if not name.startswith('dense')])
  assert {leaf.dtype for leaf in leaves
          if jnp.issubdtype(leaf.dtype, jnp.floating)} == {
              jnp.dtype(jnp.bfloat16)}


def test_dense_layers_follow_pooling_one_after_another():
  """By hand, from the mean of the real positions."""
  generator = np.random.default_rng(1)
  features = generator.normal(size=(2, 3, 4)).astype(np.float32)
  mask = np.array([[True, True, False], [True, True, True]])
  dense = (dict(size=3, activation='tanh'),
           dict(size=2, bias=False, normalise=True))
  net = hk.transform(lambda x: encoder.embedding(
      x, mask, (2,), pool='mean', dense=dense, normalise=True).vectors)
  params = jax.tree.map(
      lambda x: generator.normal(size=x.shape).astype(np.float32),
      jax.eval_shape(net.init, jax.random.key(0), features))
  mean = np.stack([features[0, :2].mean(0), features[1].mean(0)])
  hidden = np.tanh(mean @ params['dense_0']['w'] + params['dense_0']['b'])
  hidden /= np.linalg.norm(hidden, axis=1, keepdims=True)
  expected = hidden @ params['dense_1']['w']
  expected /= np.linalg.norm(expected, axis=1, keepdims=True)
  np.testing.assert_allclose(
      net.apply(params, None, features), expected, atol=1e-5)


def test_tokens_keep_their_vectors_for_late_interaction():
  generator = np.random.default_rng(2)
  features = generator.normal(size=(4, 3, 4)).astype(np.float32)
  features[1, 2] = np.nan
  mask = np.arange(3) < np.array([3, 2, 0, 1])[:, None]
  net = hk.transform(lambda x: encoder.embedding(
      x, mask, (2, 2), pool='none', dense=(dict(size=2, bias=False),),
      normalise=True))
  params = net.init(jax.random.key(0), features)
  got = net.apply(params, None, features)
  assert isinstance(got, base.TokenEmbedding)
  expected = np.where(mask[..., None], features, 0) @ params['dense_0']['w']
  lengths = np.linalg.norm(expected, axis=-1, keepdims=True)
  expected = expected / np.where(lengths > 0, lengths, 1)
  np.testing.assert_allclose(got.vectors, expected.reshape(2, 2, 3, 2),
                             atol=1e-5)


@pytest.mark.parametrize('dense, text', [
    ((3,), r'dense\[0\] must be a dict of size and any of activation, bias, '
     'normalise; got 3'),
    ((dict(size=2), dict(bias=True)), r'dense\[1\] must be a dict of size and'),
    ((dict(size=2, norm=True),), r"got \{'size': 2, 'norm': True\}"),
    ((dict(size=0),), r'dense\[0\].size must be a positive integer; got 0'),
    ((dict(size=2, activation='tan'),),
     r"dense\[0\].activation must be a known name; got 'tan'"),
])
def test_other_dense_layers_are_refused(dense, text):
  with pytest.raises(checks.ConfigError, match=text):
    encoder.check_pooling(pool='mean', dense=dense)


@pytest.mark.parametrize('options, text', [
    (dict(window_layers=(3,)), r'window_layers must be blocks, from 0 to 1; '
     r'got \(3,\), depth=2'),
    (dict(window=0), 'window must be a positive integer; got 0'),
    (dict(heads=4), 'width / heads must be even, .*; got width=12, heads=4'),
    (dict(pool='first'), "pool must be a known name; got 'first'"),
    (dict(pool='none', head='classification', num_classes=2),
     "pool must be a known name; got 'none'"),
    (dict(head='classification'), 'num_classes must be given with head='),
])
def test_other_options_of_modernbert_are_refused(options, text):
  with pytest.raises(checks.ConfigError, match=text):
    jax.eval_shape(network('modernbert', **options).init, jax.random.key(0),
                   TOKENS, MASK)
