"""Balanced weights: NumPy's after two steps, on meshes, after a kill."""

import functools

import haiku as hk
import jax
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.objective import balance as balance_lib
from haikd.storage import leaves as leaves_lib

ROWS, WIDTH, CLASSES, RATE = 16, 5, 3, 0.5
KINDS = (dict(kind='gradient_norm', alpha=0.5, every=2, rate=0.4),
         'uncertainty', dict(kind='dtp', gamma=2.0, rate=0.3))


def linear(inputs, *, is_training, num_classes):
  del is_training
  return hk.Linear(num_classes, w_init=hk.initializers.RandomNormal())(inputs)


@pytest.fixture(autouse=True)
def models():
  with registry.models.temporary():
    registry.register_model()(linear)
    yield


def make_batch(number):
  """Half of the examples are padding, on four devices unevenly."""
  rng = np.random.RandomState(number)
  mask = np.arange(ROWS) % 8 < np.arange(ROWS) // 4 + 2
  return base.Batch(
      inputs=rng.randn(ROWS, WIDTH).astype(np.float32), mask=mask,
      labels=rng.randint(0, CLASSES, ROWS).astype(np.int32))


def make_config(balance, microbatches=1):
  config = config_lib.base()
  config.balance, config.microbatches = balance, microbatches
  config.steps, config.batch_size = 3, ROWS
  config.student.model = config.teacher.model = 'linear'
  config.distillation.alpha = None
  config.losses.hard = dict(loss='cross_entropy', weight=0.5)
  config.losses.soft = dict(loss='logit_mse', weight=dict(
      kind='linear', start=2.0, end=1.0, steps=2))
  config.optimizer.update(dict(
      name='sgd', learning_rate=RATE, schedule='constant', weight_decay=0.1))
  config_lib.validate(config)
  return config


def build(config, devices):
  batch = make_batch(0)
  program = program_lib.build_program(
      config,
      spec=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                        batch),
      num_classes=CLASSES,
      mesh=mesh_lib.build_mesh(config.mesh, jax.devices()[:devices]),
      has_teacher=True)
  init = jax.jit(program.objective.teacher.init)
  return program, program.freeze(
      base.Variables(*init(jax.random.key(7), batch)))


def simulate(balance, student, teacher):
  """Returns the weights and losses of each step, in float64 NumPy.

  Nothing of it is haikd's: the gradients of a linear softmax, of a mean squared
  error and of the log-variances are written down.
  """
  options = config_lib.balance(balance)
  kind, names = options['kind'], ('hard', 'soft')
  weight, bias = (np.float64(student['linear'][key]) for key in 'wb')
  log_variance = np.zeros(2)
  initial = mean = norm = None
  indicator, rows = np.full(2, np.exp(-1)), []
  for step in range(3):
    batch = make_batch(step)
    x, labels = np.float64(batch.inputs[batch.mask]), batch.labels[batch.mask]
    logits = x @ weight + bias
    target = x @ np.float64(teacher['linear']['w']) + teacher['linear']['b']
    softmax = np.exp(logits)
    softmax /= softmax.sum(axis=1, keepdims=True)
    hard = -np.log(softmax[np.arange(len(x)), labels]).mean()
    losses = np.array([hard, ((logits - target)**2).mean()])
    slopes = (softmax - np.eye(CLASSES)[labels]) / len(x), (
        2 * (logits - target) / logits.size)
    gradients = [(x.T @ slope, slope.sum(axis=0)) for slope in slopes]
    if kind == 'gradient_norm':
      if step % options['every'] == 0:
        new = np.array([np.sqrt(sum((x**2).sum() for x in g))
                        for g in gradients])
        if norm is None:
          initial, mean, norm = losses, losses, new
        mean = mean + options['rate'] * (losses - mean) if step else mean
        norm = norm + options['rate'] * (new - norm) if step else norm
      left = mean / initial
      factors = (left / left.mean())**options['alpha'] / norm
      factors *= 2 / factors.sum()
    elif kind == 'uncertainty':
      factors = np.exp(-log_variance)
    else:
      factors = -(1 - indicator)**options['gamma'] * np.log(indicator)
      initial = losses if initial is None else initial
      indicator = indicator + options['rate'] * (
          np.exp(-losses / initial) - indicator)
    fixed = np.array([0.5, 2 - step / 2])
    loss = fixed * factors @ losses
    if kind == 'uncertainty':
      loss += fixed @ log_variance / 2
      log_variance -= RATE * fixed * (0.5 - factors * losses)
    rows.append({'loss': loss, **{
        f'weight/{name}': w for name, w in zip(names, fixed * factors)}, **{
            f'loss/{name}': x for name, x in zip(names, losses)}})
    slope = [sum(w * g[i] for w, g in zip(fixed * factors, gradients))
             for i in range(2)]
    weight = weight - RATE * (slope[0] + 0.1 * weight)  # Decay of 0.1.
    bias = bias - RATE * slope[1]
  return rows


