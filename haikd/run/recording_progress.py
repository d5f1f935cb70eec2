"""Shows how far the recording of a teacher is, and what it will take."""

from collections.abc import Mapping
import time
from typing import Any

from haikd.run import console as console_lib
from haikd.run import rates
from haikd.storage import paths

_EVERY = 10  # Seconds between two lines, at least.


class Progress:
  """A bar in a terminal, lines elsewhere; use it in a `with` statement.

  Args:
    rows: how many rows are to be recorded.
    total: how many there are, with those that are recorded already.
    processes: how many record at once.
    enabled: whether to show anything.
  """

  def __init__(self, rows: int, total: int, *, processes: int, enabled: bool):
    self._rows, self._total, self._processes = rows, total, processes
    self._done = self._bytes = self._positions = 0
    self._console = console_lib.open_console('teach', total) if enabled else (
        None)
    self._start = self._shown = time.monotonic()

  def __enter__(self) -> 'Progress':
    if self._console and self._rows < self._total:
      self._console.message(
          f'{self._total - self._rows:,} of {self._total:,} rows are recorded')
    return self

  def __exit__(self, *unused: Any) -> None:
    if self._console:
      self._console.close()

  def add(self, rows: int, positions: int, size: int) -> None:
    """Counts what this process has recorded, for all of them.

    Args:
      rows: how many more.
      positions: in them.
      size: bytes of their records.
    """
    self._done = min(self._done + rows * self._processes, self._rows)
    self._bytes += size * self._processes
    self._positions += positions * self._processes
    if not self._console:
      return
    now, done = time.monotonic(), self._total - self._rows + self._done
    self._console.progress(done)
    if now - self._shown >= _EVERY or self._done == self._rows:
      self._shown = now
      seconds = now - self._start
      expected = self._bytes * self._total / max(self._done, 1)
      self._console.write(done, 'train', {
          'MB': self._bytes / 1e6, 'MB expected': expected / 1e6,
          'bytes a position': self._bytes / max(self._positions, 1),
          'positions a second': self._positions / seconds,
          rates.EXAMPLES: self._done / seconds})


def summary(manifest: Mapping[str, Any], folder: paths.ConcretePath) -> str:
  """Returns what was recorded, in a line.

  Args:
    manifest: of the records.
    folder: of the records.
  """
  positions = manifest['positions']
  return (f'recorded {manifest["rows"]:,} rows of {positions:,} positions: '
          f'{manifest["bytes"] / 1e6:,.1f} MB, '
          f'{manifest["bytes"] / max(positions, 1):.0f} bytes a position, in '
          f'{folder}')
