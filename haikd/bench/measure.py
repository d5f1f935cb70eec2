"""Runs both sides of a case in turn, each in its own process."""

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

SIDES = ('haikd', 'reference')
ROOT = pathlib.Path(haikd.__file__).parents[1]
# A side takes steps for so long in a round, and at least two.
SECONDS = 1.5
_RTOL = 1e-4
_READ_AHEAD = 16  # Batches that tell how long one takes, once many are read.


class DisagreeError(ArithmeticError):
  """The two sides do not compute the same."""

  exit_code = 1


def find_references() -> pathlib.Path:
  """Returns the folder of the steps by hand, which are not installed.

  Raises:
    ConfigError: the folder is missing.
  """
  folder = ROOT / 'tests' / 'bench'
  if not (folder / 'by_hand').is_dir():
    raise checks.ConfigError(
        f'{folder / "by_hand"} must hold the steps that haikd is compared '
        'with; got no such folder. They are not installed: run the benchmark '
        'in a clone of the repository.')
  return folder


def run(case: cases.Case, *, rounds: int, cores: Optional[int],
        debug: bool = False,
        progress: Callable[[int], None] = lambda done: None) -> dict[str, Any]:
  """Measures a case.

  Args:
    case: a complete case, as `cases.choose` returns it.
    rounds: how often each side is timed.
    cores: the number of cores that each side has; None for all.
    debug: whether to show what the sides print.
    progress: called with the number of finished rounds.

  Returns:
    By side, what was measured in its first two steps; and `rounds`.

  Raises:
    DisagreeError: the losses of the first two steps differ, where the
      reference is a step by hand.
    RuntimeError: a side ended early.
  """
  ours, by_hand = 'haikd.bench.ours', case['reference'] != cases.BASELINE
  sides = dict(
      haikd=(ours, ROOT, case),
      reference=('by_hand', find_references(), case) if by_hand else
      (ours, ROOT, cases.baseline(case)))
  results: dict[str, Any] = {}
  workers = {}
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    for side in SIDES:  # The second reads what the first has written.
      module, path, variant = sides[side]
      workers[side] = stack.enter_context(Worker(side, debug))
      results[side] = workers[side].ask(
          module=module,
          path=str(path),
          case=variant,
          cores=chosen_cores(cores),
          arrays=str(pathlib.Path(folder) / 'arrays.npz'))
    if by_hand and case['kind'] in ('text', 'images'):
      _check_losses(*(results[side]['losses'] for side in SIDES))
    # The first batches are read ahead, in no time.
    count = _READ_AHEAD if case['kind'] == cases.DECODING else 1
    trial = [workers[side].ask(steps=count)['wall'] / count for side in SIDES]
    steps = max(2, math.ceil(SECONDS / min(trial)))
    results['rounds'] = []
    for i in range(rounds):
      results['rounds'].append(
          {side: workers[side].ask(steps=steps) for side in SIDES})
      progress(i + 1)
  return results


def chosen_cores(count: Optional[int]) -> list[int]:
  """Returns the cores that the sides run on; empty for all.

  Args:
    count: the number of cores; None for all.

  Raises:
    ConfigError: too many, or the system does not let a process choose.
  """
  if count is None:
    return []
  if not hasattr(os, 'sched_setaffinity'):
    raise checks.ConfigError(
        f'--cores must be left out on {sys.platform}, where a process cannot '
        f'choose its cores; got --cores={count}.')
  usable = sorted(os.sched_getaffinity(0))
  if count > len(usable):
    raise checks.ConfigError(
        f'--cores must be at most {len(usable)}, as many as this process may '
        f'use; got --cores={count}.')
  return usable[:count]


class Worker(contextlib.AbstractContextManager):
  """A process that builds one side and takes steps when asked.

  Args:
    side: the name of the side, for messages.
    debug: whether to show what it prints.
  """

  def __init__(self, side: str, debug: bool):
    self._side = side
    self._process = subprocess.Popen(
        # -P: files beside the script must not hide modules of the same name.
        [sys.executable, '-P', worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if debug else subprocess.DEVNULL,
        text=True,
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '2'})

  def ask(self, **order: Any) -> dict[str, Any]:
    """Sends an order and waits for the answer.

    Args:
      **order: the order, which the worker reads as JSON.

    Returns:
      The answer.

    Raises:
      RuntimeError: the worker failed, or was killed.
    """
    assert self._process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
      print(json.dumps(order), file=self._process.stdin, flush=True)
    line = self._process.stdout.readline()
    answer = json.loads(line) if line else dict(
        error=f'exit code {self._process.wait()}')
    if 'error' in answer:
      raise RuntimeError(
          f'the step of {self._side} ended early: {answer["error"]}')
    return answer

  def __exit__(self, *unused_exception) -> None:
    self._process.terminate()
    self._process.communicate()


def _check_losses(ours, by_hand):
  for number, (one, other) in enumerate(zip(ours, by_hand), 1):
    if not math.isclose(one, other, rel_tol=_RTOL):
      raise DisagreeError(
          f'both sides must compute the same loss; got {one:.7g} from haikd '
          f'and {other:.7g} by hand in step {number}. Nothing was timed.')
