"""How long a training takes, and what for."""

from collections.abc import Mapping
import time

from haikd.processes import watchdog

# The names of phases in rows and checkpoints, and in words.
_NAMES = {
    watchdog.STEP: 'steps', watchdog.COMPILATION: 'compilation',
    watchdog.DATA: 'data', watchdog.EVALUATION: 'evaluation',
    watchdog.SAVE: 'saving', None: 'starting',
}
_REDONE = 'redone'  # Steps that had been taken before, but were lost.
_WORDS = dict(
    steps='in steps', redone='redoing lost steps',
    compilation='waiting for compilation', data='waiting for data',
    evaluation='in evaluation', saving='saving', starting='starting')


class Clock:
  """Measures the training time, over all restarts, and what it is spent on.

  Args:
    seconds: the time before this start.
    phases: what it was spent on, from `phases()`.
    before: `watchdog.spent()` when this start began.
    lost: the last step known to have been taken before, but not saved; 0 if
      none was lost.
  """

  def __init__(self, seconds: float, phases: Mapping[str, float],
               before: Mapping[str | None, float], lost: int = 0):
    self._start = time.monotonic() - seconds
    self._saved, self._before, self._lost = phases, before, lost
    # Seconds of redone steps until a time, and that time, in seconds of steps.
    self._redone, self._until = 0.0, 0.0

  def seconds(self) -> float:
    """Returns the time since the first start, evaluations included."""
    return time.monotonic() - self._start

  def lose(self, step: int) -> None:
    """Notes that the steps until this one are lost, and taken again."""
    self._count_redone()
    self._lost = max(step, self._lost)

  def passed(self, step: int) -> None:
    """Notes that a step was taken."""
    if self._lost and step >= self._lost:
      self._count_redone()
      self._lost = 0

  def phases(self) -> dict[str, float]:
    """Returns the seconds of each phase, over all restarts."""
    self._count_redone()
    new, redone = self._new(), self._redone
    new.update({'steps': new['steps'] - redone, _REDONE: redone})
    return {name: self._saved.get(name, 0.0) + new[name] for name in _WORDS}

  def _count_redone(self):
    now = self._new()['steps']
    if self._lost:
      self._redone += now - self._until
    self._until = now

  def _new(self):
    """Returns the seconds of each phase since this start."""
    spent = watchdog.spent()
    return {name: spent.get(phase, 0.0) - self._before.get(phase, 0.0)
            for phase, name in _NAMES.items()}


def describe_phases(phases: Mapping[str, float]) -> str:
  """Returns what a training's time was spent on: '9.1 s: 8.0 s in steps'.

  What took less than a hundredth of it is left out.

  Args:
    phases: from `Clock.phases`.
  """
  total = sum(phases.values())
  parts = ', '.join(f'{phases[name]:.1f} s {words}'
                    for name, words in _WORDS.items()
                    if phases[name] >= total / 100)
  return f'{total:.1f} s: {parts}'
