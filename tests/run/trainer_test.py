"""Training: divergence, the order of its work, and how it goes on."""

import itertools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import config as config_lib
from haikd.core import checks
from haikd.core import registry
from haikd.data import pipeline
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.processes import watchdog
from haikd.run import job
from haikd.run import rates
from haikd.run import teachers
from haikd.run import trainer
from haikd.run import training
from haikd.run import writer
from haikd.storage import checkpoint
from haikd.storage import checkpointer as checkpointer_lib
from haikd.storage import fingerprint
from haikd.storage import step_folder


@pytest.fixture
def config():
  config = config_lib.base()
  config.steps = 60
  config.batch_size = 16
  config.checkpoint_every = 1
  config.data.name = 'synthetic'
  config.data.options = dict(size=50, shape=(4, 4, 1), num_classes=3)
  config.teacher.options = dict(hidden=(8,))
  config.teacher.train.steps = 2
  config.student.options = dict(hidden=(4,))
  with registry.losses.temporary():

    @haikd.register_loss(on='logits')
    def steep(student, teacher, *, mask):
      """Is 0 with gradient NaN: the root has no derivative at 0."""
      return haikd.masked_mean(jnp.sqrt(jnp.abs(student - student)), mask)

    yield config


def checkpoints(workdir):
  return list((workdir / 'checkpoints').glob('[0-9]*'))


@pytest.mark.parametrize('steps', (1, 60))
def test_gradient_that_is_not_finite_ends_the_run(config, tmp_path, steps):
  config.steps = steps
  config.losses.x = dict(loss='steep')
  match = 'got grad_norm: not finite, from student/.* on, at step 1 of'
  with pytest.raises(checks.DivergedError, match=match):
    job.train(config, tmp_path)
  assert not checkpoints(tmp_path)


def test_update_that_is_not_finite_is_not_kept(config, tmp_path):
  # The gradient is finite; times the learning rate it exceeds 3.4e38.
  config.losses.x = dict(loss='kl_divergence', weight=1e4)
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 3e38
  config.optimizer.schedule = 'constant'
  match = 'got params/student/.*: not finite, at step 1 of student'
  with pytest.raises(checks.DivergedError, match=match):
    job.train(config, tmp_path)
  assert not checkpoints(tmp_path)


def test_loss_scale_that_cannot_fall_further_ends_the_run(config, tmp_path):
  config.student.precision = 'float16'
  config.losses.x = dict(loss='steep')
  config.checkpoint_every = 100
  config.log_every = 1
  # 2^15 can be halved 15 times.
  match = 'got grad_norm: .* at step 1[56]'
  with pytest.raises(checks.DivergedError, match=match):
    job.train(config, tmp_path)


class Training:
  """A student without a teacher on one device.

  Attributes:
    config, program, data, workdir: the arguments of `trainer.train`.
  """

  def __init__(self, workdir, **fields):
    config = config_lib.base()
    config.steps = 11
    config.batch_size = 16
    config.log_every = 2
    config.checkpoint_every = 4
    config.evaluation.every = 5
    config.data.name = 'synthetic'
    config.data.options = dict(size=50, shape=(4, 4, 1), num_classes=3)
    config.student.options = dict(hidden=(4,))
    config.update_from_flattened_dict(fields)
    self.workdir, self.config = workdir, config
    self.data = pipeline.build_data(config)
    self.program = program_lib.build_program(
        config, spec=self.data.spec, num_classes=self.data.num_classes,
        mesh=mesh_lib.build_mesh(config.mesh, jax.devices()[:1]),
        has_teacher=False)

  def start(self, teacher=None):
    return trainer.train(self.config, self.program, self.data, teacher,
                         self.workdir, 'student')

  def wrap(self, change):
    """Replaces the result of a step by `change(number, state, metrics)`."""
    step = self.program.train_step
    self.replace_step(
        lambda *args: change(int(args[0].step) + 1, *step(*args)))

  def replace_step(self, step):
    """Replaces the step of the first stage."""
    first, *others = self.program.stages
    self.program = self.program._replace(
        stages=(first._replace(train_step=step), *others))

  def rows(self):
    lines = (self.workdir / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]

  def newest(self):
    return int(step_folder.find(self.workdir / 'checkpoints').name)


class _Cut(Exception):
  """Ends a run between two checkpoints, like a kill."""


def stop_at(monkeypatch, number, how):
  """Makes a run end in its `number`-th step, by SIGTERM or by a kill."""
  steps = itertools.count(1)

  def requested():
    stop = next(steps) == number
    if stop and how == 'kill':
      raise _Cut
    return stop

  monkeypatch.setattr(training.distributed, 'stop_requested', requested)


def record(monkeypatch, kind, name, events, what):
  """Appends `what(*args)` to `events` when a method is called."""
  original = getattr(kind, name)

  def method(self, *args, **kwargs):
    events.append(what(*args, **kwargs))
    return original(self, *args, **kwargs)

  monkeypatch.setattr(kind, name, method)