@pytest.mark.parametrize('devices, microbatches', (
    pytest.param(1, 1, marks=pytest.mark.slow), (4, 2)))
@pytest.mark.parametrize('balance', KINDS)
def test_weights_are_those_of_numpy_on_any_mesh(balance, devices, microbatches):
  program, frozen = build(make_config(balance, microbatches), devices)
  stage, = program.stages
  state = program.init(jax.random.key(0))
  expected = simulate(balance, *jax.device_get(
      (state.params.student, frozen.params)))
  for step in range(3):
    if step == 2:  # A run that is killed here goes on from what is saved.
      assert set(leaves_lib.flatten(state)) == set(
          leaves_lib.flatten(program.abstract_state))
      saved = jax.device_get(state)
    batch = collectives.shard_batch(program.mesh, make_batch(step))
    state, metrics = stage.take(step + 1, state, frozen, batch)
    for name, value in expected[step].items():
      np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
  again, _ = stage.take(
      3, jax.device_put(saved, mesh_lib.shardings_of(program.abstract_state)),
      frozen, batch)
  jax.tree.map(np.testing.assert_array_equal, again, state)


def test_what_was_measured_of_a_wrong_step_is_dropped():
  config = make_config(dict(kind='gradient_norm', every=1))
  config.guard.nonfinite, config.guard.max_grad_norm = 'skip', 1e-6
  program, frozen = build(config, 1)
  stage, = program.stages
  state = before = program.init(jax.random.key(0))
  before = jax.device_get(before.balance)
  for step in (1, 2):
    batch = collectives.shard_batch(program.mesh, make_batch(step))
    state, metrics = stage.take(step, state, frozen, batch)
    assert metrics['seen'].number == step
  jax.tree.map(np.testing.assert_array_equal, state.balance, before)


def scalars(**values):
  return {name: np.float32(x) for name, x in values.items()}


def test_terms_that_are_off_do_not_count():
  balance = balance_lib.Balance('gradient_norm', alpha=1.0, rate=0.5)
  state = balance.begin(('a', 'b', 'c', 'other'))
  assert balance.factors(dict(a=1.0, b=1.0), state, {}) == dict(a=1.0, b=1.0)
  state = balance.measure(
      state, scalars(a=1.0, b=3.0, c=np.inf),
      scalars(a=2.0, b=4.0, c=1.0), dict(a=True, b=True, c=True))
  assert not np.any([*state['c'].values(), *state['other'].values()])
  seen = dict(a=True, b=True, c=False)
  state = balance.measure(
      state, scalars(a=3.0, b=1.0, c=5.0), scalars(a=0.0, b=2.0, c=0.0), seen)
  assert float(state['c']['norm']) == 0
  # Means of 2 and 2; of the losses (2 + 0) / 2 = 1 of 2 and 3 of 4 are left,
  # 0.8 and 1.2 of their mean: factors as 0.4 and 0.6, which add up to 2.
  factors = balance.factors(dict(a=1.0, b=0.1, c=1.0), state, {})
  np.testing.assert_allclose(list(factors.values()), (0.8, 1.2, 1), rtol=1e-6)
  # One of weight 0 leaves the other alone.
  factors = balance.factors(dict(a=0.0, b=1.0), state, {})
  np.testing.assert_allclose(list(factors.values()), (1, 1), rtol=1e-6)


