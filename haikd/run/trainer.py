"""Training, from resuming to the last checkpoint. Reads top to bottom."""

from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import jax
import numpy as np

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.data import interface as interface_lib
from haikd.data import pipeline
from haikd.engine import collectives
from haikd.engine import evaluate
from haikd.engine import program as program_lib
from haikd.objective import balance as balance_lib
from haikd.processes import distributed
from haikd.run import best as best_lib
from haikd.run import calibration
from haikd.run import clock as clock_lib
from haikd.run import pretrained
from haikd.run import teachers
from haikd.run import trackers
from haikd.run import writer as writer_lib
from haikd.storage import checkpoint
from haikd.storage import checkpointer as checkpointer_lib
from haikd.storage import paths


class Trained(NamedTuple):
  """A network after its training.

  Attributes:
    network: parameters (their running mean, if one is kept) and state.
    seconds: the training time, over all restarts.
  """

  network: base.Variables
  seconds: float


def train(config: config_lib.ConfigDict, program: program_lib.Program,
          data: pipeline.Data, teacher: Optional[teachers.Teacher],
          workdir: paths.Path, title: str,
          settle: Optional[Callable] = None) -> Trained:
  """Trains `config.student`, or goes on where its training stopped.

  Args:
    config: a validated config, its plugins imported.
    program: from `build_program(config, …)`.
    data: from `build_data(config)`.
    teacher: the teacher to learn from; None to learn from the labels alone.
    workdir: the folder of its checkpoints and metrics.
    title: its title on the progress bar.
    settle: see `trainees.Trainee`.

  Returns:
    The trained network.

  Raises:
    DataError: data or files cannot be used.
    DivergedError: the loss, a gradient or a parameter is not finite.
    StoppedError: SIGTERM has come, and the step in which it came is saved.
  """
  frozen = taught_by = teacher.frozen if teacher else None
  identity = teacher.identity if teacher else ''
  text = data.text_of('student')
  vocabulary = text.identity if text else ''
  interface = interface_lib.of_data(data).to_json()
  iterator = data.train()
  with (distributed.stoppable(),
        checkpointer_lib.Checkpointer(
            workdir, keep=config.keep_checkpoints) as checkpointer,
        writer_lib.open_writer(
            workdir, total_steps=config.steps, title=title,
            enabled=jax.process_index() == 0,
            tracker=trackers.open_tracker(config, workdir, title)) as writer):
    state, metadata = _resume(workdir, program, checkpointer, iterator,
                              identity, vocabulary)
    if state is None:
      state = start(config, program, data, teacher)
    first = int(state.step)
    last_stage = program.stages[-1].start
    best = best_lib.Best(config.evaluation, metadata['best'], last_stage)
    if not checkpointer.has(best.step):  # It may have been removed.
      best = best_lib.Best(config.evaluation, start=last_stage)
    checkpointer.best = best.step
    writer.truncate(first, evaluated=metadata['evaluated'])
    clock = clock_lib.Clock(first, metadata['seconds'])
    log = _Log(writer, checkpointer, clock, program, config.batch_size, title)

    def evaluate_on_split(step, state):
      split = config.evaluation.split
      scores = evaluate.evaluate(program.eval_step,
                                 program_lib.trained_network(state), frozen,
                                 data.evaluation(split), program.mesh,
                                 program.own_metrics)
      writer.write(step, f'eval/{split}', scores)
      if config.evaluation.keep_best:
        # All processes have to agree, also if a metric of one's own does not.
        scores = distributed.first(lambda: scores)
      is_best = best.add(step, scores)
      checkpointer.best = best.step
      return is_best

    def save(step, state, evaluated=True):
      if not program.is_finite(state):
        raise log.diverged(step, 'parameters that are not finite')
      writer.flush()
      checkpointer.save(step, state, iterator.get_state(),
                        dict(teacher=identity, vocabulary=vocabulary,
                             seconds=clock.seconds(), evaluated=evaluated,
                             best=best.to_json(), interface=interface,
                             layers=[x.objective.layers
                                     for x in program.stages],
                             config=config))

    if not metadata['evaluated']:
      evaluate_on_split(first, state)
      checkpointer.drop(first)
      save(first, state)
    pending = None  # Step and metrics that are to be logged.
    for step in range(first + 1, config.steps + 1):
      if best.is_over:
        notes.say(f'{title} was not better in {config.evaluation.patience} '
                  f'evaluations; its training ends before step {step}.')
        break
      batch = collectives.shard_batch(program.mesh, next(iterator))
      number = program.stage_of(step)
      if teacher and step in (first + 1, program.stages[number].start + 1):
        del taught_by  # Before the next one is read.
        taught_by = teacher.of_stage(number)
      if step == program.stages[number].start + 1:
        if settled := settle and settle(number, state):
          program = program._replace(stages=settled.stages)
        state = program.stages[number].enter(state, title)
      stage = program.stages[number]
      state, metrics = stage.take(step, state, taught_by, batch)
      # While the device computes this step, the host logs the previous one.
      writer.progress(step)
      if pending:
        log.write(*pending)
        pending = None
      stopping = distributed.stop_requested()
      saving = stopping or _due(step, config.checkpoint_every, config.steps)
      evaluating = _due(step, _evaluation_interval(config), config.steps)
      if saving or evaluating:
        log.write(step, metrics)
      elif _due(step, config.log_every, config.steps):
        pending = step, metrics
      if evaluating:
        try:
          saving = evaluate_on_split(step, state) or best.is_over or saving
        except Exception:
          # Training is kept, and a new start repeats the evaluation. If it
          # failed on one of several processes, the others save nothing.
          if not distributed.is_many():
            save(step, state, evaluated=False)
            checkpointer.wait()
          raise
      if saving:
        save(step, state)
      if saving or evaluating:
        clock.mark(step)
      if stopping:
        checkpointer.wait()
        raise checks.StoppedError(
            f'stopped by SIGTERM at step {step} of {title}, which is saved. '
            'Start it again to go on.')
  last = int(state.step)
  seconds = clock.seconds() if first < last else metadata['seconds']
  if best.step in (None, last):
    return Trained(program_lib.trained_network(state), seconds)
  notes.say(f'{title} is that of {best.describe()}, the best of '
            f'{config.evaluation.split}.')
  del state  # The best network takes its place in memory.
  expected = program_lib.trained_network(program.abstract_state)
  return Trained(checkpoint.load_like('--workdir', workdir, expected), seconds)