def test_work_is_done_in_the_step_it_is_due_and_all_in_the_last(
    tmp_path, monkeypatch):
  training, saved = Training(tmp_path), []
  record(monkeypatch, checkpointer_lib.Checkpointer, 'save', saved,
         lambda step, *unused: step)
  training.start()
  assert saved == [4, 8, 11] and training.newest() == 11
  steps = {'train': [], 'eval/validation': []}
  for row in rates.without(training.rows()):
    steps[row['split']].append(row['step'])
  # A step that is evaluated or saved is logged as well.
  assert steps == {'train': [2, 4, 5, 6, 8, 10, 11],
                   'eval/validation': [5, 10, 11]}


def test_by_default_there_are_about_ten_evaluations(tmp_path):
  training = Training(tmp_path, **{'steps': 24, 'evaluation.every': 0,
                                   'checkpoint_every': 100})
  training.start()
  assert [row['step'] for row in training.rows()
          if row['split'] == 'eval/validation'] == list(range(2, 25, 2))


def test_rows_are_written_out_before_their_checkpoint(tmp_path, monkeypatch):
  training, events = Training(tmp_path), []
  record(monkeypatch, writer.Writer, 'flush', events, lambda: 'flush')
  record(monkeypatch, checkpointer_lib.Checkpointer, 'save', events,
         lambda step, *unused: (step, training.rows()[-1]['step']))
  training.start()
  assert events == ['flush', (4, 4), 'flush', (8, 8), 'flush', (11, 11)]


@pytest.mark.parametrize('how, error, kept', (
    ('kill', _Cut, 4), ('sigterm', checks.StoppedError, 7)))
def test_ended_run_goes_on_as_if_nothing_had_happened(
    tmp_path, monkeypatch, how, error, kept):
  undisturbed = Training(tmp_path / 'undisturbed')
  expected = undisturbed.start()
  with monkeypatch.context() as patch:
    stop_at(patch, 7, how)
    training = Training(tmp_path / 'ended')
    with pytest.raises(error):
      training.start()
  assert training.newest() == kept
  resumed = Training(tmp_path / 'ended').start()
  assert fingerprint.tree_hash(resumed.network) == fingerprint.tree_hash(
      expected.network)
  rows = {}
  for name, run in (('undisturbed', undisturbed), ('ended', training)):
    rows[name] = rates.without(run.rows())
  extra = [row for row in rows['ended'] if row['step'] == 7]
  # A run that stops logs the step it stops at; all other rows are equal.
  assert len(extra) == (how == 'sigterm')
  assert [row for row in rows['ended'] if row['step'] != 7] == (
      rows['undisturbed'])


def test_stop_waits_until_all_is_saved(tmp_path, monkeypatch):
  events = []
  stop_at(monkeypatch, 7, 'sigterm')
  record(monkeypatch, checkpointer_lib.Checkpointer, 'save', events,
         lambda step, *unused: step)
  record(monkeypatch, checkpointer_lib.Checkpointer, 'wait', events,
         lambda: 'wait')
  match = '^stopped by SIGTERM at step 7 of student, which is saved. Start it'
  with pytest.raises(checks.StoppedError, match=match):
    Training(tmp_path).start()
  # Each save waits for the one before; closing waits too, but not with many
  # processes.
  assert events[:5] == [4, 'wait', 7, 'wait', 'wait']


def test_seconds_are_of_all_starts_and_speed_is_of_steps_alone(
    tmp_path, monkeypatch):
  """A step takes 10 seconds and an evaluation 100."""
  now = [5000.0]

  def take(seconds, result):
    now[0] += seconds
    return result

  def build():
    training = Training(tmp_path, log_every=100)
    training.wrap(lambda step, *results: take(10, results))
    return training

  for module in (training.clock_lib, watchdog):
    monkeypatch.setattr(module, 'time',
                        types.SimpleNamespace(monotonic=lambda: now[0]))
  monkeypatch.setattr(training.evaluate, 'evaluate',
                      lambda *unused: take(100, {}))
  with monkeypatch.context() as patch:
    stop_at(patch, 7, 'sigterm')
    with pytest.raises(checks.StoppedError):
      build().start()
  assert checkpoint.metadata(tmp_path)['seconds'] == 7 * 10 + 100
  now[0] += 10_000
  assert build().start().seconds == 11 * 10 + 3 * 100
  now[0] += 10_000
  finished = build()
  assert finished.start().seconds == 11 * 10 + 3 * 100
  speeds = [row['examples_per_second'] for row in finished.rows()
            if row['split'] == 'train']
  assert speeds == [16 / 10] * 6


