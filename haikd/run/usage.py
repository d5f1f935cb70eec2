"""How fast a training is, and how much of the machine it uses.

Time is that of steps and of waiting for their data, as `watchdog` counts it:
compiling, evaluating and saving are not in it.
"""

import collections
from collections.abc import Iterator
from concurrent import futures
import dataclasses
import operator
import queue
import threading
import time
from typing import Any, Optional

import jax
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import memory
from haikd.core import notes
from haikd.engine import abstract
from haikd.engine import counting
from haikd.engine import program as program_lib
from haikd.processes import watchdog
from haikd.run import peak as peak_lib
from haikd.run import rates

_INTERVAL = 0.01  # Seconds between two steps whose end is noted, at least.


@dataclasses.dataclass
class _Counts:
  """What has been counted since a training began.

  Attributes:
    steps: that were taken.
    seconds: of steps, and of waiting for their data.
    batches: that were read.
    tokens: of these batches, without padding.
    sampled: steps whose end on the device was noted.
    waited: seconds that the device then waited for the next batch.
  """

  steps: int = 0
  seconds: float = 0.0
  batches: int = 0
  tokens: int = 0
  sampled: int = 0
  waited: float = 0.0

  def since(self, before: '_Counts') -> '_Counts':
    """Returns the differences."""
    new, old = dataclasses.astuple(self), dataclasses.astuple(before)
    return _Counts(*map(operator.sub, new, old))


class Usage:
  """Measures a training.

  Args:
    program: of the training.
    spec: of its batches, as ShapeDtypeStructs.
    precision: of the student.
  """

  def __init__(self, program: program_lib.Program, spec: base.Batch,
               precision: str):
    self._program, self._precision = program, precision
    self._spec, self._batch_size = spec, jax.tree.leaves(spec)[0].shape[0]
    self._has_tokens = _has_tokens(spec)
    self._devices = program.mesh.local_devices
    # By stage; None where they cannot be counted.
    self._products: dict[int, Optional[counting.Counted]] = {}
    self._peak: Optional[peak_lib.Peak] = None
    self._ends = _Ends()
    self._last: Any = None  # The newest result.
    self._idle: Any = None  # A future: what is compiled meanwhile is done.
    self._now, self._row = _Counts(), _Counts()
    self._taken: collections.Counter = collections.Counter()  # By stage.
    self._step, self._began = 0, _step_seconds()

  def start(self, step: int) -> None:
    """Starts to measure after a step, at first or when training goes back."""
    self._step = step
    self._now.seconds = _step_seconds() - self._began
    self._row = dataclasses.replace(self._now)

  def next(self, iterator: Iterator[base.Batch]) -> base.Batch:
    """Returns the next batch; notes how long the device waits for it."""
    began = time.monotonic()
    batch = next(iterator)
    waited = self._ends.waited(began, time.monotonic())
    now = self._now
    now.batches += 1
    if self._has_tokens:
      now.tokens += int(np.count_nonzero(batch.view('student').mask))
    if waited is not None:
      now.sampled, now.waited = now.sampled + 1, now.waited + waited
    return batch

  def dispatched(self, result: Any) -> None:
    """Notes that a step was given to the device.

    Args:
      result: an array that it computes.
    """
    self._last = result
    self._ends.watch(result)

  def row(self, step: int) -> dict[str, float]:
    """Returns the metrics since the last row.

    Args:
      step: the last one that has been computed.
    """
    taken = collections.Counter(
        map(self._program.stage_of, range(self._step + 1, step + 1)))
    self._taken.update(taken)
    now = self._now
    now.steps += step - self._step
    self._step = step
    now.seconds = _step_seconds() - self._began
    counts, self._row = now.since(self._row), dataclasses.replace(now)
    return self._metrics(counts, taken)

  def describe(self) -> str:
    """Returns the metrics of all rows in words; '' without a row."""
    if not self._now.steps:
      return ''
    return rates.summarise(self._metrics(self._now, self._taken), self._peak)

  def prepare(self, step: int) -> None:
    """Counts the products of a stage, and measures the peak where it must.

    Call it after a row, so that nobody waits for the first one. Nothing is done
    while programs are still compiled, which would disturb a measurement.

    Args:
      step: of the stage.
    """
    number = self._program.stage_of(step)
    stage = self._program.stages[number]
    trace = getattr(stage.train_step, 'trace', None)
    if number in self._products or trace is None or not self._is_idle(stage):
      return
    jax.block_until_ready(self._last)  # An error of the step is its own.
    self._products[number] = None
    with watchdog.during(None):
      try:
        traced = trace(stage.abstract_state, stage.abstract_frozen,
                       abstract.batch_of(self._spec, self._program.mesh))
        counted = counting.count(traced.jaxpr, self._program.mesh.size)
        if self._peak is None:
          self._peak = peak_lib.of_devices(self._devices, self._precision)
      except Exception as err:  # Training is worth more than its MFU.
        notes.say('MFU is left out, since the operations of a step could not '
                  f'be measured ({checks.one_line(err)}).')
      else:
        self._products[number] = counted

  def change(self, program: program_lib.Program) -> None:
    """Goes on with another program, whose stages are counted anew."""
    self._program = program

  def close(self) -> None:
    """Ends the thread that notes the ends of steps."""
    self._ends.close()

  def _is_idle(self, stage):
    """Returns whether no thread compiles any more."""
    if self._idle is None:
      finish = getattr(stage.train_step, 'finish', _done)
      self._idle = finish()
    return self._idle.done()

  def _metrics(self, counts, taken):
    """Returns metrics of what was counted in `{stage: steps taken}`."""
    seconds = max(counts.seconds, 1e-9)
    rate = counts.steps / seconds
    metrics = {rates.EXAMPLES: rate * self._batch_size}
    if counts.tokens:
      metrics[rates.TOKENS] = rate * counts.tokens / counts.batches * (
          jax.process_count())
    done = [(steps, counted) for number, steps in taken.items()
            if (counted := self._products.get(number))]
    if self._peak and len(done) == len(taken):
      possible = seconds * self._peak.flops
      metrics[rates.MFU] = sum(n * x.flops for n, x in done) / possible
      metrics[rates.MFU_OF_TEACHER] = sum(
          n * x.teacher_flops for n, x in done) / possible
    if counts.sampled:
      metrics[rates.WAITING] = min(counts.waited / counts.sampled * rate, 1.0)
    if found := memory.peak(self._devices):
      kind, size = found
      metrics[rates.MEMORY[kind]] = size / 2**20
    return metrics


