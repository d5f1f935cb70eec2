"""One training: what happens in which step, and how it goes on from faults."""

from typing import Any, NamedTuple

from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.data import interface as interface_lib
from haikd.engine import collectives
from haikd.engine import evaluate
from haikd.engine import guarding
from haikd.engine import program as program_lib
from haikd.processes import distributed
from haikd.processes import watchdog
from haikd.run import best as best_lib
from haikd.run import clock as clock_lib
from haikd.run import first_state
from haikd.run import profiling
from haikd.run import rates
from haikd.run import training_log as log_lib
from haikd.run import usage as usage_lib
from haikd.storage import checkpoint
from haikd.storage import files


class Trained(NamedTuple):
  """A network after its training.

  Attributes:
    network: parameters (their running mean, if one is kept) and state.
    seconds: the training time, over all restarts.
  """

  network: base.Variables
  seconds: float


class Training:
  """A training that goes on from its newest checkpoint.

  Args:
    config, program, data, teacher, workdir, title, settle: as for
      `trainer.train`.
    checkpointer: of the workdir.
    writer: likewise.
  """

  def __init__(self, config, program, data, teacher, workdir, title, settle,
               checkpointer, writer):
    self._config, self._program, self._data = config, program, data
    self._workdir, self._title, self._settle = workdir, title, settle
    self._checkpointer, self._writer = checkpointer, writer
    self._teacher = teacher
    self._frozen = teacher.frozen if teacher else None
    text = data.text_of('student')
    self._identity = dict(teacher=teacher.identity if teacher else '',
                          vocabulary=text.identity if text else '')
    self._interface = interface_lib.of_data(data).to_json()
    self._plain_config = files.to_json(config)  # Saved again and again.
    self._iterator = data.train()
    self._usage = usage_lib.Usage(program, data.spec, config.student.precision)
    self._profile = profiling.Profile(config.profile.steps, workdir, title)
    self._before = watchdog.spent()
    self._state: Any = None

  def begin(self) -> None:
    """Goes on from the newest checkpoint, or begins."""
    config, program = self._config, self._program
    self._state, saved = first_state.resume(
        self._workdir, program, self._checkpointer, self._iterator,
        self._identity)
    if self._state is None:
      self._state = first_state.start(
          config, program, self._data, self._teacher)
    if config.guard.nonfinite != guarding.SKIP:  # It may have been before.
      self._state = guarding.forget(self._state)
    self._first = first = int(self._state.step)
    self._saved_seconds = saved['seconds']
    last_stage = program.stages[-1].start
    self._best = best_lib.Best(config.evaluation, saved['best'], last_stage)
    self._best.leave_lost(self._checkpointer.has)
    self._checkpointer.set_best(self._best.step)
    lost = self._writer.truncate(first, evaluated=saved['evaluated'],
                                 rows=saved['rows'])
    self._clock = clock_lib.Clock(
        saved['seconds'], saved['phases'], self._before, lost)
    self._usage.start(first)
    self._profile.start(first)
    self._log = log_lib.Log(config, program, self._iterator, self._writer,
                            self._clock, self._usage, self._title, first, saved)
    if not saved['evaluated']:
      self._evaluate(first)
      self._save(first, amends=True)

  def take_steps(self) -> None:
    """Trains to the end.

    Raises:
      Wrong: a step, or the state, is not finite.
      DataError: data or files cannot be used.
      StoppedError: SIGTERM has come.
    """
    config, program = self._config, self._program
    evaluation, log = config.evaluation, self._log
    taken: Any = None  # The last step.
    taught_by: Any = None  # The teacher of the stage.
    pending = None  # A step whose metrics are to be logged.
    for step in range(self._first + 1, config.steps + 1):
      if self._best.is_over:
        notes.say(f'{self._title} was not better in {evaluation.patience} '
                  f'evaluations; its training ends before step {step}.')
        break
      where = f'step {step} of {self._title}'
      watchdog.enter(watchdog.DATA, where)
      batch = collectives.shard_batch(
          program.mesh, self._usage.next(self._iterator))
      watchdog.enter(watchdog.STEP, where)
      number = program.stage_of(step)
      if step == program.stages[number].start + 1:
        if taken:  # What follows needs a state that is good.
          log.read(taken)
      if self._teacher and step in (self._first + 1,
                                    program.stages[number].start + 1):
        taught_by = None  # Before the next one is read.
        taught_by = self._teacher.of_stage(number)
      if step == program.stages[number].start + 1:
        if settled := self._settle and self._settle(number, self._state):
          program = program._replace(stages=settled.stages)
          self._program = program
          self._usage.change(program)
        self._state = program.stages[number].enter(self._state, self._title)
      with self._profile.of_step(step):
        self._state, metrics = program.stages[number].take(
            step, self._state, taught_by, batch)
      self._usage.dispatched(metrics)
      self._profile.after(step, metrics)
      taken = log_lib.Taken(step, metrics, self._iterator.get_state())
      # While the device computes this step, the host logs the previous one.
      self._writer.progress(step)
      if pending:
        log.write(pending)
        pending = None
      stopping = distributed.stop_requested()
      saving = stopping or _due(step, config.checkpoint_every, config.steps)
      evaluating = _due(step, _evaluation_interval(config), config.steps)
      if saving or evaluating:
        log.write(taken)
      elif _due(step, config.log_every, config.steps):
        pending = taken
      if evaluating:
        try:
          saving = self._evaluate(step) or self._best.is_over or saving
        except Exception:
          # Training is kept, and a new start repeats the evaluation. If it
          # failed on one of several processes, the others save nothing.
          if not distributed.is_many():
            self._save(step, evaluated=False)
            self._checkpointer.wait()
          raise
      if saving:
        self._save(step)
      if stopping:
        self._checkpointer.wait()
        raise checks.StoppedError(
            f'stopped by SIGTERM at step {step} of {self._title}, which is '
            'saved. Start it again to go on.')

  def recover(self, wrong: log_lib.Wrong) -> None:
    """Returns to the newest checkpoint, if the config says so.

    Args:
      wrong: what ended the steps.

    Raises:
      DivergedError: the training ends. What was good is saved.
    """
    log = self._log
    watchdog.enter(None, '')  # What goes back is no step.
    self._checkpointer.wait()
    newest = self._checkpointer.latest_step() or 0
    if not log.may_roll_back():
      if wrong.is_state_good and wrong.step - 1 > newest:
        log.rewind(wrong.step - 1)
        self._state = guarding.forget(self._state)
        try:
          self._save(wrong.step - 1, entered=True)
          self._checkpointer.wait()
          newest = wrong.step - 1
        except log_lib.Wrong as err:  # The step before has spoilt it.
          wrong = err
      raise log.diverged(wrong, newest) from wrong
    log.rewind(wrong.step)
    place, clock = self._iterator.get_state(), self._clock
    self._state = None  # The one that is read takes its place in memory.
    self.begin()
    self._iterator.set_state(place)
    self._clock = clock
    clock.lose(wrong.step)
    self._log.roll_back(log.rollbacks + 1, place, clock)
    notes.say(f'{self._title} goes back from step {wrong.step} ({wrong.what}) '
              f'to step {newest}, and on with the batches after that; rollback '
              f'{self._log.rollbacks} of {self._config.guard.limit}.')

  def close(self) -> None:
    """Ends what watches the device."""
    self._usage.close()
    self._profile.close()

  def finish(self) -> None:
    """Says and writes how fast the training was, and what took its time."""
    watchdog.enter(None, '')
    self._profile.finish()
    if words := self._usage.describe():
      step, phases = int(self._state.step), self._clock.phases()
      self._writer.write(step, rates.TIME, phases)
      self._writer.message(
          f'{self._title} took {clock_lib.describe_phases(phases)}')
      self._writer.message(f'{self._title}: {words}')

  def result(self) -> Trained:
    """Returns the trained network."""
    last = int(self._state.step)
    seconds = (self._clock.seconds() if self._first < last else
               self._saved_seconds)
    best, program = self._best, self._program
    if best.step in (None, last):
      return Trained(program_lib.trained_network(self._state), seconds)
    used = checkpoint.step_used(self._workdir)
    split = self._config.evaluation.split
    notes.say(f'{self._title} is that of {best.describe()}, the best of '
              f'{split}.' if used == best.step else
              f'{self._title} is that of step {used}, since no checkpoint was '
              f'written of {best.describe()}, the best of {split}.')
    self._state = None  # The best network takes its place in memory.
    expected = program_lib.trained_network(program.abstract_state)
    return Trained(
        checkpoint.load_like('--workdir', self._workdir, expected), seconds)

  def _evaluate(self, step):
    """Evaluates on the split of training; returns whether it is the best."""
    split, program = self._config.evaluation.split, self._program
    with watchdog.during(watchdog.EVALUATION):
      scores = evaluate.evaluate(
          program.eval_step, program_lib.trained_network(self._state),
          self._frozen, self._data.evaluation(split), program.mesh,
          program.own_metrics)
    self._writer.write(step, f'eval/{split}', scores)
    if self._config.evaluation.keep_best:
      # All processes have to agree, also if a metric of one's own does not.
      scores = distributed.first(lambda: scores)
    is_best = self._best.add(step, scores)
    self._checkpointer.set_best(self._best.step)
    return is_best

  def _save(self, step, evaluated=True, entered=False, amends=False):
    """Saves the state after a step.

    Args:
      step: its number.
      evaluated: whether the evaluation after it is done.
      entered: whether the stage of the next step has begun, perhaps with an
        optimizer of its own.
      amends: whether the state is saved already, and only the rest is new.
    """
    watchdog.enter(watchdog.SAVE, f'step {step} of {self._title}')
    self._log.check_state(step, self._state)
    self._writer.flush()
    metadata = dict(
        **self._identity, seconds=self._clock.seconds(),
        phases=self._clock.phases(), evaluated=evaluated,
        best=self._best.to_json(), interface=self._interface,
        rollbacks=self._log.rollbacks, rows=self._writer.rows, entered=entered,
        layers=[x.objective.layers for x in self._program.stages],
        config=self._plain_config)
    place = self._iterator.get_state()
    if amends:
      self._checkpointer.amend(step, place, metadata)
    else:
      self._checkpointer.save(step, self._state, place, metadata)


def _due(step, every, last):
  return step % every == 0 or step == last


def _evaluation_interval(config):
  return config.evaluation.every or max(config.steps // 10, 1)
