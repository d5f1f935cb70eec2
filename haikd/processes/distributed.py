"""Many processes of one run: how they start, agree, and stop together.

They communicate through the key-value store of JAX's coordinator, which needs
no device. With one process, everything here returns at once.
"""

from collections.abc import Callable, Iterator
import contextlib
import itertools
import json
import os
import re
import signal
import threading
import time
from typing import Any, NamedTuple, NoReturn, Optional, TypeVar

import jax
from jax.experimental import multihost_utils
import numpy as np

from haikd.core import checks
from haikd.core import jax_internals
from haikd.processes import cluster as cluster_lib
from haikd.processes import heartbeat as heartbeat_lib

T = TypeVar('T')

_TIMEOUT = 300  # Seconds within which all processes must start.
# Milliseconds that a wait may take. The watch ends the process long before if
# what it waits for is lost.
_WEEK = 7 * 24 * 3600 * 1000

# Words in the errors of Gloo, NCCL, gRPC, TPUs and Orbax that indicate a broken
# connection.
_BROKEN = re.compile(
    r'gloo|nccl|socket|connection|peer|barrier|coordination|unavailable|'
    r'deadline|heartbeat|halted|slice', re.IGNORECASE)


class _Run(NamedTuple):
  """The connection of this process to the others."""

  cluster: cluster_lib.Cluster
  client: Any  # Of JAX's coordinator.
  watch: heartbeat_lib.Watch
  handler: Callable  # Kept alive because C calls it.


_run: Optional[_Run] = None  # None if this process is alone.
_decisions = itertools.count()  # Numbers the calls of `first`.
_polls = itertools.count(1)  # Numbers the calls of `stop_requested`.
_terminated = False  # Whether SIGTERM has come; with one process only.
_deciding = False  # Whether process 0 runs the function of `first`.
# The error that `first` raised on every process.
_shared_error: Optional[BaseException] = None


def initialize(coordinator: Optional[str] = None,
               num_processes: Optional[int] = None,
               process_id: Optional[int] = None) -> None:
  """Joins the other processes of this run, if there are any.

  Call it before anything touches a device. A single process connects to
  nothing. From then on the loss of one process ends all of them; see
  `heartbeat.Watch`. If the others do not start within five minutes, this
  process ends with exit code 6.

  Args:
    coordinator: as for `cluster.find`.
    num_processes: as for `cluster.find`.
    process_id: as for `cluster.find`.

  Raises:
    ConfigError: some of the three are missing or wrong.
  """
  global _run
  cluster = cluster_lib.find(coordinator, num_processes, process_id)
  if cluster is None:
    return
  process = cluster.process_id
  handler = heartbeat_lib.catch_abort(lambda: _explain_abort(cluster), process)
  try:
    jax.distributed.initialize(
        *cluster, cluster_detection_method='deactivate',
        initialization_timeout=_TIMEOUT)
  except RuntimeError as err:
    raise checks.ConfigError(
        'coordinator must be an address of process 0 with a free port; got '
        f'{cluster.coordinator} ({checks.one_line(err)}). Choose another port.'
    ) from err
  client = jax_internals.coordination_client()
  watch = heartbeat_lib.Watch(client, process, cluster.num_processes)
  _run = _Run(cluster, client, watch, handler)


def _explain_abort(cluster):
  """Returns the error behind an abort by JAX's client, or None."""
  if _run is None:
    return checks.LostProcessError(
        f'all {cluster.num_processes} processes must start within {_TIMEOUT} '
        'seconds and reach process 0; got '
        f'coordinator={cluster.coordinator}, '
        f'process_id={cluster.process_id}. Start each with a different '
        'process_id, and look for what ended the others.')
  if not heartbeat_lib.answers(cluster.coordinator):
    return heartbeat_lib.lost('process 0, which is gone')
  return None


def is_many() -> bool:
  """Returns whether this run has more than one process."""
  return _run is not None


def is_first() -> bool:
  """Returns whether this process speaks for the run: number 0, or alone."""
  return _run is None or _run.cluster.process_id == 0


def label() -> str:
  """Returns the label of this process in messages; '' if it is alone."""
  return f' [{_run.cluster.process_id}]' if _run else ''


