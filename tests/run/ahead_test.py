"""A training calls what was compiled while it did something else."""

from concurrent import futures
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import config as config_lib
from haikd.processes import watchdog
from haikd.run import ahead
from haikd.run import trainees
from haikd.run import writer

SPEC = jax.ShapeDtypeStruct(
    (3,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(
        jax.devices()[0]))


class Compiling:
  """Adds 1, as a jitted function whose compilation does something first.

  Args:
    first: what it does.
  """

  def __init__(self, first):
    self._first = first

  def lower(self, *unused):
    return self

  def compile(self):
    self._first()
    return lambda x: x + 1


def add_one(traced):
  """Returns a function that notes in which thread it was traced."""

  def function(x):
    traced.append(threading.current_thread())
    return x + 1

  return jax.jit(function)


def test_function_is_traced_once_and_here():
  """Settings of JAX and Haiku belong to a thread."""
  traced = []
  with ahead.pool() as pool:
    function = ahead.Ahead(add_one(traced), (SPEC,), pool)
    pool.submit(lambda: None).result()  # It is compiled.
    for _ in range(2):
      np.testing.assert_array_equal(
          function(jnp.arange(3, dtype=jnp.float32)), [1, 2, 3])
  assert traced == [threading.main_thread()]


def test_function_that_waits_for_others_is_called_at_once():
  """As the check before a save, while evaluation is compiled."""
  go_on, traced = threading.Event(), []
  with ahead.pool() as pool:
    other = pool.submit(lambda: go_on.wait(20))
    function = ahead.Ahead(add_one(traced), (SPEC,), pool)
    for _ in range(2):
      np.testing.assert_array_equal(
          function(jnp.arange(3, dtype=jnp.float32)), [1, 2, 3])
    assert not other.done()
    go_on.set()


def test_what_is_needed_later_is_traced_with_a_second_call():
  """The device has something to compute then."""
  x = jnp.arange(3, dtype=jnp.float32)
  traced, traced_later = [], []
  with ahead.pool() as pool:
    function = ahead.Ahead(add_one(traced), (SPEC,), pool)
    later = ahead.Ahead(add_one(traced_later), (SPEC,), pool, later=True)
    pool.submit(lambda: None).result()  # The first is compiled.
    function(x)
    assert (len(traced), len(traced_later)) == (1, 0)
    function(x)
    assert traced_later == [threading.main_thread()]
    pool.submit(lambda: None).result()
    np.testing.assert_array_equal(later(x), [1, 2, 3])
  assert len(traced_later) == 1


def test_what_is_needed_later_is_traced_while_others_are_waited_for():
  go_on, traced = threading.Event(), []

  def wait_for_the_other():
    assert go_on.wait(60)

  def other(x):
    traced.append(None)
    go_on.set()
    return x

  with ahead.pool() as pool:
    function = ahead.Ahead(Compiling(wait_for_the_other), (), pool)
    ahead.Ahead(jax.jit(other), (SPEC,), pool, later=True)
    while not function._compiled.running():
      time.sleep(0.01)
    assert (function(1), len(traced)) == (2, 1)


def test_tracing_ends_once_what_is_waited_for_is_compiled():
  compiled, called = futures.Future(), []
  with ahead.pool() as pool:
    pool.later(lambda: compiled.set_result(None))
    pool.later(lambda: called.append(None))
    pool.catch_up(until=compiled)
    assert not called


def test_what_is_compiled_soon_is_not_worth_tracing_another_for(monkeypatch):
  """As what comes from the cache."""
  monkeypatch.setattr(ahead, '_SOON', 60)
  traced = []

  with ahead.pool() as pool:
    function = ahead.Ahead(Compiling(lambda: time.sleep(0.5)), (), pool)
    ahead.Ahead(add_one(traced), (SPEC,), pool, later=True)
    while not function._compiled.running():
      time.sleep(0.01)
    assert (function(1), traced) == (2, [])


def test_what_is_called_before_it_is_traced_is_compiled_once():
  x = jnp.arange(3, dtype=jnp.float32)
  traced = []
  with ahead.pool() as pool:
    later = ahead.Ahead(add_one(traced), (SPEC,), pool, later=True)
    for _ in range(2):
      np.testing.assert_array_equal(later(x), [1, 2, 3])
    pool.catch_up()
  assert len(traced) == 1 and later._compiled is None


def test_waiting_for_a_compilation_is_a_phase(monkeypatch):
  go_on, phases = threading.Event(), []

  enter = watchdog.enter
  monkeypatch.setattr(watchdog, 'enter', lambda phase, where: (
      phases.append(phase), go_on.set(), enter(phase, where)))
  with ahead.pool() as pool:
    function = ahead.Ahead(Compiling(lambda: go_on.wait(60)), (), pool)
    while not function._compiled.running():
      time.sleep(0.01)
    assert function(1) == 2
  assert phases[0] == watchdog.COMPILATION


@pytest.mark.parametrize('other', [
    np.arange(4, dtype=np.float32), np.arange(3, dtype=np.int32)])
def test_other_arguments_are_compiled_when_they_come(other):
  traced = []
  with ahead.pool() as pool:
    function = ahead.Ahead(add_one(traced), (SPEC,), pool)
    pool.submit(lambda: None).result()
    np.testing.assert_array_equal(function(jnp.asarray(other)), other + 1)
  assert len(traced) == 2


def test_what_cannot_be_compiled_says_so_when_it_is_called():
  def refuse(x):
    raise ValueError('no')

  with ahead.pool() as pool:
    function = ahead.Ahead(jax.jit(refuse), (SPEC,), pool)
    with pytest.raises(ValueError, match='^no'):
      function(jnp.arange(3, dtype=jnp.float32))


def test_arguments_elsewhere_are_compiled_when_they_come():
  traced = []
  with ahead.pool() as pool:
    function = ahead.Ahead(add_one(traced), (SPEC,), pool)
    pool.submit(lambda: None).result()
    there = jax.device_put(np.arange(3, dtype=np.float32), jax.devices()[1])
    np.testing.assert_array_equal(function(there), [1, 2, 3])


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
  wrong, functions = [], set()
  call = ahead.Ahead.__call__

  def spy(self, *arguments):
    self._compiled.exception()  # It does not wait for others.
    functions.add(self)
    with monkeypatch.context() as patch:
      patch.setattr(self, '_function', lambda *_: wrong.append(self))
      return call(self, *arguments)

  monkeypatch.setattr(ahead.Ahead, '__call__', spy)
  haikd.train(config, tmp_path)
  # Of each training: the step, the evaluation, the check before it is saved.
  assert (len(functions), wrong) == (6 if recipe == 'teacher' else 3, [])


@pytest.mark.mesh
def test_only_the_first_step_is_compiled_before_it_is_taken(
    tmp_path, monkeypatch):
  """Its compilation has begun when the networks are still being checked."""
  config = make_config()
  config.teacher.options, config.teacher.train.steps = dict(hidden=(4,)), 2
  config.baseline = True
  events = []

  def note(owner, name, event):
    call = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda self, *arguments: (
        events.append(event(self, *arguments)), call(self, *arguments))[1])

  note(ahead.Ahead, '_begin', lambda self: f'compile for {self._title}')
  note(trainees.Trainee, 'check_evaluation', lambda self: f'check {self.title}')
  note(writer.Writer, 'progress', lambda self, step: f'step {step}')
  haikd.train(config, tmp_path)
  assert events[:5] == ['compile for teacher', 'check student',
                        'check student alone', 'check teacher', 'step 1']
  assert events[5:].index('compile for student alone') < events[5:].index(
      'step 1')


