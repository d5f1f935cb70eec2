"""The contract that every image model of the zoo must keep."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd.core import registry
from haikd.models import convnet  # noqa: F401
from haikd.models import mlp  # noqa: F401
from haikd.models import resnet  # noqa: F401
from haikd.models import vit  # noqa: F401

IMAGES = (3, 8, 8, 1)

RESNET = dict(blocks=(1, 1), channels=(8, 16))
VIT = dict(patch_size=4, width=8, depth=2, heads=2)

# Model, options, whether it has state.
MODELS = [
    ('mlp', dict(hidden=(6, 5)), False),
    ('mlp', dict(hidden=(6,), dropout=0.5), False),
    ('convnet', dict(channels=(4, 6)), True),
    ('convnet', dict(channels=(4,), norm='group', groups=2, pool='avg'), False),
    ('convnet', dict(channels=(4,), norm='none', pool='none',
                     dropout=0.5), False),
    ('resnet', RESNET | dict(bottleneck=True, small_images=True), True),
    ('resnet', RESNET | dict(preactivation=True), True),
    ('vit', VIT, False),
    ('vit', VIT | dict(dropout=0.5, scan=True), False),
]

# One case a model: eager computation compiles every operation by itself.
EAGER = (0, 2, 6, 7)


@pytest.fixture(
    params=range(len(MODELS)), ids=lambda i: '-'.join(map(str, MODELS[i][:2])))
def case(request):
  return request.param


def images(dtype=jnp.float32):
  return jax.random.normal(jax.random.key(1), IMAGES, dtype)


def transformed(case):
  model, options, _ = MODELS[case]
  function = registry.models[model].function
  return hk.transform_with_state(
      lambda x, is_training: function(
          x, is_training=is_training, num_classes=4, **options))


@functools.cache
def network(case):
  """Returns the network's jitted `apply`, its parameters and its state.

  None of the parameters is 0 or 1, as some are when initialised. The state is
  that after one step of training.
  """
  net = transformed(case)
  apply = jax.jit(net.apply, static_argnums=4)
  shapes = jax.eval_shape(lambda key: net.init(key, images(), True),
                          jax.random.key(0))
  generator = np.random.default_rng(0)
  params, state = jax.tree.map(
      lambda x: jnp.asarray(generator.normal(0.1, 0.3, x.shape), x.dtype),
      shapes)
  state = jax.tree.map(jnp.zeros_like, state)
  _, state = apply(params, state, jax.random.key(0), images(), True)
  return apply, params, state


def test_logits_have_their_shape(case):
  apply, params, state = network(case)
  logits, _ = apply(params, state, None, images(), False)
  assert logits.shape == (3, 4)


@pytest.mark.parametrize('case', EAGER)
def test_logits_agree_in_eager_and_jit(case):
  apply, params, state = network(case)
  eager, _ = transformed(case).apply(params, state, None, images(), False)
  jitted, _ = apply(params, state, None, images(), False)
  np.testing.assert_allclose(eager, jitted, rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter(case):
  apply, params, state = network(case)

  def loss(params):
    logits, _ = apply(params, state, jax.random.key(2), images(), True)
    return jnp.sum(jax.nn.log_softmax(logits)[:, 0])

  grads = jax.jit(jax.grad(loss))(params)
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert np.all(np.isfinite(leaf)), path
    # A bias common to all keys cancels in the softmax over keys.
    if not jax.tree_util.keystr(path).endswith("attn/key']['b']"):
      assert np.any(np.abs(leaf) > 1e-6), path


def test_bfloat16_stays_bfloat16_in_every_module(case, without_maps):
  dtypes = {}

  def interceptor(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if context.method_name == '__call__':
      for leaf in jax.tree.leaves(without_maps(out)):
        dtypes[context.module.module_name] = leaf.dtype
    return out

  def run(key, images):
    with hk.experimental.intercept_methods(interceptor):
      return transformed(case).init(key, images, True)

  params, _ = jax.eval_shape(run, jax.random.key(0), images(jnp.bfloat16))
  bfloat16 = jnp.dtype(jnp.bfloat16)
  assert set(dtypes.values()) == {bfloat16}, dtypes
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {bfloat16}


def test_only_training_is_random_and_only_with_dropout(case):
  apply, params, state = network(case)
  for is_training in (True, False):
    one, two = (
        apply(params, state, jax.random.key(i), images(), is_training)[0]
        for i in (1, 2))
    is_random = is_training and MODELS[case][1].get('dropout', 0) > 0
    assert np.array_equal(one, two) != is_random


def test_only_training_changes_the_state(case):
  has_state = MODELS[case][2]
  apply, params, state = network(case)
  assert bool(jax.tree.leaves(state)) == has_state
  for is_training in (True, False):
    _, after = apply(params, state, jax.random.key(2), images(), is_training)
    changed = [
        not np.array_equal(old, new) for old, new in zip(
            jax.tree.leaves(state), jax.tree.leaves(after), strict=True)
    ]
    assert any(changed) == (has_state and is_training)


def test_examples_do_not_interact_in_inference(case):
  """The logits of an example do not change with the rest of the batch."""
  apply, params, state = network(case)
  before, _ = apply(params, state, None, images(), False)
  changed = images().at[1:].set(jnp.sin(5 * images()[1:]))
  after, _ = apply(params, state, None, changed, False)
  np.testing.assert_allclose(before[:1], after[:1], atol=1e-5)
  assert not np.allclose(before[1:], after[1:], atol=1e-3)


def test_integer_images_are_refused(case):
  text = '^inputs must be floating point; got inputs.dtype=uint8'
  with pytest.raises(TypeError, match=text):
    transformed(case).init(
        jax.random.key(0), jnp.ones(IMAGES, jnp.uint8), False)
