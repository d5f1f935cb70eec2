"""Writes metrics to a file of rows, TensorBoard and the console."""

from collections.abc import Mapping
import re
from typing import Any, Optional

import rich.console

from haikd import metrics as metrics_lib
from haikd.core import notes
from haikd.run import console as console_lib
from haikd.run import events
from haikd.run import rates
from haikd.run import results as results_lib
from haikd.run import rows_file
from haikd.run import trackers
from haikd.storage import files
from haikd.storage import paths

Metrics = Mapping[str, float]

METRICS_FILE = 'metrics.jsonl'
RESULT_FILE = 'result.json'
MISSING = '–'


class Writer:
  """Writes metrics to all outputs that `open_writer` has opened.

  Attributes:
    rows: how many it has written, over all restarts; on every process.
  """

  def __init__(self, staging: Optional[paths.Staging] = None,
               console: Any = None, tracker: Any = None,
               go_on: bool = False):
    self._goes_on = go_on
    self._staging, self._console = staging, console
    self.rows = 0
    if staging:
      self._rows = rows_file.RowsFile(staging.folder / METRICS_FILE)
      self._events = events.Events(staging.folder)
      self._tracker = tracker

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  def truncate(self, step: int, *, evaluated: bool = True,
               rows: int = 0) -> int:
    """Drops what a killed run wrote after its last checkpoint.

    Call it before anything is written, and after a rollback.

    Args:
      step: the step that training goes on from; 0 for a new run. Later rows
        and an incomplete last line are dropped.
      evaluated: whether the evaluation at that step is done; otherwise its row,
        if there is one, is dropped as well.
      rows: how many were written until then. If there are fewer, it is said.

    Returns:
      The last step of a row that was dropped; 0 if none was.

    Raises:
      DataError: a file cannot be written.
    """
    self.rows, lost = rows, 0
    if self._staging:
      try:
        lost = self._rows.truncate(step)
        for sink in filter(None, (self._events, self._tracker, self._console)):
          sink.truncate(step)
        if not evaluated:
          self._rows.drop_evaluation(step)
      except OSError as err:
        raise paths.unwritable(self._rows.path.parent, err) from err
      if evaluated and (left := self._rows.count()) < rows:
        notes.say(f'{self._rows.path} has {left} of the {rows} rows up to step '
                  f'{step}: the others were removed. Training goes on without '
                  'them.')
    return lost

  def progress(self, step: int) -> None:
    """Moves the progress bar, if any; cheap enough for every step."""
    if self._staging:
      self._console.progress(step)

  def write(self, step: int, split: str, metrics: Metrics) -> None:
    """Writes one row.

    Args:
      step: the number of steps taken.
      split: such as 'train' or 'eval/validation'.
      metrics: numbers by name, such as `loss/kl` or `examples_per_second`.
        The console does not show those of `rates.TIME`.
    """
    # Also on processes that do not write: `float` waits for the step there too.
    metrics = {name: float(value) for name, value in metrics.items()}
    self.rows += 1
    if self._staging:  # None on processes that do not write.
      row = int(step), split, metrics
      self._rows.add(*row)
      self._write_rows()
      if self._tracker:
        self._tracker.write(*row)
      if split != rates.TIME:
        self._console.write(*row)
      self._staging.flush_if_due()

  def message(self, text: str) -> None:
    """Prints a line."""
    if self._staging:
      self._console.message(text)

  def flush(self) -> None:
    """Writes out pending rows; call it before a checkpoint is saved."""
    if self._staging:
      self._write_rows()
      self._staging.flush()

  def close(self) -> None:
    """Writes out pending rows and removes the progress bar."""
    if self._staging:
      self._console.close()
      if self._goes_on:  # Else an error has ended the run already.
        self._write_rows()
      for sink in filter(None, (self._events, self._tracker)):
        sink.close()
      self._staging.close()

  def _write_rows(self):
    """Writes the rows that wait, or says that they cannot be written."""
    try:
      for row in self._rows.write():
        self._events.add(*row)
      self._events.write()
    except OSError as err:
      error = paths.unwritable(self._rows.path.parent, err)
      if not self._goes_on:
        raise error from err
      notes.say(f'rows of metrics wait until they can be written: {error}')


