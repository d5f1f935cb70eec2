"""What every model of the zoo must do."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import registry
from haikd.models import convnet  # noqa: F401
from haikd.models import mlp  # noqa: F401

IMAGES = (3, 8, 8, 1)

# Model, options, whether it has dropout, whether it has state.
MODELS = [
    ('mlp', dict(hidden=(6, 5)), False),
    ('mlp', dict(hidden=(6,), dropout=0.5), False),
    ('convnet', dict(channels=(4, 6)), True),
    ('convnet', dict(channels=(4,), norm='group', groups=2, pool='avg'), False),
    ('convnet', dict(channels=(4,), norm='none', pool='none',
                     dropout=0.5), False),
]


@pytest.fixture(params=MODELS, ids=lambda case: f'{case[0]}-{case[1]}')
def case(request):
  return request.param


def images(dtype=jnp.float32):
  return jax.random.normal(jax.random.key(1), IMAGES, dtype)


def build(model, options, dtype=jnp.float32):
  """Returns the transformed model, its parameters and its state."""
  function = registry.models[model].function
  net = hk.transform_with_state(
      lambda x, is_training: function(
          x, is_training=is_training, num_classes=4, **options))
  params, state = jax.jit(
      net.init, static_argnums=2)(jax.random.key(0), images(dtype), True)
  return net, params, state


def test_logits_agree_in_eager_and_jit(case):
  model, options, _ = case
  net, params, state = build(model, options)
  eager, _ = net.apply(params, state, None, images(), False)
  jitted, _ = jax.jit(
      net.apply, static_argnums=4)(params, state, None, images(), False)
  assert eager.shape == (3, 4)
  np.testing.assert_allclose(eager, jitted, atol=1e-5)


def test_gradients_reach_every_parameter(case):
  model, options, _ = case
  net, params, state = build(model, options)

  def loss(params):
    logits, _ = net.apply(params, state, jax.random.key(2), images(), True)
    return jnp.sum(jax.nn.log_softmax(logits)[:, 0])

  grads = jax.jit(jax.grad(loss))(params)
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), path


def test_bfloat16_stays_bfloat16_in_every_module(case):
  model, options, _ = case
  net, params, state = build(model, options, jnp.bfloat16)
  bfloat16 = jnp.dtype(jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {bfloat16}
  dtypes = {}

  def interceptor(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if context.method_name == '__call__' and out is not None:
      if not isinstance(context.module, hk.ExponentialMovingAverage):
        for leaf in jax.tree.leaves(out):
          dtypes[context.module.module_name] = leaf.dtype
    return out

  with hk.experimental.intercept_methods(interceptor):
    logits, _ = net.apply(params, state, jax.random.key(2),
                          images(jnp.bfloat16), True)
  assert logits.dtype == bfloat16
  assert set(dtypes.values()) == {bfloat16}, dtypes


def test_only_training_is_random_and_only_with_dropout(case):
  model, options, _ = case
  net, params, state = build(model, options)
  apply = jax.jit(net.apply, static_argnums=4)
  for is_training in (True, False):
    one, two = (
        apply(params, state, jax.random.key(i), images(), is_training)[0]
        for i in (1, 2))
    is_random = is_training and options.get('dropout', 0) > 0
    assert np.array_equal(one, two) != is_random


def test_only_training_changes_the_state(case):
  model, options, has_state = case
  net, params, state = build(model, options)
  assert bool(jax.tree.leaves(state)) == has_state
  for is_training in (True, False):
    _, after = net.apply(params, state, jax.random.key(2), images(),
                         is_training)
    changed = [
        not np.array_equal(old, new) for old, new in zip(
            jax.tree.leaves(state), jax.tree.leaves(after), strict=True)
    ]
    assert any(changed) == (has_state and is_training)


def test_a_model_at_rest_treats_examples_apart(case):
  """The logits of an example do not depend on what else is in the batch."""
  model, options, _ = case
  net, params, state = build(model, options)
  apply = jax.jit(net.apply, static_argnums=4)
  whole, _ = apply(params, state, None, images(), False)
  alone, _ = apply(params, state, None, images()[1:2], False)
  np.testing.assert_allclose(whole[1:2], alone, atol=1e-5)


def test_integer_images_are_refused(case):
  model, options, _ = case
  function = registry.models[model].function
  net = hk.transform_with_state(
      lambda x: function(x, is_training=False, num_classes=4, **options))
  with pytest.raises(TypeError, match=f'models.{model}: inputs must be floati'):
    net.init(jax.random.key(0), jnp.ones(IMAGES, jnp.uint8))
