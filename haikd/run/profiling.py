"""A trace of some steps: what the host and each device do, and for how long."""

import contextlib
import pathlib
import tempfile
from typing import Any

import jax

from haikd.core import checks
from haikd.core import notes
from haikd.storage import paths

FOLDER = 'profile'

_NOTHING: contextlib.AbstractContextManager = contextlib.nullcontext()


class Profile:
  """Traces the steps that `config.profile.steps` names, on the first process.

  Args:
    steps: the first and the last one; () for none.
    workdir: whose folder `profile` gets the trace.
    title: of the network.
  """

  def __init__(self, steps: tuple[int, ...], workdir: paths.Path, title: str):
    self._first, self._last = steps or (0, 0)
    self._workdir, self._title = paths.as_path(workdir), title
    self._local: Any = None  # Where a trace for a bucket is written first.
    self._is_tracing = False
    self._step = 0  # The last one that was taken.
    if jax.process_index() > 0:
      self._first = self._last = 0

  def start(self, step: int) -> None:
    """Says so if the steps are over.

    Args:
      step: after which training starts.
    """
    self.close()  # Training may go back amid a trace.
    self._step = step
    if self._last and step >= self._first:
      if not paths.exists(self._workdir / FOLDER):
        self._say(f'training goes on from step {step}')
      self._first = self._last = 0

  def of_step(self, step: int) -> contextlib.AbstractContextManager:
    """Returns a context in which to give a step to the device.

    It costs next to nothing for a step that is not traced.
    """
    if not self._first <= step <= self._last:
      return _NOTHING
    if not self._is_tracing and not self._begin():
      return _NOTHING
    return jax.profiler.StepTraceAnnotation('train', step_num=step)

  def after(self, step: int, result: Any) -> None:
    """Ends the trace after its last step.

    Args:
      step: that was given to the device.
      result: an array that it computes.
    """
    self._step = step
    if self._is_tracing and step == self._last:
      jax.block_until_ready(result)
      self._end()

  def finish(self) -> None:
    """Says so if training has ended before the steps came."""
    if self._step < self._first:
      self._say(f'training ended after step {self._step}')

  def close(self) -> None:
    """Ends a trace that training has ended in the middle of."""
    if self._is_tracing:
      self._end()

  def _say(self, reason):
    notes.say(f'{self._title}: steps {self._first} to {self._last}, '
              f'config.profile.steps, are not traced, since {reason}.')

  def _begin(self):
    """Returns whether a trace has begun."""
    folder = self._workdir / FOLDER
    if paths.is_remote(self._workdir):
      self._local = tempfile.TemporaryDirectory()
      folder = pathlib.Path(self._local.name)
    try:
      jax.profiler.start_trace(str(folder), create_perfetto_trace=True)
    except Exception as err:  # Training is worth more than its trace.
      self._say(f'JAX cannot trace them ({checks.one_line(err)})')
      self._last = 0
    else:
      self._is_tracing = True
    return self._is_tracing

  def _end(self):
    self._is_tracing, folder = False, self._workdir / FOLDER
    try:
      jax.profiler.stop_trace()
      if self._local:
        with self._local:
          _upload(pathlib.Path(self._local.name), folder)
    except Exception as err:  # Likewise, a disk may be full.
      notes.say(f'{self._title}: the trace of steps {self._first} to '
                f'{self._step} could not be written ({checks.one_line(err)}).')
      self._last = 0
      return
    notes.say(
        f'{self._title}: the trace of steps {self._first} to {self._step} is '
        f'in {folder}. `pip install xprof`, then `xprof --logdir={folder}` '
        'shows it, as TensorBoard does; https://ui.perfetto.dev opens '
        'perfetto_trace.json.gz in it.')
    self._last = 0


def _upload(local, folder):
  for path in sorted(local.rglob('*')):
    if path.is_file():
      paths.replace(folder / path.relative_to(local), path.read_bytes())
