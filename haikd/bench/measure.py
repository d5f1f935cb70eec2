"""Both sides of a case in turn, each in a process of its own."""

from collections.abc import Callable
import contextlib
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, Optional

import haikd
from haikd.bench import cases
from haikd.bench import worker
from haikd.core import checks

SIDES = ('haikd', 'by_hand')
ROOT = pathlib.Path(haikd.__file__).parents[1]
SECONDS = 1.5  # Of a side in a round, and two steps at least.
_RTOL = 1e-4


class DisagreeError(ArithmeticError):
  """Two sides that do not compute the same."""


def find_references() -> pathlib.Path:
  """Returns the folder of the steps by hand, which are not installed.

  Raises:
    ConfigError: it is not there.
  """
  folder = ROOT / 'tests' / 'bench'
  if not (folder / 'by_hand').is_dir():
    raise checks.ConfigError(
        f'bench.main: {folder / "by_hand"} must hold the steps that haikd is '
        'compared with; got none. They are not part of what is installed: run '
        'the benchmark in a clone of the repository.')
  return folder


def run(case: cases.Case, *, rounds: int, cores: Optional[int],
        debug: bool = False,
        progress: Callable[[int], None] = lambda done: None) -> dict[str, Any]:
  """Measures a case.

  Args:
    case: complete, as `cases.choose` returns it.
    rounds: how often each side is timed.
    cores: how many cores the sides have, one after the other; None for all.
    debug: whether to show what the sides print.
    progress: called with the number of rounds done.

  Returns:
    By side what was known after its first two steps, and `rounds`.

  Raises:
    DisagreeError: the losses of the first two steps differ.
    RuntimeError: a side ended.
  """
  places = dict(
      haikd=('haikd.bench.ours', ROOT), by_hand=('by_hand', find_references()))
  found, workers = {}, {}
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    for side in SIDES:  # The second starts from what the first has written.
      module, path = places[side]
      workers[side] = stack.enter_context(Worker(side, debug))
      found[side] = workers[side].ask(
          module=module,
          path=str(path),
          case=case,
          cores=chosen_cores(cores),
          arrays=str(pathlib.Path(folder) / 'arrays.npz'))
    _check_losses(*(found[side]['losses'] for side in SIDES))
    trial = [workers[side].ask(steps=1)['wall'] for side in SIDES]
    steps = max(2, math.ceil(SECONDS / min(trial)))
    found['rounds'] = []
    for i in range(rounds):
      found['rounds'].append(
          {side: workers[side].ask(steps=steps) for side in SIDES})
      progress(i + 1)
  return found


def chosen_cores(count: Optional[int]) -> list[int]:
  """Returns which cores the sides run on; empty for all.

  Args:
    count: how many; None for all.

  Raises:
    ConfigError: there are not so many, or this system does not let one choose.
  """
  if count is None:
    return []
  if not hasattr(os, 'sched_setaffinity'):
    raise checks.ConfigError(
        f'bench.main: --cores must be left out on {sys.platform}, which lets '
        f'no process choose its cores; got --cores={count}.')
  there = sorted(os.sched_getaffinity(0))
  if count > len(there):
    raise checks.ConfigError(
        f'bench.main: --cores must be at most {len(there)}, as many as this '
        f'process may use; got --cores={count}.')
  return there[:count]


class Worker(contextlib.AbstractContextManager):
  """A process that builds one side and takes steps when asked.

  Args:
    side: its name, for messages.
    debug: whether what it prints is shown.
  """

  def __init__(self, side: str, debug: bool):
    self._side = side
    self._process = subprocess.Popen(
        # -P: what lies beside the script must not hide modules of that name.
        [sys.executable, '-P', worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if debug else subprocess.DEVNULL,
        text=True,
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '2'})

  def ask(self, **order: Any) -> dict[str, Any]:
    """Sends an order and waits for the answer.

    Args:
      **order: what the worker reads.

    Returns:
      What it answers.

    Raises:
      RuntimeError: it failed, or was killed.
    """
    with contextlib.suppress(BrokenPipeError):
      print(json.dumps(order), file=self._process.stdin, flush=True)
    line = self._process.stdout.readline()
    answer = json.loads(line) if line else dict(
        error=f'exit code {self._process.wait()}')
    if 'error' in answer:
      raise RuntimeError(f'the step of {self._side} ended: {answer["error"]}')
    return answer

  def __exit__(self, *unused_exception) -> None:
    self._process.terminate()
    self._process.communicate()


def _check_losses(ours, by_hand):
  for number, (one, other) in enumerate(zip(ours, by_hand), 1):
    if not math.isclose(one, other, rel_tol=_RTOL):
      raise DisagreeError(
          f'bench.run: both sides must compute the same loss; got {one:.7g} of '
          f'haikd, {other:.7g} by hand, in step {number}. Nothing was timed.')