def test_means_of_nothing_change_nothing():
  balance = balance_lib.Balance('dtp', gamma=1.0, rate=0.5)
  state = balance.begin(('a', 'b'))
  after = balance.observe(state, scalars(a=0.0, b=4.0),
                          dict(a=False, b=True))
  after = balance.observe(after, scalars(a=3.0, b=0.0), dict(a=True, b=True))
  # The first mean of a is 3; b went from exp(-1) half of the way to 1.
  found = [float(after[name][key]) for name in 'ab'
           for key in ('initial', 'indicator')]
  np.testing.assert_allclose(
      found, (3, np.exp(-1), 4, (1 + np.exp(-1)) / 2), rtol=1e-6)
  learning = balance_lib.Balance('uncertainty')
  align = learning.parameters(('a', 'b'))
  value, slopes = learning.learn(
      align, align, dict(a=2.0, b=2.0), scalars(a=0.0, b=3.0),
      dict(a=False, b=True))
  assert float(value) == 0
  assert [float(slopes[name]['balance']['log_variance']) for name in 'ab'] == [
      0, 2 * (0.5 - 3)]


@pytest.mark.parametrize('fields, text', (
    (dict(balance='dpt'), "config.balance must be a known kind, .* 'dtp'"),
    (dict(balance=3), 'config.balance must be a known kind'),
    (dict(balance=dict(alpha=1.0)), 'config.balance must be a known kind'),
    (dict(balance=dict(kind='dtp', gama=1.0)),
     "config.balance.gama must be an option of dtp. Did you mean 'gamma'"),
    (dict(balance=dict(kind='dtp', rate=0.0)),
     'config.balance.rate must be above 0 and at most 1; got 0.0'),
    (dict(balance=dict(kind='gradient_norm', every=0)),
     'config.balance.every must be a positive int; got 0'),
    (dict(balance=dict(kind='gradient_norm', alpha=-1.0)),
     'config.balance.alpha must be 0 or more'),
    (dict(balance=dict(kind='uncertainty', alpha=1.0)),
     'config.balance.alpha must be an option of uncertainty'),
    ({'balance': 'dtp', 'losses.hard.weight': -0.5},
     'config.losses.hard.weight must be 0 or more with config.balance=.dtp.; '
     'got -0.5'),
    ({'balance': 'dtp', 'distillation.use_feature_matching': True,
      'distillation.feature_loss_weight': dict(
          kind='linear', start=1.0, end=-1.0, steps=2)},
     'config.distillation.feature_loss_weight must be 0 or more with')))
def test_balance_that_cannot_be_is_refused(fields, text):
  config = make_config('fixed')
  with config.ignore_type():
    for name, value in fields.items():
      config.update_from_flattened_dict({name: value})
  with pytest.raises(checks.ConfigError, match=text):
    config_lib.validate(config)


def test_a_single_loss_is_not_balanced():
  config = make_config('dtp')
  del config.losses['soft']
  with pytest.raises(checks.ConfigError, match=(
      r"config\.balance must be fixed where there is one loss; got 'dtp'")):
    build(config, 1)


def test_a_loss_below_zero_is_refused():
  check = functools.partial(balance_lib.check_means, step=3)
  check({'loss': -1.0, 'loss/a': -1e-6, 'weight/b': -1.0})
  with pytest.raises(checks.ConfigError, match=(
      r'must weigh losses that are never negative; got loss/a=-0\.5 at ste')):
    check({'loss/a': -0.5})