class _Ends:
  """Notes when steps end on the device, in a thread of its own."""

  def __init__(self) -> None:
    self._results: queue.SimpleQueue = queue.SimpleQueue()
    self._watched = 0.0  # When the last one was given to the thread.
    self._is_asked = self._is_busy = False
    self._ended = 0.0
    self._thread = threading.Thread(
        target=self._run, name='ends_of_steps', daemon=True)
    self._thread.start()

  def watch(self, result: Any) -> None:
    """Has the end of a step noted, if the last one was noted some time ago."""
    now = time.monotonic()
    if not self._is_busy and now - self._watched >= _INTERVAL:
      self._watched, self._is_asked, self._is_busy = now, True, True
      self._results.put(result)

  def waited(self, began: float, ended: float) -> Optional[float]:
    """Returns how long the device had nothing to do between two times.

    Returns:
      None if the last step was not watched.
    """
    if not self._is_asked:
      return None
    self._is_asked = False
    return 0.0 if self._is_busy else max(ended - max(began, self._ended), 0.0)

  def close(self) -> None:
    """Ends the thread, once the step that it waits for has ended."""
    self._results.put(None)

  def _run(self):
    while (result := self._results.get()) is not None:
      try:
        jax.block_until_ready(result)
      except Exception:  # The main thread raises it, too.
        pass
      self._ended, self._is_busy = time.monotonic(), False


def _has_tokens(spec):
  """Returns whether the student reads tokens, which may be padding."""
  view = spec.view('student')
  inputs = jax.tree.leaves(view.inputs)[0]
  return np.ndim(view.mask) > 1 and np.issubdtype(inputs.dtype, np.integer)


def _step_seconds():
  spent = watchdog.spent()
  return spent.get(watchdog.STEP, 0.0) + spent.get(watchdog.DATA, 0.0)


def _done():
  future: futures.Future = futures.Future()
  future.set_result(None)
  return future