def first(function: Callable[[], T]) -> T:
  """Runs a function on process 0 and returns its result on every process.

  Use it for every decision that depends on files that process 0 writes: other
  processes might see an older state of them. Call it on all processes.

  Args:
    function: returns a value that JSON can hold.

  Returns:
    The result on process 0.

  Raises:
    ConfigError, DataError: as the function, on all processes.
  """
  global _deciding, _shared_error
  # Alone; or inside the function of another `first`, on process 0 only.
  if not _run or _deciding:
    return function()
  key = f'haikd/decision/{next(_decisions)}'
  if _run.cluster.process_id:
    value, error = json.loads(_run.client.blocking_key_value_get(key, _WEEK))
    if error:
      _shared_error = getattr(checks, error)(value)
      raise _shared_error
    return value
  _deciding = True
  try:
    value = function()
  except (checks.ConfigError, checks.DataError) as err:
    kind = checks.ConfigError if isinstance(err, checks.ConfigError) else (
        checks.DataError)  # A subclass may be unknown to the others.
    _run.client.key_value_set(key, json.dumps([str(err), kind.__name__]))
    _shared_error = err  # All processes raise it: `explain` need not tell them.
    raise
  finally:
    _deciding = False
  _run.client.key_value_set(key, json.dumps([value, None]))
  return value


def all_can(possible: bool) -> bool:
  """Returns whether something is possible on all processes.

  Ask before work with collectives that one process may be unable to begin: the
  others would wait for it. Call it on all processes.

  Args:
    possible: whether it is on this process.
  """
  if not _run:
    return possible
  return bool(multihost_utils.process_allgather(np.int32(possible)).all())


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
  """Turns SIGTERM into a request to stop, within a `with` statement.

  A second SIGTERM ends the process. If the run has many processes, JAX handles
  SIGTERM in each of them from `initialize` on.
  """
  global _terminated
  _terminated = False
  main = threading.main_thread()
  if _run or threading.current_thread() is not main:
    yield
    return

  def request_stop(*unused):
    global _terminated
    _terminated = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

  previous = signal.signal(signal.SIGTERM, request_stop)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


def stop_requested() -> bool:
  """Returns whether to save and stop at this step because SIGTERM has come.

  Slurm, GKE and TPU maintenance send SIGTERM before they take a machine away.
  If it reaches one of many processes, all return True at the same step. Call it
  on all processes, once a step, inside `stoppable`.
  """
  if _run:
    return multihost_utils.reached_preemption_sync_point(next(_polls))
  return _terminated


def explain(error: BaseException) -> BaseException:
  """Replaces an error that the loss of another process has caused.

  When a process is lost, the collectives of the others fail with various
  errors. Within a minute the watch finds out which process it was.

  Args:
    error: the error that ends this process.

  Returns:
    The error itself, or a LostProcessError.
  """
  if not _run or not _BROKEN.search(_foreign(error)):
    return error
  failure = _run.watch.failure()
  if failure is None:
    _run.watch.suspect()
    # The watch ends this process during the sleep if another one is lost.
    time.sleep(heartbeat_lib.LIMIT + 10)
  return heartbeat_lib.lost(failure) if failure else error


def leave(exit_code: int, error: BaseException) -> NoReturn:
  """Ends this process of many at once; the others follow.

  An error of `first` is raised by every process, so the others are not told of
  it: a slow one would take it for the failure of another process.

  Args:
    exit_code: the exit code of this process.
    error: the error that ends it.
  """
  assert _run is not None, 'leave is for one of many processes'
  why = None
  if error is not _shared_error:
    why = (f'process {_run.cluster.process_id}, which ended with exit code '
           f'{exit_code} ({checks.describe(error)})')
  _run.watch.leave(exit_code, why)


def end(error: BaseException) -> NoReturn:
  """Ends this process from any thread; others of the run follow.

  Args:
    error: why, an error with an `exit_code`, which was printed.
  """
  code = getattr(error, 'exit_code', 1)
  if _run:
    leave(code, error)
  os._exit(code)


def finish() -> None:
  """Waits until all processes are done, then ends the watch."""
  if _run:
    _run.client.wait_at_barrier('haikd/end', _WEEK)
    _run.watch.stop()


def _foreign(error):
  """Returns the messages of an error and its causes, without those of haikd."""
  messages = []
  while error is not None:
    if not hasattr(error, 'exit_code'):
      messages.append(str(error))
    error = error.__cause__
  return ' '.join(messages)
