"""How long a training takes, and how fast it is."""

import time


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
