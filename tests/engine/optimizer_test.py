"""Optimizers: the first steps by hand, schedules, decay masks, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.engine import optimizer


def config(**fields):
  result = config_lib.optimizer()
  result.update({'schedule': 'constant', 'learning_rate': 0.1, **fields})
  return result


def tree(w, b):
  return base.Params(
      student={'linear': {
          'w': jnp.asarray(w, jnp.float32),
          'b': jnp.asarray(b, jnp.float32)
      }},
      align={})


W, B = np.array([[1.0, -2.0], [0.5, 4.0]]), np.array([1.0, -1.0])
GRAD_W, GRAD_B = np.array([[0.3, -0.1], [2.0, 0.0]]), np.array([0.5, -4.0])


def step(fields, steps=1, jit=False):
  """Returns kernel and bias after steps with the same gradient."""
  chain = optimizer.build_optimizer(config(**fields), 10)
  params, grads = tree(W, B), tree(GRAD_W, GRAD_B)
  state = chain.init(params)
  update = jax.jit(chain.update) if jit else chain.update
  for _ in range(steps):
    updates, state = update(grads, state, params)
    params = jax.tree.map(jnp.add, params, updates)
  return params.student['linear']['w'], params.student['linear']['b']


@pytest.mark.parametrize('jit', [False, True])
def test_adamw_by_hand(jit):
  # With bias correction the first moments are m = g and v = g^2, so that the
  # first step is lr g / (|g| + eps): the sign of the gradient. The kernel also
  # loses lr * weight_decay of itself, the bias does not.
  w, b = step({'weight_decay': 0.5}, jit=jit)
  np.testing.assert_allclose(
      w, W - 0.1 * np.sign(GRAD_W) - 0.1 * 0.5 * W, rtol=1e-5)
  np.testing.assert_allclose(b, B - 0.1 * np.sign(GRAD_B), rtol=1e-5)


def test_adamw_second_step_by_hand():
  # m2 = b1 (1 - b1) g + (1 - b1) g = (1 - b1^2) g, which the bias correction
  # 1 - b1^2 turns into g again, and likewise v: a constant gradient gives the
  # same step. With other options the same holds, whatever b1 is.
  w, _ = step({'options': {'b1': 0.5, 'b2': 0.7}}, steps=2)
  np.testing.assert_allclose(w, W - 0.2 * np.sign(GRAD_W), rtol=1e-5)


def test_sgd_with_momentum_by_hand():
  # g' = g + decay w; trace t1 = g1', t2 = g2' + 0.9 t1; w -= lr t.
  first = GRAD_W + 0.2 * W
  w1 = W - 0.1 * first
  second = GRAD_W + 0.2 * w1 + 0.9 * first
  w, b = step({
      'name': 'sgd',
      'weight_decay': 0.2,
      'options': {
          'momentum': 0.9
      }
  },
              steps=2)
  np.testing.assert_allclose(w, w1 - 0.1 * second, rtol=1e-5)
  np.testing.assert_allclose(b, B - 0.1 * (1 + 1.9) * GRAD_B, rtol=1e-5)


def test_lamb_by_hand():
  # The Adam direction sign(g) plus decay, rescaled to the parameter's norm.
  # eps is 1e-6, which moves |g| = 0.1 by 1e-5.
  direction = np.sign(GRAD_W) + 0.5 * W
  ratio = np.linalg.norm(W) / np.linalg.norm(direction)
  w, b = step({'name': 'lamb', 'weight_decay': 0.5})
  np.testing.assert_allclose(w, W - 0.1 * ratio * direction, rtol=1e-4)
  ratio = np.linalg.norm(B) / np.linalg.norm(np.sign(GRAD_B))
  np.testing.assert_allclose(b, B - 0.1 * ratio * np.sign(GRAD_B), rtol=1e-4)


def test_adafactor_by_hand():
  # Unfactored below 128 columns; at the first step the second moment is g^2,
  # so that the direction is sign(g), of root mean square sqrt(3/4) for three
  # non-zero entries of four: below the clipping threshold of 1. It is scaled
  # by the root mean square of the parameter. The decay is multiplied by the
  # learning rate, as with every optimizer.
  rms = np.sqrt(np.mean(W**2))
  w, _ = step({'name': 'adafactor', 'weight_decay': 0.5})
  np.testing.assert_allclose(
      w, W - 0.1 * rms * np.sign(GRAD_W) - 0.1 * 0.5 * W, rtol=1e-5)


def test_muon_orthogonalises_kernels_and_leaves_vectors_to_adam():
  w, b = step({'name': 'muon', 'weight_decay': 0.5})
  update = (W - 0.1 * 0.5 * W - np.asarray(w)) / 0.1
  left, _, right = np.linalg.svd(GRAD_W)
  # Newton-Schulz keeps the singular vectors of the gradient and stops when the
  # singular values lie between 0.7 and 1.2.
  np.testing.assert_allclose(update, left @ right, atol=0.35)
  values = np.linalg.svd(update)[1]
  assert np.all((values > 0.65) & (values < 1.25)), values
  # Adam there has Nesterov momentum: b1 m1 / (1 - b1^2) + (1 - b1) g / (1 - b1)
  # with m1 = 0.1 g, that is (0.09 / 0.19 + 1) g, over |g|.
  np.testing.assert_allclose(
      b, B - 0.1 * (0.09 / 0.19 + 1) * np.sign(GRAD_B), rtol=1e-5)


@pytest.mark.parametrize('stack', ['__layer_stack_no_per_layer', 'layer_stack'])
def test_muon_treats_each_layer_of_a_stack_separately(stack):
  kernels = np.stack([W, 3 * W + 1])
  grads = np.stack([GRAD_W, GRAD_W.T])
  stacked = {
      f'net/{stack}/linear': {
          'w': kernels,
          'b': np.stack([B, B])
      }
  }
  stacked_grads = {
      f'net/{stack}/linear': {
          'w': grads,
          'b': np.stack([GRAD_B, GRAD_B])
      }
  }
  separate = {f'linear_{i}': {'w': kernels[i], 'b': B} for i in range(2)}
  separate_grads = {
      f'linear_{i}': {
          'w': grads[i],
          'b': GRAD_B
      } for i in range(2)
  }
  chain = optimizer.build_optimizer(config(name='muon', weight_decay=0.1), 10)
  as_jax = lambda x: jax.tree.map(jnp.float32, x)

  def updates(params, grads):
    params, grads = as_jax(params), as_jax(grads)
    return chain.update(grads, chain.init(params), params)[0]

  together = updates(stacked, stacked_grads)
  apart = updates(separate, separate_grads)
  for i in range(2):
    for name in 'wb':
      np.testing.assert_allclose(
          together[f'net/{stack}/linear'][name][i],
          apart[f'linear_{i}'][name],
          rtol=1e-5)


def test_clipping_comes_first_and_spans_the_tree():
  # Global norm of all gradients, bias included: sqrt(0.09 + 0.01 + 4 + 0.25 +
  # 16) = sqrt(20.35). SGD applies the clipped gradient itself; the decay is
  # added after clipping.
  scale = 0.7 / np.sqrt(20.35)
  w, b = step({'name': 'sgd', 'clip_norm': 0.7, 'weight_decay': 0.2})
  np.testing.assert_allclose(
      w, W - 0.1 * (scale * GRAD_W + 0.2 * W), rtol=1e-5)
  np.testing.assert_allclose(b, B - 0.1 * scale * GRAD_B, rtol=1e-5)


@pytest.mark.parametrize('decayed, module, name, shape', [
    (True, 'linear', 'w', (2, 3)),
    (True, 'conv2_d', 'w', (3, 3, 2, 3)),
    (True, 'gru', 'w_i', (2, 3)),
    (True, 'net/__layer_stack_no_per_layer/linear', 'w', (4, 2, 3)),
    (True, 'embed', 'embeddings', (5, 2)),
    (True, 'net/token_embedding', 'embeddings', (5, 2)),
    (True, 'net', 'token_embeddings', (5, 2)),
    (False, 'linear', 'b', (3,)),
    (False, 'net/__layer_stack_no_per_layer/linear', 'b', (4, 3)),
    (False, 'net/__layer_stack_no_per_layer/layer_norm', 'scale', (4, 3)),
    (False, 'layer_norm', 'offset', (3,)),
    (False, 'batch_norm', 'scale', (1, 1, 3)),
    (False, 'attention', 'q_bias', (2, 3)),
    (False, 'net/position_embedding', 'embeddings', (5, 2)),
    (False, 'net', 'position_embeddings', (5, 2)),
    (False, 'net', 'pos_embed', (1, 5, 2)),
    (False, 'net', 'class_token', (1, 1, 2)),
    (False, 'net', 'w', (3,)),
])
def test_decay_is_decided_by_name(decayed, module, name, shape):
  params = base.Params(
      student={module: {
          name: jnp.zeros(shape)
      }},
      align={'feature': {
          0: {
              module: {
                  name: jnp.zeros(shape)
              }
          }
      }})
  assert jax.tree.leaves(optimizer.decay_mask(params)) == [decayed, decayed]


@pytest.mark.parametrize('name', ['adamw', 'sgd', 'lamb', 'adafactor', 'muon'])
def test_every_optimizer_lowers_a_quadratic(name):
  chain = optimizer.build_optimizer(
      config(name=name, learning_rate=0.05, clip_norm=1.0, warmup_steps=5), 40)
  params = {'linear': {'w': jnp.ones((2, 2)), 'b': jnp.ones(2)}}
  loss = lambda p: sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(p))

  @jax.jit
  def update(params, state):
    updates, state = chain.update(jax.grad(loss)(params), state, params)
    return jax.tree.map(jnp.add, params, updates), state

  state, before = chain.init(params), loss(params)
  for _ in range(40):
    params, state = update(params, state)
  assert loss(params) < 0.5 * before


@pytest.mark.parametrize('schedule, middle', [
    ('constant', 1.0),
    # Half way: 0.2 + 0.8 (1 + cos(pi / 2)) / 2 and 0.2 + 0.8 / 2.
    ('cosine', 0.6),
    ('linear', 0.6),
])
def test_schedule_by_hand(schedule, middle):
  rate = optimizer.build_schedule(
      config(
          schedule=schedule,
          learning_rate=2.0,
          warmup_steps=4,
          final_fraction=0.2), 14)
  # Five equal parts up to the peak, which the step after the warm-up has.
  np.testing.assert_allclose([rate(i) for i in range(5)],
                             [0.4, 0.8, 1.2, 1.6, 2.0],
                             rtol=1e-6)
  np.testing.assert_allclose(rate(9), 2 * middle, rtol=1e-6)
  final = 1.0 if schedule == 'constant' else 0.2
  np.testing.assert_allclose(rate(14), 2 * final, rtol=1e-6)


def test_a_run_shorter_than_its_warm_up_ends_within_it():
  rate = optimizer.build_schedule(config(warmup_steps=9, learning_rate=1.0), 2)
  np.testing.assert_allclose([rate(0), rate(1)], [0.1, 0.2], rtol=1e-6)


@pytest.mark.parametrize('fields, match', [
    ({'name': 'adam'}, '^config.optimizer.name must be a known optimizer; got '
     "'adam'. Did you mean 'adamw'"),
    ({'schedule': 'cosinus'},
     "schedule must be a known schedule; got 'cosinus'. Did you mean 'cosine'"),
    ({'options': {'beta1': 0.9}}, 'options.beta1 must be an option of adamw'),
    ({'options': {'mask': None}}, 'options.mask must be an option'),
])
def test_a_config_that_cannot_work_is_refused(fields, match):
  with pytest.raises(checks.ConfigError, match=match):
    optimizer.build_optimizer(config(**fields), 10)


@pytest.mark.parametrize('fields, match', [
    ({'name': 'adam'}, 'name must'),
    ({'schedule': 'cosinus'}, 'schedule must'),
    ({'options': {'beta1': 0.9}}, 'options.beta1 must'),
])
def test_an_error_names_its_config_field(fields, match):
  with pytest.raises(checks.ConfigError, match=f'^config.teacher.o.{match}'):
    optimizer.build_optimizer(config(**fields), 10, field='config.teacher.o')


@pytest.mark.parametrize('jit', [False, True])
def test_ema_by_hand(jit):
  update = jax.jit(optimizer.update_ema) if jit else optimizer.update_ema
  ema = {'w': jnp.array([1.0])}
  # kept = 1/10 at step 0: 0.1 * 1 + 0.9 * 2.
  ema = update(ema, {'w': jnp.array([2.0])}, 0.5, 0)
  np.testing.assert_allclose(ema['w'], [1.9], rtol=1e-6)
  # kept = 2/11 at step 1; the given decay once (1 + s) / (10 + s) reaches 0.5.
  ema = update(ema, {'w': jnp.array([3.0])}, 0.5, 1)
  np.testing.assert_allclose(ema['w'], [1.9 * 2 / 11 + 3 * 9 / 11], rtol=1e-6)
  before = ema['w']
  ema = update(ema, {'w': jnp.array([5.0])}, 0.5, 1000)
  np.testing.assert_allclose(ema['w'], 0.5 * before + 2.5, rtol=1e-6)
