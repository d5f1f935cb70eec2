"""The file of rows, `metrics.jsonl`."""

from collections.abc import Callable, Mapping
import pathlib
from typing import Any

from haikd.core import checks
from haikd.storage import files
from haikd.storage import paths

Row = tuple[int, str, Mapping[str, float]]  # Step, split and metrics.


class RowsFile:
  """The file of rows, one JSON object a line.

  Args:
    path: of the file, which may be missing.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    # Rows that are not written yet, and their lines.
    self._left: list[tuple[Row, bytes]] = []

  def count(self) -> int:
    """Returns how many rows the file has."""
    return len(files.read_rows(self.path))

  def truncate(self, step: int) -> int:
    """Drops the rows of later steps; returns the last of these, or 0.

    Args:
      step: the last to keep.

    Raises:
      DataError: a row has no step.
    """
    rows = files.read_rows(self.path)
    for number, row in enumerate(rows, start=1):
      if not isinstance(row.get('step'), int):
        raise checks.DataError(
            f'line {number} of {self.path} must have an integer step; got '
            f'{row.get("step")!r}. Remove the line.')
    self._keep(rows, lambda row: row['step'] <= step)
    self._left = [(row, line) for row, line in self._left if row[0] <= step]
    return max((row['step'] for row in rows if row['step'] > step), default=0)

  def drop_evaluation(self, step: int) -> None:
    """Drops the row of the evaluation at the last step, if there is one."""
    self._keep(files.read_rows(self.path),
               lambda row: row['step'] < step or row['split'] == 'train')

  def _keep(self, rows: list[dict[str, Any]],
            is_kept: Callable[[Any], bool]) -> None:
    """Drops the other rows, and a last line that a kill has cut short."""
    kept = [row for row in rows if is_kept(row)]
    if kept != rows[:len(kept)]:
      files.replace(self.path,
                    ''.join(files.encode(row) + '\n' for row in kept))
      return
    with open(self.path, 'ab') as file:  # A full disk has room for that.
      lines = paths.read(self.path).split(b'\n')[:len(kept)]
      file.truncate(sum(len(line) + 1 for line in lines))

  def add(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
    """Adds a row to those that `write` writes."""
    line = files.encode({'step': step, 'split': split, **metrics}) + '\n'
    self._left.append(((step, split, metrics), line.encode()))

  def write(self) -> list[Row]:
    """Writes the rows that were added, all of them or none.

    Returns:
      These rows.

    Raises:
      OSError: they cannot be written, and wait for the next call.
    """
    content = b''.join(line for _, line in self._left)
    if not content:
      return []
    # A buffer would write a part of them again when the file is closed.
    with open(self.path, 'ab', buffering=0) as file:
      end = file.tell()
      try:
        while content:
          content = content[file.write(content):]
      except OSError:
        file.truncate(end)
        raise
    written, self._left = [row for row, _ in self._left], []
    return written