@pytest.mark.parametrize('taken, are_many, expected', [
    ((0, 0), False, ['teacher 0']), ((2, 5), False, ['student 1']),
    ((2, 9), False, []), ((0, 0), True, [])])
def test_the_step_that_a_job_begins_with(
    taken, are_many, expected, monkeypatch, tmp_path):
  """The stages of both networks begin with their steps 1 and 5."""
  monkeypatch.setattr(ahead, '_steps_taken', lambda network, _: network.taken)
  monkeypatch.setattr(ahead, '_step', lambda network, stage, _: stage)
  monkeypatch.setattr(ahead.distributed, 'is_many', lambda: are_many)
  networks = [
      types.SimpleNamespace(
          taken=number, data=None, config=types.SimpleNamespace(steps=steps),
          program=types.SimpleNamespace(
              stages=(f'{title} 0', f'{title} 1'),
              stage_of=lambda step: int(step >= 5)))
      for number, steps, title in zip(taken, (2, 9), ('teacher', 'student'))]
  compiler = types.SimpleNamespace(begun={})
  ahead.begin(networks, tmp_path, compiler)
  assert list(compiler.begun.values()) == expected
  if not expected:  # Nor is one compiled when a network is started.
    assert ahead.start(networks[1], tmp_path, compiler) is networks[1]


def test_state_of_a_later_stage_is_checked(tmp_path):
  config = make_config()
  config.distillation.alpha = 0.0
  config.stages.later = dict(start=2, optimizer=dict(name='sgd'))
  haikd.train(config, tmp_path)
