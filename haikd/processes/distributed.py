"""Many processes of one run: how they start, agree, and stop together.

What they say to one another goes through the key-value store of JAX's
coordinator, which needs no device. With one process, everything here is as
cheap as not being there.
"""

from collections.abc import Callable, Iterator
import contextlib
import itertools
import json
import re
import signal
import threading
import time
from typing import NamedTuple, NoReturn, Optional, TypeVar

import jax
from jax.experimental import multihost_utils

from haikd.core import checks
from haikd.core import jax_internals
from haikd.processes import cluster as cluster_lib
from haikd.processes import heartbeat as heartbeat_lib

T = TypeVar('T')

_client = jax_internals.coordination_client

_TIMEOUT = 300  # Seconds for all processes to come.
_WEEK = 7 * 24 * 3600 * 1000  # Milliseconds; the watch ends a wait before.

# What tells of a broken connection in the errors of Gloo, NCCL, gRPC, TPUs and
# Orbax.
_BROKEN = re.compile(
    r'gloo|nccl|socket|connection|peer|barrier|coordination|unavailable|'
    r'deadline|heartbeat|halted|slice', re.IGNORECASE)


class _Run(NamedTuple):
  """What a process knows of the others."""

  cluster: cluster_lib.Cluster
  watch: heartbeat_lib.Watch
  handler: Callable  # Kept, since C calls it.


_run: Optional[_Run] = None
_decisions = itertools.count()
_looks = itertools.count(1)  # For a SIGTERM, over all networks of a job.
_terminated = False
_deciding = False
_agreed: Optional[BaseException] = None  # What `first` raised everywhere.


def initialize(coordinator: Optional[str] = None,
               num_processes: Optional[int] = None,
               process_id: Optional[int] = None) -> None:
  """Joins the other processes of this run, if there are any.

  Call it before anything touches a device. A single process connects to
  nothing. From then on the loss of a process ends all of them, see
  `heartbeat.Watch`.

  Args:
    coordinator: as for `cluster.find`, like the others.
    num_processes: how many there are.
    process_id: which one this is.

  Raises:
    ConfigError: some of the three are missing or wrong. If the others do not
      come within five minutes, the process ends with exit code 6.
  """
  global _run
  cluster = cluster_lib.find(coordinator, num_processes, process_id)
  if cluster is None:
    return
  number = cluster.process_id
  handler = heartbeat_lib.catch_abort(lambda: _blame(cluster), number)
  try:
    jax.distributed.initialize(
        *cluster, cluster_detection_method='deactivate',
        initialization_timeout=_TIMEOUT)
  except RuntimeError as err:
    raise checks.ConfigError(
        'distributed.initialize: coordinator must be an address of process 0 '
        f'with a free port; got {cluster.coordinator} '
        f'({checks.one_line(err)}). Choose another port.') from err
  watch = heartbeat_lib.Watch(_client(), number, cluster.num_processes)
  _run = _Run(cluster, watch, handler)


def _blame(cluster):
  """Returns what an abort of JAX's client is to be called, if it is one."""
  if _run is None:
    return checks.LostProcessError(
        f'distributed.initialize: all {cluster.num_processes} processes must '
        f'start within {_TIMEOUT} seconds and reach process 0; got '
        f'coordinator={cluster.coordinator}, '
        f'process_id={cluster.process_id}. Start each with a process_id of its '
        'own, and look for what ended the others.')
  if not heartbeat_lib.answers(cluster.coordinator):
    return heartbeat_lib.lost('process 0, which is gone')
  return None


def is_many() -> bool:
  """Returns whether this run has more than one process."""
  return _run is not None


def label() -> str:
  """Returns what to call this process in messages; '' if it is alone."""
  return f' [{_run.cluster.process_id}]' if _run else ''


def first(function: Callable[[], T]) -> T:
  """Runs a function on process 0, and gives every process what it returned.

  Whatever depends on files that process 0 writes is decided this way: then it
  makes no difference who looks when. Call it on all processes.

  Args:
    function: returns something JSON can hold.

  Returns:
    What it returned on process 0.

  Raises:
    ConfigError, DataError: as the function, on all processes.
  """
  global _deciding, _agreed
  if not _run or _deciding:
    return function()
  key = f'haikd/decision/{next(_decisions)}'
  if _run.cluster.process_id:
    value, error = json.loads(_client().blocking_key_value_get(key, _WEEK))
    if error:
      _agreed = getattr(checks, error)(value)
      raise _agreed
    return value
  _deciding = True
  try:
    value = function()
  except (checks.ConfigError, checks.DataError) as err:
    _client().key_value_set(key, json.dumps([str(err), type(err).__name__]))
    _agreed = err
    raise
  finally:
    _deciding = False
  _client().key_value_set(key, json.dumps([value, None]))
  return value


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
  """Makes SIGTERM a request to stop, in a `with` statement.

  A second one ends the process. Of many processes, each listens from
  `initialize` on.
  """
  global _terminated
  _terminated = False
  main = threading.main_thread()
  if _run or threading.current_thread() is not main:
    yield
    return

  def note(*unused):
    global _terminated
    _terminated = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

  before = signal.signal(signal.SIGTERM, note)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def stop_requested() -> bool:
  """Returns whether to save and stop here, since SIGTERM has come.

  Slurm, GKE and TPU maintenance send it before they take a machine away. Of
  many processes, all hear of it that one has got it, and all get True at the
  same step. Call it on all processes, once a step, inside of `stoppable`.
  """
  if _run:
    return multihost_utils.reached_preemption_sync_point(next(_looks))
  return _terminated


def explain(error: BaseException) -> BaseException:
  """Returns an error, or that another process is to blame for it.

  When a process goes away, the collectives of the others fail, each in words of
  its own. Who it was, the watch finds out within a minute.

  Args:
    error: what ends this process.

  Returns:
    The error itself, or a LostProcessError.
  """
  if not _run or not _BROKEN.search(_foreign(error)):
    return error
  failure = _run.watch.failure()
  if failure is None:
    _run.watch.suspect()
    time.sleep(heartbeat_lib.LIMIT + 10)  # Until the watch ends this process.
  return heartbeat_lib.lost(failure) if failure else error


def leave(exit_code: int, error: BaseException) -> NoReturn:
  """Ends this one of many processes at once; the others follow.

  What `first` raises, each of them raises itself, and is not told of: one that
  is slow would take it for the failure of another.

  Args:
    exit_code: of this process.
    error: what ends it.
  """
  why = None
  if error is not _agreed:
    why = (f'process {_run.cluster.process_id}, which ended with exit code '
           f'{exit_code} ({checks.describe(error)})')
  _run.watch.leave(exit_code, why)


def finish() -> None:
  """Waits until all processes are done, then ends the watch."""
  if _run:
    _client().wait_at_barrier('haikd/end', _WEEK)
    _run.watch.stop()


def _foreign(error):
  """Returns the words of an error and its causes that are not haikd's own."""
  words = []
  while error is not None:
    if not hasattr(error, 'exit_code'):
      words.append(str(error))
    error = error.__cause__
  return ' '.join(words)
