"""Tests of gpt2; tests/interop/decoder_parity_test.py checks its values."""

import fnmatch

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd.core import checks
from haikd.core import registry
from haikd.models import gpt2

V, D, DEPTH, H, HIDDEN = 11, 12, 2, 3, 10
SMALL = dict(num_classes=V, positions=6, width=D, depth=DEPTH, heads=H,
             hidden=HIDDEN)
STACK = '__layer_stack_no_per_layer/block/'

TOKENS = np.random.default_rng(0).integers(0, V, (4, 5))
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1],
                 [0, 1, 1, 1, 0]], bool)


def transformed(**options):
  options = dict(is_training=False) | SMALL | options
  return hk.transform(
      lambda tokens, mask: gpt2.gpt2(tokens, mask=mask, **options))


def shapes(**options):
  return jax.eval_shape(
      transformed(**options).init, jax.random.key(0), TOKENS, MASK)


def random_params(**options):
  """Returns parameters none of which is 0 or 1."""
  generator = np.random.default_rng(0)
  return jax.tree.map(
      lambda x: jnp.asarray(generator.normal(0.1, 0.4, x.shape), x.dtype),
      shapes(**options))


def logits(params, tokens=TOKENS, mask=MASK, **options):
  output = transformed(**options).apply(params, None, tokens, mask)
  return output.materialise()


def test_a_sequence_gives_the_same_wherever_it_starts():
  """The three real tokens of rows 1, 2 and 3 start at 0, 2 and 1."""
  tokens = np.zeros_like(TOKENS)
  tokens[MASK] = np.concatenate([TOKENS[0], *[[3, 1, 4]] * 3])
  actual = jax.jit(logits)(random_params(), tokens)[1:][MASK[1:]]
  first, *others = actual.reshape(3, 3, V)
  for other in others:
    np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-4)


def test_a_later_token_changes_no_earlier_logits():
  params, function = random_params(), jax.jit(logits)
  before = function(params)
  tokens = TOKENS.copy()
  tokens[:, 2] = (tokens[:, 2] + 1) % V
  after = function(params, tokens)
  np.testing.assert_array_equal(after[:, :2], before[:, :2])
  assert not np.allclose(after[0, 2:], before[0, 2:])


def test_rows_of_padding_give_finite_values_and_gradients():
  mask = MASK.copy()
  mask[1:3] = False

  def loss(params):
    return jnp.sum(jnp.sin(logits(params, mask=mask, scan=True)))

  params = random_params(scan=True)
  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  assert np.isfinite(value)
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert np.all(np.isfinite(leaf)), path
    # A bias common to all keys cancels in the softmax over keys.
    if not jax.tree_util.keystr(path).endswith("attn/key']['b']"):
      assert np.any(np.abs(leaf) > 1e-6), path


def test_bfloat16_follows_float32():
  """The error is a few times 2^-8, relative to the largest logit."""
  params = random_params()
  expected = logits(params)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  output = jax.jit(transformed().apply)(half, None, TOKENS, MASK)
  assert output.hidden.dtype == output.kernel.dtype == jnp.bfloat16
  error = np.abs(output.materialise() - expected)
  assert np.max(error) < 0.03 * np.max(np.abs(expected))


def test_only_training_is_random_and_only_with_dropout():
  params = random_params()
  for is_training, dropout in ((True, 0.5), (True, 0.0), (False, 0.5)):
    net = transformed(is_training=is_training, dropout=dropout)
    apply = jax.jit(net.apply)
    one, two = (apply(params, jax.random.key(i), TOKENS, MASK).hidden
                for i in (1, 2))
    assert np.array_equal(one, two) != (is_training and dropout > 0)


def test_dropout_is_on_the_embedding_and_at_the_end_of_each_branch(monkeypatch):
  # Doubling in place of dropout equals doubling the last map before it.
  monkeypatch.setattr(gpt2.layers, 'dropout', lambda x, *unused: 2 * x)
  params = random_params(tied=False)
  actual = logits(params, tied=False)
  monkeypatch.undo()
  doubled = {
      path: jax.tree.map(lambda x: 2 * x, leaves) if path.endswith(
          ('embed', 'attn/output', 'mlp/down')) else leaves
      for path, leaves in params.items()}
  expected = logits(doubled, tied=False)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_more_than_twelve_blocks_are_looped_over():
  for depth, looped in ((12, False), (13, True)):
    assert (f'{STACK}mlp/up' in shapes(depth=depth)) == looped


def test_hidden_units_are_four_times_the_width():
  assert shapes(hidden=None)['block_0/mlp/up']['w'].shape == (D, 4 * D)


def test_tensor_axes_fit_the_parameters():
  """Each glob matches parameters; its axis is that of heads, units or D."""
  sizes = {'embed/embeddings': D, 'attn/query/*': D, 'attn/key/*': D,
           'attn/value/*': D, 'attn/output/w': D, 'mlp/up/*': HIDDEN,
           'mlp/down/w': HIDDEN, 'logits/w': V}
  flat = {f'{path}/{name}': leaf.shape
          for path, leaves in shapes(tied=False, scan=True).items()
          for name, leaf in leaves.items()}
  axes = registry.models['gpt2'].tensor
  assert set(axes) == set(sizes)
  for glob, axis in axes.items():
    matched = [shape for name, shape in flat.items()
               if fnmatch.fnmatch(name, f'*{glob}')]
    assert len(matched) == 1 + glob.endswith('*')
    assert {shape[axis] for shape in matched} == {sizes[glob]}


@pytest.mark.parametrize('options, text', [
    (dict(num_classes=0), '^num_classes must be a positive integer; got 0'),
    (dict(heads=5), '^heads must divide width; got heads=5, width=12'),
    (dict(hidden=0), '^hidden must be a positive integer; got 0'),
    (dict(dropout=1.0), '^dropout must be at least 0 and below 1; got 1.0'),
    (dict(epsilon=0), '^epsilon must be a number above 0; got 0'),
    (dict(activation='gelo'), "^activation must be a known name; got 'gelo'"),
    (dict(positions=4), '^positions must be at least the length of rows; got '
     'positions=4, N=5'),
])
def test_invalid_options_are_refused(options, text):
  with pytest.raises(checks.ConfigError, match=text):
    shapes(**options)
