"""Finds out that another process of the run has failed, is dead or hangs.

Every process gives signs of life in the key-value store of JAX's coordinator,
which process 0 hosts, and one that fails says so there. JAX's own heartbeats
take twice as long, and end a process with a stack trace.
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
from typing import Any, Optional

from haikd.core import checks

# Seconds without a sign of life, after which a process is lost; and where a
# connection has broken, too.
LIMIT, SHORT_LIMIT = 30, 10

_INTERVAL = 1  # Seconds between two signs.
_GRACE = 3  # Seconds that process 0 stays, for others to read why it ends.
_FAILURE, _BEAT = 'haikd/failure', 'haikd/beat'


class Watch:
  """Two threads that end this process soon after another one is lost.

  Whatever the main thread is at, compiling, waiting for a device or saving, it
  ends with exit code 6 and one line.

  Args:
    client: of JAX's coordinator.
    process_id: which process this is.
    num_processes: how many there are.
  """

  def __init__(self, client: Any, process_id: int, num_processes: int):
    self._client = client
    self._id, self._count = process_id, num_processes
    self._limit = LIMIT
    self._stopped = threading.Event()
    self._unheard = 0  # Intervals since process 0 last answered.
    self._signs = {}  # By process: its last sign, and the intervals since.
    for work in (self._talk, self._wait):
      threading.Thread(target=work, daemon=True).start()

  def stop(self) -> None:
    """Ends the watch, for the run is over."""
    self._stopped.set()

  def suspect(self) -> None:
    """Waits less long for signs, since some process must be lost."""
    self._limit = SHORT_LIMIT

  def failure(self) -> Optional[str]:
    """Returns what was first said of a failure, or None."""
    try:
      return self._client.key_value_try_get(_FAILURE)
    except RuntimeError:  # Nothing was, or process 0 is gone.
      return None

  def leave(self, exit_code: int, why: Optional[str]) -> None:
    """Ends this process at once, and tells the others, which follow.

    JAX's own way out would wait minutes for them.

    Args:
      exit_code: of this process.
      why: what the others say of it, or None where they know it themselves.
        Only the first failure of a run counts.
    """
    self.stop()
    if why is not None:
      # Where process 0 hangs, this does too.
      saying = threading.Thread(target=self._say, args=(why,), daemon=True)
      saying.start()
      saying.join(_GRACE)
    sys.stdout.flush()
    sys.stderr.flush()
    if self._id == 0:
      time.sleep(_GRACE)  # What the others have to read ends with it.
    os._exit(exit_code)

  def _say(self, why):
    try:
      self._client.key_value_set(_FAILURE, why)
    except RuntimeError:  # Something has been said, or process 0 is gone.
      pass

  def _talk(self):
    """Gives signs of life, and reads what the others have to say."""
    for count in itertools.count():
      failure = self.failure()
      try:
        self._client.key_value_set(
            f'{_BEAT}/{self._id}', str(count), allow_overwrite=True)
        if self._id == 0:
          failure = failure or self._missing()
        self._unheard = 0
      except RuntimeError:  # The other thread counts how long this goes on.
        pass
      if failure:
        self._end(failure)
      if self._stopped.wait(_INTERVAL):
        return

  def _wait(self):
    """Notices when process 0 does not answer any more."""
    # Counts its own intervals instead of the time that went by, so that a
    # laptop which was asleep misses nobody.
    while not self._stopped.wait(_INTERVAL):
      self._unheard += 1
      if self._unheard * _INTERVAL > self._limit:
        self._end(_silent([0], self._limit))

  def _end(self, failure):
    if not self._stopped.is_set():
      error = lost(failure)
      print(f'haikd [{self._id}]: {error}', file=sys.stderr)
      self.leave(error.exit_code, failure)

  def _missing(self):
    """Returns who has given no sign for too long, in words, or None."""
    signs = dict(self._client.key_value_dir_get(_BEAT))
    missing = []
    for process in range(1, self._count):
      sign = signs.get(f'{_BEAT}/{process}')
      last, intervals = self._signs.get(process, (None, 0))
      intervals = intervals + 1 if sign == last else 0
      self._signs[process] = sign, intervals
      if intervals * _INTERVAL > self._limit:
        missing.append(process)
    return _silent(missing, self._limit) if missing else None


def lost(what: str) -> checks.LostProcessError:
  """Returns the error of a process that ends because of another."""
  return checks.LostProcessError(
      f'watch.Watch: all processes of a run must stay alive; got {what}. Start '
      'all again to go on from the newest checkpoint.')


def catch_abort(explain: Callable[[], Optional[checks.LostProcessError]],
                process_id: int) -> Callable[[int], None]:
  """Gives a name to the abort that JAX's client ends a process with.

  It does so in the moment in which its connection to process 0 breaks, or when
  not all processes have come, on a thread where Python's own handlers of
  SIGABRT are not called.

  Args:
    explain: returns what to end with; None to let the abort happen.
    process_id: which process this is.

  Returns:
    The handler, which must be kept.
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
  """Returns whether somebody listens at `host:port`."""
  host, port = address.rsplit(':', 1)
  try:
    socket.create_connection((host.strip('[]'), int(port)), 3).close()
  except OSError:
    return False
  return True


def _silent(processes, seconds):
  names = ', '.join(map(str, processes))
  return f'no sign of life from process {names} for {seconds} seconds'
