"""Detects that another process of the run has failed, is dead or hangs.

Every process sends heartbeats to the key-value store of JAX's coordinator,
which process 0 hosts. A process that fails reports it there. JAX's own
heartbeats take twice as long, and end a process with a stack trace.
"""

from collections.abc import Callable
import ctypes
import itertools
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn, Optional

from haikd.core import checks

# Seconds without a heartbeat after which a process is lost; the second is for
# when a connection has broken.
LIMIT, SHORT_LIMIT = 30, 10

_INTERVAL = 1  # Seconds between two heartbeats.
_GRACE = 3  # Seconds that process 0 stays for others to read why it ends.
_FAILURE, _BEAT = 'haikd/failure', 'haikd/beat'


class Watch:
  """Two threads that end this process soon after another one is lost.

  The process ends with exit code 6 and one line, even if its main thread is
  compiling, waiting for a device or saving.

  Args:
    client: the client of JAX's coordinator.
    process_id: the index of this process.
    num_processes: the number of processes.
  """

  def __init__(self, client: Any, process_id: int, num_processes: int):
    self._client = client
    self._id, self._count = process_id, num_processes
    self._limit = LIMIT
    self._stopped = threading.Event()
    self._unheard = 0  # Intervals since process 0 last answered.
    # By process: its last heartbeat, and the intervals since then.
    self._beats: dict[int, tuple[Optional[str], int]] = {}
    for work in (self._talk, self._wait):
      threading.Thread(target=work, daemon=True).start()

  def stop(self) -> None:
    """Ends the watch because the run is over."""
    self._stopped.set()

  def suspect(self) -> None:
    """Shortens the limit on heartbeats, since some process must be lost."""
    self._limit = SHORT_LIMIT

  def failure(self) -> Optional[str]:
    """Returns the first failure that was reported, or None."""
    try:
      return self._client.key_value_try_get(_FAILURE)
    except RuntimeError:  # None was reported, or process 0 is gone.
      return None

  def leave(self, exit_code: int, why: Optional[str]) -> NoReturn:
    """Ends this process at once and tells the others, which follow.

    JAX's own shutdown would wait minutes for them.

    Args:
      exit_code: the exit code of this process.
      why: the failure as the others report it, or None if each of them knows
        it already. Only the first failure of a run is kept.
    """
    self.stop()
    if why is not None:
      # In a thread, because the call hangs if process 0 hangs.
      reporting = threading.Thread(
          target=self._report, args=(why,), daemon=True)
      reporting.start()
      reporting.join(_GRACE)
    sys.stdout.flush()
    sys.stderr.flush()
    if self._id == 0:
      time.sleep(_GRACE)  # The store, which the others read, ends with it.
    os._exit(exit_code)

  def _report(self, why):
    try:
      self._client.key_value_set(_FAILURE, why)
    except RuntimeError:  # A failure was reported before, or process 0 is gone.
      pass

  def _talk(self):
    """Sends heartbeats, and reads whether another process has failed."""
    for count in itertools.count():
      failure = self.failure()
      try:
        self._client.key_value_set(
            f'{_BEAT}/{self._id}', str(count), allow_overwrite=True)
        if self._id == 0:
          failure = failure or self._count_silent()
        self._unheard = 0
      except RuntimeError:  # The other thread counts how long this lasts.
        pass
      if failure:
        self._end(failure)
      if self._stopped.wait(_INTERVAL):
        return

  def _wait(self):
    """Detects that process 0 does not answer any more."""
    # Counts intervals instead of reading the clock, so that no process is lost
    # because a laptop was asleep.
    while not self._stopped.wait(_INTERVAL):
      self._unheard += 1
      if self._unheard * _INTERVAL > self._limit:
        self._end(_silent([0], self._limit))

  def _end(self, failure):
    if not self._stopped.is_set():
      error = lost(failure)
      print(f'haikd [{self._id}]: {error}', file=sys.stderr)
      self.leave(error.exit_code, failure)

  def _count_silent(self):
    """Counts an interval for the other processes; describes silent ones.

    Process 0 calls it once an interval.
    """
    beats = dict(self._client.key_value_dir_get(_BEAT))
    silent = []
    for process in range(1, self._count):
      beat = beats.get(f'{_BEAT}/{process}')
      last, intervals = self._beats.get(process, (None, 0))
      intervals = intervals + 1 if beat == last else 0
      self._beats[process] = beat, intervals
      if intervals * _INTERVAL > self._limit:
        silent.append(process)
    return _silent(silent, self._limit) if silent else None


def lost(failure: str) -> checks.LostProcessError:
  """Returns the error of a process that ends because another is lost."""
  return checks.LostProcessError(
      f'all processes of a run must stay alive; got {failure}. Start all again '
      'to go on from the newest checkpoint.')


def catch_abort(explain: Callable[[], Optional[checks.LostProcessError]],
                process_id: int) -> Callable[[int], None]:
  """Turns an abort by JAX's client into an error with a message.

  JAX's client aborts as soon as its connection to process 0 breaks, or if some
  process does not start. It aborts on a thread in which Python's handlers of
  SIGABRT are not called, hence the handler in C.

  Args:
    explain: returns the error to end with; None to let the abort happen.
    process_id: the index of this process.

  Returns:
    The handler; keep a reference to it.
  """
  libc = ctypes.CDLL(None)

  @ctypes.CFUNCTYPE(None, ctypes.c_int)
  def handler(number):
    error = explain()
    if error:
      os.write(2, f'haikd [{process_id}]: {error}\n'.encode())
      os._exit(error.exit_code)
    libc.signal(number, None)

  libc.signal(int(signal.SIGABRT), handler)
  return handler


def answers(address: str) -> bool:
  """Returns whether a server listens at `host:port`."""
  host, port = address.rsplit(':', 1)
  try:
    socket.create_connection((host.strip('[]'), int(port)), 3).close()
  except OSError:
    return False
  return True


def _silent(processes, seconds):
  names = ', '.join(map(str, processes))
  return f'no sign of life from process {names} for {seconds} seconds'
