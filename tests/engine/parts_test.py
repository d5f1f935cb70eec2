"""Frozen parts and learning rates by part: by hand, and on every split."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import optimizer
from haikd.engine import parts
from haikd.engine import program as program_lib

OPTIMIZERS = ('adamw', 'sgd', 'lamb', 'adafactor', 'muon')


def tree(*values):
  """Returns parameters of two modules in a block, and of an alignment."""
  w, v, a = (jnp.asarray(value, jnp.float32) for value in values)
  return base.Params({'net/block/up': {'w': w}, 'net/head': {'w': v}},
                     {'features': {'linear': {'w': a}}})


PARAMS = tree([[1.0, -2.0]], [[3.0, 4.0]], [[1.0, 1.0]])
GRADS = tree([[0.3, 0.4]], [[30.0, 40.0]], [[0.0, 1.2]])


def update(**fields):
  """Returns the first update, and the optimizer's state after it."""
  config = config_lib.optimizer()
  config.update({'schedule': 'constant', 'learning_rate': 0.1, **fields})
  chain = optimizer.build_optimizer(config, 10)
  return chain.update(GRADS, chain.init(PARAMS), PARAMS)


def test_what_is_frozen_counts_in_no_norm_and_keeps_no_moments():
  # The norm of what is left is sqrt(0.3^2 + 0.4^2 + 1.2^2) = 1.3.
  updates, state = update(
      name='sgd', clip_norm=0.13, weight_decay=9.0, frozen=('head',),
      options=dict(momentum=0.9))
  decayed = 0.1 * jax.tree.leaves(GRADS.student)[0] + 9 * np.array([[1, -2]])
  np.testing.assert_allclose(updates.student['net/block/up']['w'],
                             -0.1 * decayed, rtol=1e-6)
  assert not updates.student['net/head']['w'].any()
  assert sorted(x.shape for x in jax.tree.leaves(state) if x.ndim) == [
      (1, 2), (1, 2)]


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_a_factor_is_one_of_the_learning_rate(name):
  """Decay included; all that match count; losses/ names what losses learn."""
  plain, _ = update(name=name, weight_decay=0.5)
  slow, _ = update(name=name, weight_decay=0.5, learning_rate=0.01)
  mixed, _ = update(name=name, weight_decay=0.5, lr_multipliers={
      'block/*/w': 0.02, 'block': 5.0, 'losses/f*': 0.1})
  expected = slow._replace(student={
      **plain.student, 'net/block/up': slow.student['net/block/up']})
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), mixed, expected)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_the_rest_is_updated_as_if_the_frozen_part_were_not_there(name):
  updates, _ = update(name=name, weight_decay=0.5, frozen=('up/w',))
  free, _ = update(name=name, weight_decay=0.5)
  assert not updates.student['net/block/up']['w'].any()
  np.testing.assert_allclose(updates.student['net/head']['w'],
                             free.student['net/head']['w'], rtol=1e-6)


@pytest.mark.parametrize('field, globs, match', (
    ('frozen', ('blok',), "^x must match modules .* 'blok'. .* mean 'block'"),
    ('frozen', ('net/*', 'head'), 'x must leave parameters to train; got'),
    ('lr_multipliers', ('block/w',), "must match .* got 'block/w'"),
    ('lr_multipliers', ('linear',), "must match .* got 'linear'"),
    ('lr_multipliers', ('losses/block',), "must match .* got 'losses/block'"),
    ('lr_multipliers', ('losses/feature',), "mean 'losses/features'"),
))
def test_globs_that_cannot_be_meant_are_refused(field, globs, match):
  with pytest.raises(checks.ConfigError, match=match):
    if field == 'frozen':
      parts.check_frozen('x', globs, PARAMS)
    else:
      parts.check('x', globs, PARAMS)


def network(x, *, is_training, num_classes):
  """A block of two layers, and a head."""
  del is_training
  with hk.experimental.name_scope('block'):
    x = jnp.tanh(hk.Linear(8, name='up')(x))
    x = hk.Linear(8, name='down')(x)
  return hk.Linear(num_classes, name='head')(x)


def two_steps(frozen, devices=1, microbatches=1):
  """Returns the parameters before and after, and the metrics of step 1."""
  config = config_lib.base()
  config.student.model = config.teacher.model = 'network'
  config.batch_size, config.microbatches = 16, microbatches
  config.optimizer.update(dict(name='sgd', weight_decay=0.1, frozen=frozen))
  rng = np.random.default_rng(0)
  batch = base.Batch(
      rng.normal(size=(16, 6)).astype(np.float32), np.arange(16) != 3,
      rng.integers(0, 4, 16).astype(np.int32))
  program = program_lib.build_program(
      config,
      spec=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                        batch),
      num_classes=4, has_teacher=False,
      mesh=mesh_lib.build_mesh(config.mesh, jax.devices()[:devices]))
  state = program.init(jax.random.key(0))
  first = jax.device_get(state.params.student)
  sharded = collectives.shard_batch(program.mesh, batch)
  state, metrics = program.train_step(state, None, sharded)
  state, _ = program.train_step(state, None, sharded)
  return first, jax.device_get(state.params.student), metrics


def test_the_step_leaves_frozen_parts_and_trains_the_rest_on_every_mesh():
  with registry.models.temporary():
    registry.register_model()(network)
    first, free, _ = two_steps(())
    _, last, metrics = two_steps(('block', 'head/b'))
    _, split, split_metrics = two_steps(('block', 'head/b'), 8, 2)
  for module in ('block/up', 'block/down'):
    jax.tree.map(np.testing.assert_array_equal, first[module], last[module])
  np.testing.assert_array_equal(first['head']['b'], last['head']['b'])
  assert (first['head']['w'] != last['head']['w']).any()
  # Freezing changes no gradient of the first step, but for what follows it.
  assert np.abs(free['block/up']['w'] - first['block/up']['w']).max() > 0
  assert float(metrics['grad_norm']) == pytest.approx(
      float(split_metrics['grad_norm']), 1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), last,
               split)


def test_the_norm_is_that_of_what_is_trained():
  with registry.models.temporary():
    registry.register_model()(network)
    _, _, everything = two_steps(())
    squares = [two_steps(frozen)[2]['grad_norm']**2
               for frozen in (('block',), ('head',))]
  squares = [float(x) for x in squares]
  assert float(everything['grad_norm'])**2 == pytest.approx(sum(squares), 1e-5)


def test_optax_agrees():
  """Adam on one leaf, by optax alone."""
  updates, _ = update(frozen=('head',), lr_multipliers={'up': 0.5})
  adam = optax.adam(0.05)
  w = PARAMS.student['net/block/up']['w']
  expected, _ = adam.update(GRADS.student['net/block/up']['w'], adam.init(w))
  np.testing.assert_allclose(updates.student['net/block/up']['w'], expected,
                             rtol=1e-6)
