"""Shows progress as a bar or as plain lines, and prints tables."""

from collections.abc import Mapping, Sequence
import datetime
import os
import select
import sys
import textwrap
import time
from typing import Optional, Union

import rich.console
import rich.progress
import rich.table
import rich.text

from haikd.run import rates

_WIDE = 100  # Columns from which on a bar has its full length.


def open_console(
    title: str,
    total_steps: int,
    console: Optional[rich.console.Console] = None) -> Union['Bar', 'Lines']:
  """Returns a progress bar if the console is a terminal, else plain lines.

  Args:
    title: the title of the run.
    total_steps: the length of the run.
    console: where to print; standard output by default.

  Returns:
    A Bar or Lines; they have the same methods.
  """
  console = console or rich.console.Console()
  return (Bar if console.is_terminal else Lines)(console, title, total_steps)


def table(rows: Sequence[Sequence[str]],
          columns: Sequence[str],
          *,
          console: Optional[rich.console.Console] = None) -> None:
  """Prints a table: drawn in a terminal, aligned plain text elsewhere.

  Args:
    rows: the cells of each row.
    columns: the headings. The first column is left-justified, the others, of
      numbers, are right-justified.
    console: where to print; standard output by default.
  """
  console = console or rich.console.Console()
  if console.is_terminal:
    for titles in (columns, _stacked(rows, columns)):
      if sum(_widths(rows, titles)) + 3 * len(columns) < console.width:
        _draw(rows, titles, console)
        return
  for number, (part, titles) in enumerate(
      _fitting(rows, columns, console.width)):
    if number:
      print(file=console.file)
    _print(part, titles, console)


def _draw(rows, columns, console):
  """Prints a table with a frame, which takes three characters a column."""
  drawn = rich.table.Table()
  # Of plain strings rich would take [names] for markup.
  for i, heading in enumerate(map(rich.text.Text, columns)):
    drawn.add_column(heading, justify='right' if i else 'left', no_wrap=True)
  for row in rows:
    drawn.add_row(*map(rich.text.Text, row))
  console.print(drawn)


def _print(rows, columns, console):
  """Prints aligned text; the last lines of headings are on one line."""
  widths = _widths(rows, columns)
  stacks = [title.split('\n') for title in columns]
  height = max(map(len, stacks))
  headings = zip(*([''] * (height - len(stack)) + stack for stack in stacks))
  for first, *others in (*headings, *rows):
    numbers = [x.rjust(w) for x, w in zip(others, widths[1:])]
    print('  '.join((first.ljust(widths[0]), *numbers)), file=console.file)


def _fitting(rows, columns, width):
  """Yields a table as parts of its columns that fit, each with the first."""
  if _plain_width(rows, columns) > width:
    columns = _stacked(rows, columns)
  start = 1
  while start < len(columns):
    stop = len(columns)
    while True:
      titles, *part = ([cells[0], *cells[start:stop]]
                       for cells in (columns, *rows))
      if stop == start + 1 or _plain_width(part, titles) <= width:
        break
      stop -= 1
    yield part, titles
    start = stop


def _stacked(rows, columns):
  """Returns headings broken into lines no wider than they must be."""
  stacked = []
  for heading, cells in zip(columns, zip(*rows)):
    words = heading.replace('-', '- ').split()
    width = max(map(len, (*words, *cells)), default=1)
    stacked.append('\n'.join(textwrap.wrap(heading, width)))
  return stacked


def _plain_width(rows, columns):
  return sum(_widths(rows, columns)) + 2 * (len(columns) - 1)


def _widths(rows, columns):
  return [max(map(len, (*title.split('\n'), *cells)))
          for title, cells in zip(columns, zip(*rows))]