def test_step_is_dispatched_before_the_previous_one_is_read(tmp_path):
  """The device computes while the host reads and writes."""
  training, events = Training(tmp_path, **{
      'steps': 4, 'log_every': 1, 'checkpoint_every': 100,
      'evaluation.every': 100}), []

  class Result:
    """A metric that records when it is read."""

    def __init__(self, step):
      self.step = step

    def __array__(self, *unused, **also_unused):
      events.append(f'read {self.step}')
      return np.ones((), np.float32)

  def change(step, state, metrics):
    events.append(f'step {step}')
    return state, dict(loss=Result(step), seen=metrics['seen'])

  training.wrap(change)
  training.start()
  # The last step is read without waiting for another one.
  assert events == ['step 1', 'step 2', 'read 1', 'step 3', 'read 2', 'step 4',
                    'read 3', 'read 4']


TEXTS = {
    'data.options': dict(kind='tokens', size=50, length=9, vocabulary=8),
    'student.model': 'llama', 'optimizer.ema_decay': 0.9,
    'student.options': dict(width=8, depth=1, heads=2, hidden=8)}


@pytest.mark.parametrize('start', ('anew', 'resumed', 'from weights'))
def test_ragged_batches_and_evaluations_compile_every_step_once(
    tmp_path, monkeypatch, start):
  """Rows are of 2 to 9 tokens, and 14 of the last evaluated batch are empty."""
  fields = dict(TEXTS)
  if start == 'resumed':
    with monkeypatch.context() as patch:
      stop_at(patch, 3, 'sigterm')
      with pytest.raises(checks.StoppedError):
        Training(tmp_path, **fields).start()
  if start == 'from weights':
    Training(tmp_path / 'first', **fields).start()
    fields['student.init'] = str(tmp_path / 'first')
  training = Training(tmp_path, **fields)
  training.start()
  assert training.newest() == 11
  assert training.program.train_step._function._cache_size() == 1
  assert training.program.eval_step._cache_size() == 1


def test_another_teacher_is_refused(tmp_path):
  Training(tmp_path, steps=4).start(teachers.Teacher(None, 'a' * 64))
  with pytest.raises(checks.DataError, match='^teacher must be the one that'):
    Training(tmp_path).start(teachers.Teacher(None, 'b' * 64))


@pytest.mark.parametrize('decay', (0.0, 0.9))
def test_student_starts_with_weights_and_state_of_another_run(tmp_path, decay):
  fields = {'steps': 3, 'student.model': 'convnet',
            'student.options': dict(channels=(4,)),
            'optimizer.ema_decay': decay, 'optimizer.learning_rate': 0.1}
  first = Training(tmp_path / 'first', **fields).start()
  second = Training(tmp_path / 'second', seed=1, **fields, **{
      'student.init': str(tmp_path / 'first')})

  def capture(state, *unused):
    raise _Cut(jax.device_get(state))

  second.replace_step(capture)
  with pytest.raises(_Cut) as error:
    second.start()
  state = error.value.args[0]
  params, net_state = checkpoint.load_network(tmp_path / 'first')
  assert jax.tree.leaves(net_state)
  for actual, expected in ((first.network.params, params),
                           (state.params.student, params),
                           (state.net_state, net_state),
                           (state.ema, params if decay else None)):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_what_an_evaluation_that_fails_interrupts_is_kept(
    config, tmp_path, monkeypatch):
  """Step 4 is saved, its evaluation repeated, and the end is the same."""
  config.steps, config.checkpoint_every = 8, 100
  config.evaluation.every, config.log_every = 4, 2
  config.teacher.train.steps = 1
  evaluate, splits = training.evaluate.evaluate, []

  def fail(*args):
    splits.append(1)
    if len(splits) == 3:  # After those of the teacher.
      raise ValueError('no memory left')
    return evaluate(*args)

  expected = job.train(config, tmp_path / 'whole')
  with monkeypatch.context() as patch:
    patch.setattr(training.evaluate, 'evaluate', fail)
    with pytest.raises(ValueError, match='no memory left'):
      job.train(config, tmp_path / 'run')
  assert [path.name for path in checkpoints(tmp_path / 'run')] == ['4']
  for _ in range(2):  # A kill before the next checkpoint repeats it once more.
    with monkeypatch.context() as patch:
      # Evaluation, which uses the same function, goes on.
      patch.setattr(training, 'collectives', types.SimpleNamespace(
          shard_batch=lambda *args: pytest.fail('killed')))
      with pytest.raises(BaseException, match='killed'):
        job.train(config, tmp_path / 'run')
  assert job.train(config, tmp_path / 'run')['student'] == pytest.approx(
      {**expected['student'], 'seconds': pytest.approx(0, abs=1e9)})
  whole, resumed = (
      rates.without(map(json.loads, (
          tmp_path / name / 'metrics.jsonl').read_text().splitlines()))
      for name in ('whole', 'run'))
  assert resumed == whole
