"""Batches that processes make, where images are decoded from files.

Decoding takes a core for each few hundred images a second. A worker is started
as a program of its own: it is no fork of a process in which JAX runs, and does
not run the user's script again. What it makes depends on the number of a batch
alone, so that batches do not depend on the number of workers, and a run goes on
anywhere with another one.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from typing import Any, Optional, Protocol
import weakref

from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.data import wire
from haikd.data import worker as worker_lib
from haikd.data.image import window

_FEW = 4  # Cores: threads suffice on fewer, since decoding releases their lock.
_MOST = 32  # Workers that haikd starts of itself; each takes 150 MB.
_PATIENCE = 10  # Seconds that a worker may take to end.
_PIPE_BYTES = 2**20
_F_SETPIPE_SZ = 1031  # Of fcntl, on Linux.


class Source(Protocol):
  """Batches by number, as `batches` has them; can be pickled."""

  def __len__(self) -> int:
    """Returns the number of batches."""

  def make(self, number: int) -> base.Batch:
    """Returns what a worker makes of a batch."""

  def finish(self, number: int, batch: base.Batch) -> base.Batch:
    """Returns the batch, with what only this process adds."""


class Made:
  """Batches by number that workers make.

  Args:
    source: the batches.
    workers: make them.
  """

  def __init__(self, source: Source, workers: 'Workers'):
    self._source = source
    self._workers = workers
    self._key = workers.open(source)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, number: int) -> base.Batch:
    return self._source.finish(number, self._workers.make(self._key, number))


class Workers:
  """Some processes that make batches of any number of sources.

  They are started when the first source is opened. They end when this object is
  gone, and with this process.

  Attributes:
    count: how many there are.
  """

  def __init__(self, count: int):
    self.count = count
    self._pickles: list[bytes] = []  # By key.
    self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    self._all: list[_Worker] = []
    weakref.finalize(self, _end, self._all)

  def open(self, source: Source) -> int:
    """Returns the key under which `make` knows a source.

    Raises:
      ConfigError: the source cannot be sent to another process.
    """
    try:
      content = wire.importable(source)
    except (pickle.PicklingError, TypeError, AttributeError) as err:
      raise checks.ConfigError(
          'config.data.workers must be 0 for data or augmentations that another'
          f' process cannot import; got {self.count}, and '
          f'{checks.describe(err)}. Set it to 0, or move them to a module, and '
          'add that to config.plugins.') from err
    if content not in self._pickles:  # Each evaluation opens its split.
      self._pickles.append(content)
    while len(self._all) < self.count:
      started = _Worker(len(self._all) + 1, self.count)
      self._all.append(started)
      self._free.put(started)
    return self._pickles.index(content)

  def make(self, key: int, number: int) -> base.Batch:
    """Returns what the next free worker makes of a batch.

    Args:
      key: from `open`.
      number: of the batch.

    Raises:
      DataError: the worker has ended; or what the source raises.
    """
    worker = self._free.get()
    try:
      if key not in worker.opened:
        worker.ask(worker_lib.OPEN, key, self._pickles[key])
        worker.opened.add(key)
      return worker.ask(worker_lib.MAKE, key, number)
    finally:
      self._free.put(worker)


class _Worker:
  """One process.

  Attributes:
    opened: the keys of sources that it has.
  """

  def __init__(self, number: int, count: int):
    self.opened: set[int] = set()
    self._number, self._count = number, count
    code = (f'import sys; sys.path[:] = {sys.path!r}; '
            f'from {worker_lib.__name__} import main; main()')
    self.process: Any  # Its pipes are there.
    self.process = subprocess.Popen(
        [sys.executable, '-c', code], bufsize=0, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # No accelerator is its own, even if a user's code asks for one.
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
    _enlarge(self.process.stdout)

  def ask(self, kind: str, key: int, value: Any) -> Any:
    """Returns the answer to a question."""
    try:
      wire.send(self.process.stdin, (kind, key, value))
      answer = wire.receive(self.process.stdout)
    except (EOFError, BrokenPipeError) as err:
      raise checks.DataError(
          'config.data.workers must be processes that live as long as the run; '
          f'got worker {self._number} of {self._count}, which '
          f'{_end_of(self.process.wait())}. If memory ran out, set it to fewer '
          'or to 0.') from err
    if isinstance(answer, Exception):
      raise answer
    return answer


def _enlarge(pipe: Any) -> None:
  """Lets a pipe hold more, where that can be."""
  if sys.platform == 'linux':
    import fcntl
    with contextlib.suppress(OSError):  # Of a user with many pipes.
      fcntl.fcntl(pipe, _F_SETPIPE_SZ, _PIPE_BYTES)


def _end_of(code: int) -> str:
  """Returns how a process ended."""
  if code >= 0:
    return f'ended with exit code {code}'
  with contextlib.suppress(ValueError):
    return f'was ended by {signal.Signals(-code).name}'
  return f'was ended by signal {-code}'


def _end(all_workers: list[_Worker]) -> None:
  """Ends workers: their input does."""
  for worker in all_workers:
    with contextlib.suppress(OSError):
      worker.process.stdin.close()
  for worker in all_workers:
    try:
      worker.process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
      worker.process.kill()
      worker.process.wait()
    worker.process.stdout.close()


_shared: 'weakref.WeakValueDictionary[int, Workers]' = (
    weakref.WeakValueDictionary())


def shared(count: int) -> Workers:
  """Returns so many workers, which all data sets of a job share."""
  workers = _shared.get(count)
  if workers is None:
    workers = _shared[count] = Workers(count)
  return workers


def default() -> int:
  """Returns how many workers suit the cores, and says so; 0 on few."""
  cores = (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else
           os.cpu_count() or 1)
  count = min(cores // 2, _MOST) if cores >= _FEW else 0
  if count:
    notes.say(f'{count} of {cores} cores decode images, each in a process of '
              'its own (config.data.workers).')
  return count


def count(wanted: Optional[int], reader: Any) -> int:
  """Returns how many workers make the batches of a split; 0 for threads.

  Args:
    wanted: `config.data.workers`; None for as many as suit the cores, where
      images are decoded at each visit.
    reader: of the split.
  """
  if reader.cached:
    return 0
  is_encoded = getattr(reader, 'is_encoded', False)  # A mixture has none.
  if is_encoded:
    window.say_how()
  if wanted is None:
    return default() if is_encoded else 0
  return wanted