def nobody_reads(error: BaseException) -> bool:
  """Returns whether an error says that standard output is closed.

  Args:
    error: what ended the run.
  """
  if isinstance(error, SystemExit):  # rich turns the error into this.
    return isinstance(error.__context__, BrokenPipeError)
  if not isinstance(error, BrokenPipeError) or not hasattr(select, 'poll'):
    return False
  try:
    output = sys.stdout.fileno()
  except (OSError, ValueError):  # It is no file.
    return False
  poll = select.poll()
  poll.register(output, 0)  # Errors alone.
  if not poll.poll(0):
    return False
  # What is left in the buffer must not raise once more at the end.
  os.dup2(os.open(os.devnull, os.O_WRONLY), output)
  return True


class Lines:
  """Progress as one line a row, for logs."""

  def __init__(self, console: rich.console.Console, title: str,
               total_steps: int):
    self._file, self._title, self._total = console.file, title, total_steps
    self._first: Optional[tuple[int, float]] = None

  def truncate(self, step: int) -> None:
    """Prints the step that training goes on from."""
    if step:
      self.message(f'{self._title} goes on from step {step}')

  def progress(self, step: int) -> None:
    """Does nothing."""

  def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
    """Prints a row; a row of training with the time left."""
    parts = [f'{self._title} {step}/{self._total}', split, *_terms(metrics)]
    if split == 'train':
      parts += [rates.describe(metrics), self._time_left(step)]
    self.message('  '.join(filter(None, parts)))

  def message(self, text: str) -> None:
    """Prints a line."""
    print(text, file=self._file, flush=True)

  def close(self) -> None:
    """Does nothing."""

  def _time_left(self, step):
    """Returns the time left, measured since the first row (after compiling)."""
    if self._first is None:
      self._first = step, time.monotonic()
    first, start = self._first
    if step == first:
      return ''
    seconds = (time.monotonic() - start) / (step - first) * (self._total - step)
    return f'left {datetime.timedelta(seconds=round(seconds))}'


class Bar:
  """A progress bar, with evaluations and messages above it."""

  def __init__(self, console: rich.console.Console, title: str,
               total_steps: int):
    terms = rich.table.Column(no_wrap=True, overflow='ellipsis', ratio=1)
    self._is_narrow = console.width < _WIDE
    self._bar = rich.progress.Progress(
        rich.progress.TextColumn('{task.description}', markup=False),
        rich.progress.BarColumn(bar_width=8 if self._is_narrow else 20),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(compact=True),
        rich.progress.TextColumn('{task.fields[speed]}', markup=False),
        rich.progress.TextColumn(
            '{task.fields[terms]}', markup=False, table_column=terms),
        console=console,
        expand=True)
    self._task = self._bar.add_task(
        title, total=total_steps, speed='', terms='compiling')
    self._bar.start()

  def truncate(self, step: int) -> None:
    """Sets the bar to the step that training goes on from."""
    self._bar.reset(self._task, completed=step)
    if step:
      self.message(f'goes on from step {step}')

  def progress(self, step: int) -> None:
    """Moves the bar."""
    self._bar.update(self._task, completed=step)

  def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
    """Shows a row of training beside the bar, any other row above it."""
    text = '  '.join(_terms(metrics))
    if split == 'train':
      speed = rates.describe(metrics)
      if self._is_narrow and speed:  # The number alone.
        speed = f'{speed.split(" ")[0]}/s'
      self._bar.update(self._task, completed=step, speed=speed, terms=text)
    else:
      self.progress(step)
      self.message(f'step {step}  {split}  {text}')

  def message(self, text: str) -> None:
    """Prints a line above the bar."""
    self._bar.console.print(text, highlight=False, markup=False)

  def close(self) -> None:
    """Stops updating the bar and leaves it visible."""
    self._bar.stop()


def _terms(metrics):
  """Returns the losses as texts, or all metrics if there are no losses."""
  losses = [name for name in metrics if name.split('/')[0] == 'loss']
  return [f'{name.removeprefix("loss/")} {metrics[name]:.4g}'
          for name in losses or metrics]
