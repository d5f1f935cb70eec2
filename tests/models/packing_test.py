"""Documents packed in a row give the same outputs as one document a row."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import registry

V, N = 11, 7
SIZES = dict(num_classes=V, width=12, depth=2, heads=2, hidden=10)
CASES = dict(
    llama=('llama', dict(key_value_heads=1, tied=True)),
    llama_window=('llama', dict(
        window=2, window_layers=(1,), scan=True, qkv_bias=True)),
    llama_dynamic=('llama', dict(rope_scaling=dict(
        kind='dynamic', factor=2.0, original_length=2))),
    mpnet=('bert', dict(
        vocabulary=V, positions=N, types=0, relative_buckets=8,
        head='masked_lm')),
    modernbert=('modernbert', dict(
        vocabulary=V, window=2, window_layers=(1,), head='masked_lm')),
    gpt2=('gpt2', dict(positions=N)),
    gpt2_looped=('gpt2', dict(positions=N, tied=False, scan=True)),
)

# Row 0: documents of 3, 2 and 1 positions, then one position of padding.
# Row 1: one position of padding, then documents of 1 and 5 positions.
LENGTHS = ((3, 2, 1), (1, 5))
MASK = np.arange(N) != np.array([[N - 1], [0]])
SEGMENTS = np.array([[1, 1, 1, 2, 2, 3, 0], [0, 1, 2, 2, 2, 2, 2]], np.int32)
POSITIONS = np.array([[0, 1, 2, 0, 1, 0, 0], [0, 0, 0, 1, 2, 3, 4]], np.int32)
TOKENS = np.random.default_rng(0).integers(0, V, (2, N))
PACKED = dict(tokens=TOKENS, segments=SEGMENTS, positions=POSITIONS)

# The same documents, one a row.
DOCUMENTS = [np.split(row[real], np.cumsum(lengths)[:-1])
             for row, real, lengths in zip(TOKENS, MASK, LENGTHS)]
ALONE = np.stack([np.pad(document, (0, N - len(document)))
                  for row in DOCUMENTS for document in row])
ALONE_MASK = np.arange(N) < np.array([[n] for row in LENGTHS for n in row])


@functools.cache
def network(case):
  """Returns parameters, none of them 0, and the jitted logits of a case."""
  model, options = CASES[case]
  net = hk.transform(
      lambda inputs, mask: registry.models[model].function(
          inputs, mask=mask, is_training=False, **SIZES, **options))
  shapes = jax.eval_shape(net.init, jax.random.key(0), PACKED, MASK)
  generator = np.random.default_rng(1)
  params = jax.tree.map(
      lambda x: jnp.asarray(generator.normal(0.1, 0.4, x.shape), x.dtype),
      shapes)
  return params, jax.jit(
      lambda p, x, mask: net.apply(p, None, x, mask).materialise())


@pytest.mark.parametrize('case', CASES)
def test_logits_are_those_of_documents_alone(case):
  params, logits = network(case)
  packed = logits(params, PACKED, MASK)[MASK]
  alone = logits(params, ALONE, ALONE_MASK)[ALONE_MASK]
  np.testing.assert_allclose(packed, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('case', [case for case in CASES if case != 'mpnet'])
def test_gradients_are_those_of_documents_alone(case):
  params, logits = network(case)

  def loss(params, inputs, mask):
    values = jnp.sin(logits(params, inputs, mask))
    return jnp.sum(jnp.where(mask[..., None], values, 0))

  grad = jax.jit(jax.grad(loss))
  packed = grad(params, PACKED, MASK)
  alone = grad(params, ALONE, ALONE_MASK)
  largest = max(np.max(np.abs(x)) for x in jax.tree.leaves(alone))
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * largest),
      packed, alone)


@pytest.mark.parametrize('case', CASES)
def test_another_document_changes_nothing(case):
  """Without segments, document 2 of row 1 would attend to document 1."""
  params, logits = network(case)
  tokens = TOKENS.copy()
  tokens[1, 1] = (tokens[1, 1] + 1) % V
  before = logits(params, PACKED, MASK)
  after = logits(params, PACKED | dict(tokens=tokens), MASK)
  np.testing.assert_array_equal(after[1, 2:], before[1, 2:])
  assert not np.allclose(after[1, 1], before[1, 1])
