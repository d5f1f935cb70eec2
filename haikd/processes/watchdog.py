"""Watches what the main thread does: for how long, and whether it hangs.

What the main thread does is a stack of phases, and each has a limit on how long
it may take without a sign of life. That another process of the run hangs is
found by `heartbeat`; a process that ends here tells the others through it.
"""

from collections.abc import Iterator
import contextlib
import faulthandler
import sys
import threading
import time
from typing import Optional

from haikd.core import checks
from haikd.core import notes
from haikd.processes import distributed

DATA, STEP, EVALUATION, SAVE = 'data', 'step', 'evaluation', 'save'
COMPILATION = 'compilation'

_INTERVAL = 1  # Seconds between two looks, at most.

# What the main thread does: the phase, None for one without a limit, and of
# what; and a number that changes with each sign of life.
_phase: tuple[Optional[str], str] = None, ''
_life = 0
# The seconds in each phase so far, and when the present one began.
_spent: dict[Optional[str], float] = {}
_since = time.monotonic()


@contextlib.contextmanager
def watched(limit: float, *, ends_process: bool = False) -> Iterator[None]:
  """Watches the phases inside, from a thread of its own.

  At half of the limit it says which phase takes how long. At the limit it
  prints the stacks of all threads.

  Args:
    limit: seconds in a phase without a sign of life.
    ends_process: whether the process then ends, and all others of the run. A
      library must not end its caller.
  """
  done = threading.Event()
  threading.Thread(target=_watch, args=(limit, ends_process, done),
                   daemon=True).start()
  try:
    yield
  finally:
    done.set()
    enter(None, '')


def enter(phase: Optional[str], where: str) -> None:
  """Says what the main thread does from now on.

  It costs next to nothing, so that it suits every step.

  Args:
    phase: DATA, STEP, EVALUATION, SAVE or COMPILATION; None for what has no
      limit.
    where: of what, such as 'step 5 of student'.
  """
  global _phase, _life, _since
  now = time.monotonic()
  _spent[_phase[0]] = _spent.get(_phase[0], 0.0) + now - _since
  _since = now
  _phase = phase, where
  _life += 1


def spent() -> dict[Optional[str], float]:
  """Returns the seconds that the main thread was in each phase so far."""
  enter(*_phase)
  return dict(_spent)


def attribute(phase: str, seconds: float) -> None:
  """Counts the last seconds of the main thread as those of another phase.

  It does nothing in another thread, whose time is not that of a phase.

  Args:
    phase: as for `enter`.
    seconds: what it took just now.
  """
  if threading.current_thread() is threading.main_thread():
    enter(*_phase)
    for name, more in ((_phase[0], -seconds), (phase, seconds)):
      _spent[name] = _spent.get(name, 0.0) + more


def alive() -> None:
  """Says that the phase gets on."""
  global _life
  _life += 1


@contextlib.contextmanager
def during(phase: Optional[str], where: Optional[str] = None) -> Iterator[None]:
  """Says what the main thread does inside; see `enter`.

  Args:
    phase: as for `enter`.
    where: likewise; None for what it was.
  """
  before = _phase
  enter(phase, before[1] if where is None else where)
  try:
    yield
  finally:
    enter(*before)


def _watch(limit, ends_process, done):
  # Intervals are counted, so that a laptop that was asleep is not ended.
  interval = min(_INTERVAL, limit / 20)
  life, count = _life, 0
  while not done.wait(interval):
    count = count + 1 if life == _life and _phase[0] else 0
    life = _life
    if count == round(limit / 2 / interval):
      _warn(limit)
    if count == round(limit / interval):
      _end(limit, ends_process)


def _warn(limit):
  phase, where = _phase
  notes.say(f'{where} has been in the phase {phase} for {limit / 2:g} seconds; '
            f'at {limit:g}, config.guard.hang_after, it counts as a hang.')


def _end(limit, ends_process):
  phase, where = _phase
  error = checks.HangError(
      f'a phase must get on within {limit:g} seconds, '
      f'config.guard.hang_after; got the phase {phase} of {where}, which has '
      'not. The stacks are above: fix what does not return, or raise that '
      'field. A new start goes on from the newest checkpoint.')
  sys.stdout.flush()
  sys.stderr.flush()
  faulthandler.dump_traceback(2, all_threads=True)  # 2 is standard error.
  print(f'haikd{distributed.label()}: {error}', file=sys.stderr, flush=True)
  if ends_process:
    distributed.end(error)
