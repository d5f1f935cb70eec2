"""The best network of a training, by a metric of its evaluations."""

from collections.abc import Callable, Mapping
import math
from typing import Any, Optional

from haikd import config as config_lib
from haikd import metrics as metrics_lib
from haikd.core import notes

# How many best steps before the best one are remembered, in case that it cannot
# be saved.
_EARLIER = 4


class Best:
  """Follows a metric: which step has the best value, and how long ago it was.

  Attributes:
    step: the step with the best value so far; None if no evaluation had one.

  Args:
    evaluation: `config.evaluation`.
    saved: from `to_json` before an interruption, or None. What was saved by
      another metric is left out.
    start: the number of steps before the last stage, which patience waits for.
  """

  def __init__(self, evaluation: config_lib.ConfigDict,
               saved: Optional[Mapping[str, Any]] = None, start: int = 0):
    self._start = start
    self._metric, self._patience = evaluation.keep_best, evaluation.patience
    if not saved or saved['metric'] != self._metric:
      saved = dict(step=None, value=math.nan, since=0, earlier=[])
    self.step: Optional[int] = saved['step']
    self._value, self._since = float(saved['value']), saved['since']
    self._earlier = [(step, float(value))
                     for step, value in saved.get('earlier', [])]

  @property
  def is_over(self) -> bool:
    """Whether training is to stop, since it has not improved for so long."""
    return self._patience is not None and self._since >= self._patience

  def add(self, step: int, scores: Mapping[str, float]) -> bool:
    """Adds an evaluation; returns whether it is the best so far.

    Args:
      step: the number of steps taken.
      scores: its metrics. One without the metric changes nothing, and NaN is
        never the best.
    """
    if self._metric not in scores:
      return False
    value = scores[self._metric]
    sign = -1 if metrics_lib.is_less_better(self._metric) else 1
    # The first of equal values; a comparison with NaN is false.
    if sign * value > sign * self._value or (
        self.step is None and not math.isnan(value)):
      if self.step is not None:
        self._earlier = [*self._earlier, (self.step, self._value)][-_EARLIER:]
      self.step, self._value, self._since = step, value, 0
      return True
    self._since += step > self._start
    return False

  def leave_lost(self, has: Callable[[int], bool]) -> None:
    """Returns to the best step before, while that of the best is not there.

    It is said, and patience begins anew.

    Args:
      has: whether there is a checkpoint of a step.
    """
    lost = self.step
    while self.step is not None and not has(self.step):
      self.step, self._value = (
          self._earlier.pop() if self._earlier else (None, math.nan))
      self._since = 0
    if lost != self.step:
      now = ('the next one is the best' if self.step is None else
             f'{self.describe()}, is the best again')
      notes.say(
          f'the checkpoint of step {lost}, the best, is not there; {now}.')

  def describe(self) -> str:
    """Returns which step is the best, and why, in words."""
    return f'step {self.step}, with {self._metric} {self._value:.6g}'

  def to_json(self) -> dict[str, Any]:
    """Returns it in types of JSON, to go on after an interruption."""
    return dict(
        metric=self._metric, step=self.step, value=repr(self._value),
        since=self._since,
        earlier=[(step, repr(value)) for step, value in self._earlier])
