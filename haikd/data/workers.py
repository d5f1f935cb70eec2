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
from typing import Any, Protocol
import weakref

from haikd.core import base
from haikd.core import checks
from haikd.data import wire
from haikd.data import worker as worker_lib

_LARGEST = 2**26  # Bytes of a source that this process and each worker keep.
_PATIENCE = 10  # Seconds that a worker may take to end.
_PIPE_BYTES = 2**20
_F_SETPIPE_SZ = 1031  # Of fcntl, on Linux.
_REMEDY = ('Set it to 0, or move your code to a module, and add that to '
           'config.plugins.')


class Source(Protocol):
  """Batches by number, as `batches` has them; can be pickled."""

  def __len__(self) -> int:
    """Returns the number of batches."""

  def make(self, number: int) -> base.Batch:
    """Returns what a worker makes of a batch."""

  def finish(self, number: int, batch: base.Batch) -> base.Batch:
    """Returns the batch, with what only this process adds."""


class UnfitError(Exception):
  """Batches that workers cannot make.

  Attributes:
    reason: why, as the end of a sentence.
    remedy: what a user can do about it.
  """

  def __init__(self, reason: str, remedy: str):
    super().__init__(f'{reason}. {remedy}')
    self.reason, self.remedy = reason, remedy


class Made:
  """Batches by number that workers make.

  Attributes:
    count: of the workers.

  Args:
    source: the batches.
    workers: make them.

  Raises:
    UnfitError: they cannot.
  """

  def __init__(self, source: Source, workers: 'Workers'):
    self.count = workers.count
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

    One worker opens it at once, so that what is wrong shows before training.

    Raises:
      UnfitError: it cannot be sent to a worker, or not be opened there.
    """
    content = _pickled(source)
    if content in self._pickles:  # Of another Data.
      return self._pickles.index(content)
    self._start()
    self._pickles.append(content)
    key, worker = len(self._pickles) - 1, self._free.get()
    try:
      worker.open(key, content)
    except Exception as err:  # Whatever a user's code raises.
      raise UnfitError(f'a worker cannot open them: {checks.describe(err)}',
                       _REMEDY) from err
    finally:
      self._free.put(worker)
    return key

  def _start(self):
    """Starts the workers, if they are not there yet."""
    while len(self._all) < self.count:
      try:
        started = _Worker(len(self._all) + 1, self.count)
      except OSError as err:
        raise UnfitError(f'no process can be started: {checks.describe(err)}',
                         'Set it to 0.') from err
      self._all.append(started)
      self._free.put(started)

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
      worker.open(key, self._pickles[key])
      return worker.ask(worker_lib.MAKE, key, number)
    finally:
      self._free.put(worker)


def _pickled(source: Source) -> bytes:
  """Returns what a worker opens."""
  try:
    return wire.importable(source, _LARGEST)
  except wire.TooLargeError as err:
    raise UnfitError(
        f'each would keep a copy of more than {_LARGEST >> 20} MiB of the data '
        'set', 'Set it to 0, or save the images as files of an image_folder.'
    ) from err
  except Exception as err:  # Whatever a user's code raises.
    reason = (checks.one_line(err) if isinstance(err, pickle.PicklingError) else
              checks.describe(err))
    raise UnfitError(reason, _REMEDY) from err


class _Worker:
  """One process."""

  def __init__(self, number: int, count: int):
    self._opened: set[int] = set()  # The keys of sources that it has.
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

  def open(self, key: int, content: bytes) -> None:
    """Gives it a source, unless it has that."""
    if key not in self._opened:
      self.ask(worker_lib.OPEN, key, content)
      self._opened.add(key)

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
