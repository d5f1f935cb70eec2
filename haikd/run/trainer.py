"""Training, from resuming to the last checkpoint. Reads top to bottom."""

import time
from typing import NamedTuple, Optional

import jax
import numpy as np

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.data import pipeline
from haikd.engine import collectives
from haikd.engine import evaluate
from haikd.engine import program as program_lib
from haikd.processes import distributed
from haikd.run import pretrained
from haikd.run import writer as writer_lib
from haikd.storage import checkpoint
from haikd.storage import paths


class Teacher(NamedTuple):
  """A teacher in use.

  Attributes:
    frozen: its parameters, in its compute dtype, and state, on the mesh.
    identity: a hash of them, kept with every checkpoint of its student.
  """

  frozen: base.Variables
  identity: str


class Trained(NamedTuple):
  """A network after its training.

  Attributes:
    network: parameters (their running mean, if there is one) and state.
    seconds: how long training took, over all restarts.
  """

  network: base.Variables
  seconds: float


def train(config: config_lib.ConfigDict, program: program_lib.Program,
          data: pipeline.Data, teacher: Optional[Teacher],
          workdir: paths.Path, title: str) -> Trained:
  """Trains `config.student`, or goes on where it stopped.

  Args:
    config: a validated config, its plugins imported.
    program: from `build_program(config, …)`.
    data: from `build_data(config)`.
    teacher: what to learn from; None for the labels alone.
    workdir: where its files go.
    title: what the progress bar calls it.

  Returns:
    The trained network.

  Raises:
    DataError: data or files that cannot be used.
    DivergedError: the loss is not finite.
    StoppedError: SIGTERM has come, and the step it came in is saved.
  """
  frozen = teacher.frozen if teacher else None
  identity = teacher.identity if teacher else ''
  vocabulary = data.text.identity if data.text else ''
  iterator = data.train()
  with (distributed.stoppable(),
        checkpoint.Checkpointer(workdir, keep=config.keep_checkpoints) as
        checkpointer, writer_lib.open_writer(
            workdir, total_steps=config.steps, title=title,
            enabled=jax.process_index() == 0) as writer):
    state, seconds = _resume(program, checkpointer, iterator, identity,
                             vocabulary)
    if state is None:
      state = program.init(jax.random.key(config.seed))
      state = _warm_start(state, config, program, data)
    first = int(state.step)
    writer.truncate(first)
    clock = _Clock(first, seconds)

    def diverged(step, what):
      checkpointer.wait()
      return checks.DivergedError(
          f'trainer.train: loss and gradient must stay finite; got {what} at '
          f'step {step} of {title}. Step {checkpointer.latest_step() or 0} is '
          'what a new start goes on from. Lower the learning rate, set '
          'config.optimizer.clip_norm, or look for bad data.')

    def log(step, metrics):
      metrics = {name: float(x) for name, x in jax.device_get(metrics).items()}
      wrong = _not_finite(metrics)
      if wrong:
        raise diverged(step, wrong)
      speed = clock.steps_per_second(step) * config.batch_size
      writer.write(step, 'train', {**metrics, 'examples_per_second': speed})

    pending = None
    for step in range(first + 1, config.steps + 1):
      batch = collectives.shard_batch(program.mesh, next(iterator))
      state, metrics = program.train_step(state, frozen, batch)
      # The device is at work on this step: now there is time for the last one.
      writer.progress(step)
      if pending:
        log(*pending)
        pending = None
      stopping = distributed.stop_requested()
      saving = stopping or _due(step, config.checkpoint_every, config.steps)
      evaluating = _due(step, _evaluation_interval(config), config.steps)
      if saving or evaluating:
        log(step, metrics)
      elif _due(step, config.log_every, config.steps):
        pending = step, metrics
      if evaluating:
        split = config.evaluation.split
        scores = evaluate.evaluate(program.eval_step,
                                   program_lib.trained_network(state), frozen,
                                   data.evaluation(split), program.mesh)
        writer.write(step, f'eval/{split}', scores)
      if saving:
        if not program.is_finite(state):
          raise diverged(step, 'parameters that are not finite')
        writer.flush()
        checkpointer.save(step, state, iterator.get_state(),
                          dict(teacher=identity, vocabulary=vocabulary,
                               seconds=clock.seconds(), config=config))
      if saving or evaluating:
        clock.mark(step)
      if stopping:
        checkpointer.wait()
        raise checks.StoppedError(
            f'trainer.train: stopped by SIGTERM at step {step} of {title}, '
            'which is saved. Start it again to go on.')
  if first < config.steps:
    seconds = clock.seconds()
  return Trained(program_lib.trained_network(state), seconds)


class _Clock:
  """Time that training took, over all restarts, and its speed."""

  def __init__(self, step, seconds):
    self._start = time.monotonic() - seconds
    self.mark(step)

  def seconds(self):
    """Returns the time since the first start, evaluations included."""
    return time.monotonic() - self._start

  def mark(self, step):
    """Begins to measure the speed at this step."""
    self._mark = step, time.monotonic()

  def steps_per_second(self, step):
    """Returns the speed since the last mark, and marks this step."""
    (old_step, old_time), now = self._mark, time.monotonic()
    self.mark(step)
    return (step - old_step) / max(now - old_time, 1e-9)


def _due(step, every, last):
  return step % every == 0 or step == last


def _evaluation_interval(config):
  return config.evaluation.every or max(config.steps // 10, 1)


def _not_finite(metrics):
  """Returns what of a step's metrics is wrong, or None.

  A dynamic loss scale meets gradients that are not finite by halving itself;
  once it is at its least, nothing is left to halve.
  """
  if not np.isfinite(metrics['loss']):
    return f'loss={metrics["loss"]}'
  if not np.isfinite(metrics['grad_norm']) and metrics.get('loss_scale',
                                                           1.0) <= 1.0:
    return f'grad_norm={metrics["grad_norm"]}'
  return None


def _resume(program, checkpointer, iterator, identity, vocabulary):
  """Returns the newest state and the seconds it took, or (None, 0)."""
  restored = checkpointer.restore(program.abstract_state)
  if restored is None:
    return None, 0.0
  state, iterator_state, metadata = restored
  checkpoint.check_vocabulary('trainer.train', metadata, vocabulary)
  checkpoint.check_teacher('trainer.train', metadata, identity)
  iterator.set_state(iterator_state)
  return state, metadata['seconds']


def _warm_start(state, config, program, data):
  """Returns the state with the weights of `config.student.init`, if any."""
  if not config.student.init:
    return state
  expected = program.abstract_state
  params, net_state = pretrained.load(
      config, 'student',
      base.Variables(expected.params.student, expected.net_state), data)
  return state._replace(
      params=state.params._replace(student=params),
      net_state=net_state,
      ema=None if state.ema is None else jax.tree.map(jax.numpy.copy, params))
