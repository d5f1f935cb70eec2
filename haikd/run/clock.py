"""How long a training takes, what for, and how fast it is."""

from collections.abc import Mapping
import time
from typing import Optional

from haikd.processes import watchdog

_WORDS = {
    watchdog.STEP: 'in steps', watchdog.COMPILATION: 'waiting for compilation',
    watchdog.DATA: 'waiting for data', watchdog.EVALUATION: 'in evaluation',
    watchdog.SAVE: 'saving', None: 'starting',
}


class Clock:
  """Measures the training time, over all restarts, and the speed.

  Args:
    step: from which it measures the speed.
    seconds: the time before this start.
  """

  def __init__(self, step: int, seconds: float):
    self._start = time.monotonic() - seconds
    self.mark(step)

  def seconds(self) -> float:
    """Returns the time since the first start, evaluations included."""
    return time.monotonic() - self._start

  def mark(self, step: int) -> None:
    """Starts to measure the speed at this step."""
    self._mark = step, time.monotonic()

  def steps_per_second(self, step: int) -> float:
    """Returns the speed since the last mark, and marks this step."""
    (old_step, old_time), now = self._mark, time.monotonic()
    self.mark(step)
    return (step - old_step) / max(now - old_time, 1e-9)


def describe_phases(before: Mapping[Optional[str], float]) -> Optional[str]:
  """Returns what a training's time was spent on: '9.1 s: 8.0 s in steps'.

  What took less than a hundredth of it is left out.

  Args:
    before: `watchdog.spent()` when it began.

  Returns:
    None if no step was taken.
  """
  seconds = {phase: total - before.get(phase, 0.0)
             for phase, total in watchdog.spent().items()}
  if not seconds.get(watchdog.STEP):
    return None
  total = sum(seconds.values())
  parts = ', '.join(
      f'{seconds[phase]:.1f} s {words}' for phase, words in _WORDS.items()
      if seconds.get(phase, 0.0) >= total / 100)
  return f'{total:.1f} s: {parts}'