def open_writer(workdir: files.Path,
                *,
                total_steps: int,
                title: str = 'train',
                enabled: bool = True,
                tracker: Optional[trackers.Tracker] = None,
                console: Optional[rich.console.Console] = None,
                go_on: bool = False) -> Writer:
  """Opens the writers of a run; use it in a `with` statement.

  Rows go to `metrics.jsonl`, one JSON object a line with `step`, `split` and
  the metrics; a value that is not finite is one of the strings 'NaN',
  'Infinity' and '-Infinity', which `float` reads. TensorBoard's event files
  have the tags `<split>/<metric>`. The console shows a progress bar if it is a
  terminal, else one plain line a row. Each row is on disk at once, and in a
  bucket with the next upload; see `paths.Staging`.

  Args:
    workdir: the folder to write to, created if missing.
    total_steps: the length of the run.
    title: the title of the run on the console.
    enabled: whether to write at all; False on all processes but the first.
    tracker: gets the rows as well; None for none.
    console: where to print; standard output by default.
    go_on: whether rows that cannot be written wait until they can.

  Returns:
    A Writer.
  """
  if not enabled:
    return Writer()
  return Writer(
      paths.Staging(workdir, known=(METRICS_FILE,)),
      console_lib.open_console(title, total_steps, console), tracker, go_on)


def write_results(workdir: files.Path,
                  results: results_lib.Results,
                  name: str = RESULT_FILE) -> None:
  """Writes the results of a job atomically.

  Args:
    workdir: the workdir of the job.
    results: for `teacher`, `student_start`, `student_alone` and `student` the
      `parameters`, the metrics (see `haikd.metrics`) and the `seconds`.
    name: the name of the file.
  """
  try:
    files.write_json(paths.as_path(workdir) / name, results)
  except OSError as err:
    raise paths.unwritable(workdir, err) from err


def evaluation_file(split: str) -> str:
  """Returns the name of the file for a later evaluation on a split.

  Args:
    split: such as 'test' or 'test[:64]'.

  Returns:
    'eval-test.json', 'eval-test__64_.json': underscores replace all characters
    that a shell or another operating system may not accept.
  """
  return f'eval-{re.sub("[^0-9A-Za-z.+-]", "_", split)}.json'


def print_table(results: results_lib.Results,
                *,
                split: str = '',
                console: Optional[rich.console.Console] = None) -> None:
  """Prints results under the name of their split, a network a row.

  Args:
    results: as for `write_results`. A missing value is shown as a dash; a
      metric that no network has is not shown.
    split: the split they were evaluated on.
    console: where to print; standard output by default.
  """
  titles, rows = table(results, split)
  console_lib.table(rows, titles, console=console)


def table(results: results_lib.Results,
          split: str) -> tuple[list[str], list[list[str]]]:
  """Returns the headings and the rows of the table of results.

  Args:
    results: as for `print_table`.
    split: the split they were evaluated on.
  """
  measured = {field for values in results.values() for field in values}
  columns = [('parameters', 'parameters', '{:,.0f}'.format),
             *((x.name, x.title, x.show) for x in metrics_lib.shown(measured)),
             ('seconds', 'seconds', '{:.1f}'.format)]
  columns = [column for column in columns if column[0] in measured]
  rows = []
  for network in results_lib.ROWS:
    if network.name in ('teacher', 'student_start') and (
        network.name not in results):
      continue
    values = results.get(network.name, {})
    rows.append([network.title] + [
        MISSING if values.get(field) is None else show(values[field])
        for field, _, show in columns
    ])
  return [split, *(title for _, title, _ in columns)], rows
