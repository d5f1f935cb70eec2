"""The rows of a training, and what its guard has seen of wrong steps."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.data import batches
from haikd.engine import guarding
from haikd.engine import program as program_lib
from haikd.objective import balance as balance_lib
from haikd.run import clock as clock_lib
from haikd.run import usage as usage_lib
from haikd.run import writer as writer_lib

_REMEDY = ('Lower the learning rate, set config.optimizer.clip_norm, or look '
           'for bad data')
_FIRST_REMEDY = (  # No parameter has changed yet.
    'Look for bad data, for a loss of your own that divides by 0, or for '
    'numbers beyond the range of config.student.precision or '
    'config.teacher.precision')


class Wrong(Exception):
  """Numbers are not finite, so that training cannot go on as it did.

  Attributes:
    step: in which they were not.
    what: which numbers, in words.
    is_state_good: whether the state is as it was before that step.
  """

  def __init__(self, step: int, what: str, is_state_good: bool):
    super().__init__(what)
    self.step, self.what, self.is_state_good = step, what, is_state_good


class Taken(NamedTuple):
  """A step that was taken.

  Attributes:
    step: its number, from 1.
    metrics: of the step, on the device.
    place: the position in the data after it.
  """

  step: int
  metrics: dict[str, Any]
  place: Any


class Log:
  """Writes the metrics of training, and reads what its guard has seen.

  Attributes:
    rollbacks: how often training has returned to a checkpoint.

  Args:
    config: of the training.
    program: of the training.
    iterator: of its data.
    writer: writes the rows.
    clock: measures the time.
    usage: measures the speed.
    title: the title of the network.
    start: the step after which it starts.
    saved: the metadata of the checkpoint that it starts from.
  """

  def __init__(self, config: config_lib.ConfigDict,
               program: program_lib.Program, iterator: batches.BatchIterator,
               writer: writer_lib.Writer, clock: clock_lib.Clock,
               usage: usage_lib.Usage, title: str, start: int,
               saved: Mapping[str, Any]):
    self.rollbacks = saved['rollbacks']
    self._guard, self._usage = config.guard, usage
    self._program, self._iterator = program, iterator
    self._writer, self._clock, self._title = writer, clock, title
    # The last step known to be good, and the position in the data after it.
    self._good = start, iterator.get_state()

  def read(self, taken: Taken) -> dict[str, float]:
    """Returns the metrics of a step as numbers.

    Args:
      taken: the step.

    Raises:
      Wrong: this step or one since the last call was not finite.
    """
    metrics = jax.device_get(taken.metrics)
    seen = base.Seen(*map(int, metrics.pop('seen')))
    if self._guard.nonfinite == guarding.SKIP:
      self._count_skipped(seen)
      metrics['skipped'] = seen.number
    elif seen.number:
      raise Wrong(seen.step, self._describe(seen), is_state_good=True)
    if self._guard.nonfinite == guarding.ROLLBACK:
      metrics['rollbacks'] = self.rollbacks
    self._good = taken.step, taken.place
    return {name: float(x) for name, x in metrics.items()}

  def write(self, taken: Taken) -> None:
    """Writes the metrics of a step; raises as `read`."""
    step, metrics = taken.step, self.read(taken)
    if self._program.balance.kind != balance_lib.FIXED:
      balance_lib.check_means(metrics, step)
    if len(self._program.stages) > 1:  # They are counted from 1.
      metrics['stage'] = float(self._program.stage_of(step) + 1)
    self._clock.passed(step)
    self._writer.write(step, 'train', {**metrics, **self._usage.row(step)})
    self._usage.prepare(step)

  def check_state(self, step: int, state: base.TrainState) -> None:
    """Refuses to save a state that is not finite.

    Args:
      step: the number of steps taken.
      state: of the training.

    Raises:
      Wrong: it has numbers that are not finite.
    """
    found = jax.device_get(self._program.not_finite(state))
    if found.any():
      names = [name for name, wrong in zip(guarding.leaf_names(state), found)
               if wrong]
      raise Wrong(step, f'{checks.abbreviate(names, limit=3)}: not finite',
                  is_state_good=False)

  def rewind(self, step: int) -> None:
    """Moves the data to after a step, no more than it has been read for."""
    good, place = self._good
    self._iterator.set_state(place)
    for _ in range(step - good):
      next(self._iterator)

  def roll_back(self, rollbacks: int, place: Any,
                clock: clock_lib.Clock) -> None:
    """Starts after a rollback.

    Args:
      rollbacks: how many there were.
      place: the position in the data to go on from.
      clock: that goes on.
    """
    step, _ = self._good
    self.rollbacks, self._good = rollbacks, (step, place)
    self._clock = clock

  def may_roll_back(self) -> bool:
    """Whether training may return to a checkpoint once more."""
    return (self._guard.nonfinite == guarding.ROLLBACK and
            self.rollbacks < self._guard.limit)

  def diverged(self, wrong: Wrong, newest: int) -> checks.DivergedError:
    """Returns the error that ends a training.

    Args:
      wrong: what was wrong.
      newest: the step of the newest checkpoint; 0 for none.
    """
    is_first = wrong.step == 1 and wrong.is_state_good
    limit = ''
    if self._guard.nonfinite == guarding.ROLLBACK:
      limit = f', after {self.rollbacks} rollbacks (config.guard.limit)'
    return checks.DivergedError(
        f'loss and gradient must stay finite; got {wrong.what}, at step '
        f'{wrong.step} of {self._title}{limit}. '
        f'{_FIRST_REMEDY if is_first else _REMEDY}. A new start goes on from '
        f'step {newest}.')

  def _describe(self, seen):
    stage = self._program.stages[self._program.stage_of(seen.step)]
    return guarding.describe(
        seen, [term.name for term in stage.objective.terms],
        stage.abstract_state.params)

  def _count_skipped(self, seen):
    if seen.step <= self._good[0]:
      return
    what = self._describe(seen)
    if seen.number > self._guard.limit:
      raise Wrong(
          seen.step, f'{what}, the skipped step number {seen.number}, where '
          f'config.guard.limit is {self._guard.limit}', is_state_good=False)
    notes.say(f'{self._title}: step {seen.step} was skipped ({what}); '
              f'{seen.number} so far.')