class _Log:
  """Writes the metrics of training, and reports divergence.

  Args:
    writer: writes the rows.
    checkpointer: of the run.
    clock: measures the speed.
    program: of the run.
    batch_size: examples a step.
    title: the title of the network.
  """

  def __init__(self, writer, checkpointer, clock, program, batch_size, title):
    self._writer, self._checkpointer = writer, checkpointer
    self._clock, self._batch_size, self._title = clock, batch_size, title
    self._program = program

  def write(self, step, metrics):
    """Writes the metrics of a step; raises DivergedError on bad ones."""
    metrics = {name: float(x) for name, x in jax.device_get(metrics).items()}
    wrong = _not_finite(metrics)
    if wrong:
      raise self.diverged(step, wrong)
    if self._program.balance.kind != balance_lib.FIXED:
      balance_lib.check_means(metrics, step)
    if len(self._program.stages) > 1:  # They are counted from 1.
      metrics['stage'] = float(self._program.stage_of(step) + 1)
    speed = self._clock.steps_per_second(step) * self._batch_size
    self._writer.write(step, 'train', {**metrics, 'examples_per_second': speed})

  def diverged(self, step, what):
    """Returns the error of a step with values that are not finite."""
    self._checkpointer.wait()
    newest = self._checkpointer.latest_step() or 0
    remedy = ('Lower the learning rate, set config.optimizer.clip_norm, or '
              'look for bad data')
    if step == 1 and not what.startswith('param'):  # None has changed yet.
      remedy = ('Look for bad data, for a loss of your own that divides by 0, '
                'or for numbers beyond the range of config.student.precision '
                'or config.teacher.precision')
    return checks.DivergedError(
        f'loss and gradient must stay finite; got {what} at step {step} of '
        f'{self._title}. {remedy}. A new start goes on from step {newest}.')


def _due(step, every, last):
  return step % every == 0 or step == last


def _evaluation_interval(config):
  return config.evaluation.every or max(config.steps // 10, 1)


def _not_finite(metrics):
  """Returns the metric of a step that is not finite, or None.

  A dynamic loss scale above its minimum of 1 halves itself when gradients are
  not finite; then `grad_norm` is no error.
  """
  if not np.isfinite(metrics['loss']):
    return f'loss={metrics["loss"]}'
  if not np.isfinite(metrics['grad_norm']) and metrics.get('loss_scale',
                                                           1.0) <= 1.0:
    return f'grad_norm={metrics["grad_norm"]}'
  return None


def _resume(workdir, program, checkpointer, iterator, identity, vocabulary):
  """Returns the newest state, or None, and what was saved with it."""
  start: dict[str, Any] = dict(seconds=0.0, evaluated=True, best=None)
  # The state is as the stage left it that took the last step.
  stage = program.stages[program.stage_of(checkpoint.steps_taken(workdir))]
  restored = checkpointer.restore(stage.abstract_state)
  if restored is None:
    return None, start
  state, iterator_state, metadata = restored
  checkpoint.check_vocabulary(metadata, vocabulary)
  checkpoint.check_teacher(metadata, identity)
  iterator.set_state(iterator_state)
  return state, {**start, **metadata}


def start(config: config_lib.ConfigDict, program: program_lib.Program,
          data: pipeline.Data,
          teacher: Optional[teachers.Teacher]) -> base.TrainState:
  """Returns the state before the first step.

  Args:
    config: as for `train`.
    program: as for `train`.
    data: as for `train`.
    teacher: as for `train`.

  Raises:
    DataError: the weights of `config.student.init` cannot be loaded.
  """
  state = program.init(jax.random.key(config.seed))
  state = calibration.calibrate(config, program, data, state, teacher)
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
