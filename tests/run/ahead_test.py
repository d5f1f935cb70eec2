"""A training calls what was compiled while it did something else."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import config as config_lib
from haikd.run import ahead

SPEC = jax.ShapeDtypeStruct(
    (3,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(
        jax.devices()[0]))


def add_one(traced):
  """Returns a function that notes in which thread it was traced."""

  def function(x):
    traced.append(threading.current_thread().name)
    return x + 1

  return jax.jit(function)


def test_function_is_traced_once_and_in_the_thread():
  traced = []
  with ahead.pool() as pool:
    function = ahead.Ahead(add_one(traced), (SPEC,), pool)
    for _ in range(2):
      np.testing.assert_array_equal(
          function(jnp.arange(3, dtype=jnp.float32)), [1, 2, 3])
  assert len(traced) == 1
  assert traced[0].startswith('compiles')


@pytest.mark.parametrize('other', [
    np.arange(4, dtype=np.float32), np.arange(3, dtype=np.int32)])
def test_other_arguments_are_compiled_when_they_come(other):
  traced = []
  with ahead.pool() as pool:
    function = ahead.Ahead(add_one(traced), (SPEC,), pool)
    np.testing.assert_array_equal(function(jnp.asarray(other)), other + 1)
  assert threading.current_thread().name in traced


def test_what_cannot_be_compiled_says_so_when_it_is_called():
  def refuse(x):
    raise ValueError('no')

  with ahead.pool() as pool:
    function = ahead.Ahead(jax.jit(refuse), (SPEC,), pool)
    with pytest.raises(ValueError, match='^no'):
      function(jnp.arange(3, dtype=jnp.float32))


def test_what_waits_at_the_end_is_dropped():
  began, go_on = threading.Event(), threading.Event()
  with ahead.pool() as pool:
    pool.submit(lambda: began.set() or go_on.wait(60))
    began.wait(60)
    waiting = pool.submit(lambda: None)
  assert waiting.cancelled()
  go_on.set()


def make_config():
  config = config_lib.base()
  config.steps, config.batch_size, config.checkpoint_every = 4, 16, 2
  config.evaluation.batch_size = 16
  config.data.name = 'synthetic'
  config.data.options = dict(size=50, shape=(4, 4, 1), num_classes=3)
  config.student.model = 'convnet'  # Has a state.
  config.student.options = dict(channels=(2,))
  config.optimizer.ema_decay = 0.9
  config.baseline = config.report.write = False
  return config


@pytest.mark.mesh
@pytest.mark.parametrize('recipe', ['teacher', 'alone', 'resumed'])
def test_training_calls_what_was_compiled_ahead(tmp_path, monkeypatch, recipe):
  config = make_config()
  if recipe == 'alone':
    config.distillation.alpha = 0.0
  else:
    config.teacher.options, config.teacher.train.steps = dict(hidden=(4,)), 2
  if recipe == 'resumed':
    haikd.train(config, tmp_path)
    config.steps = 6
  ahead_calls = []
  call = ahead.Ahead.__call__

  def spy(self, *arguments):
    with monkeypatch.context() as patch:
      patch.setattr(self, '_function', lambda *_: pytest.fail('called'))
      ahead_calls.append(self)
      return call(self, *arguments)

  monkeypatch.setattr(ahead.Ahead, '__call__', spy)
  haikd.train(config, tmp_path)
  # Of each training: the step, the evaluation, the check before it is saved.
  assert len(set(ahead_calls)) == (6 if recipe == 'teacher' else 3)


def test_state_of_a_later_stage_is_checked(tmp_path):
  config = make_config()
  config.distillation.alpha = 0.0
  config.stages.later = dict(start=2, optimizer=dict(name='sgd'))
  haikd.train(config, tmp_path)
