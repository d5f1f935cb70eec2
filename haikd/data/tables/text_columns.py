"""Columns of CSV, TSV and JSON files, whose cells are texts or of any type."""

from collections.abc import Iterator, Sequence
import itertools
from typing import Any, Optional, Union

import numpy as np

from haikd.core import checks
from haikd.data import reading as reading_lib
from haikd.data.records import broken as broken_lib
from haikd.data.records import file_names
from haikd.data.records import rows
from haikd.data.records import streams
from haikd.data.tables import column as column_lib

_ROWS = 4096  # Rows that are converted at a time, at most.
_CHARACTERS = 2**22  # In them, unless one row has more.
_NAME_BYTES = 64  # Of the name of a class, beside its characters.
_EXACT = 2**53  # Below it, floating-point numbers are exact integers.


def names(files: file_names.Files) -> tuple[str, ...]:
  """Returns the names of the columns, in the order of the first row."""
  path, name = files[0]
  for values, _, _ in rows.read(path, name):
    return tuple(values)
  raise column_lib.no_rows(path)


def read(files: file_names.Files, requested: Sequence[str],
         labels: Sequence[str], reading: reading_lib.Reading
         ) -> dict[str, column_lib.Column]:
  """Reads some columns.

  Args:
    files: the files of a split.
    requested: the names of the columns; each file has them.
    labels: those of them that may hold names of classes.
    reading: its limits.

  Raises:
    DataError: a file that cannot be read, a row without one of the columns, a
      label with numbers and names, or columns that take too much memory.
  """
  cells: dict[str, Union[_Numbers, _Labels]] = {
      name: _Labels(name) if name in labels else _Numbers()
      for name in requested}
  block: Sequence[Any] = ()
  for block in _blocks(files, reading):
    places = [place for _, place, _ in block]
    for name, column in cells.items():
      column.add(_cells(block, name), places)
    reading.check_memory(sum(column.size for column in cells.values()),
                         f'the columns of {str(files[0][0])!r}')
  if not block:
    raise column_lib.no_rows(files[0][0])
  return {name: column.finish() for name, column in cells.items()}


def _blocks(files, reading) -> Iterator[Sequence[Any]]:
  broken = broken_lib.Broken(f'the table of {str(files[0][0])!r}', reading)
  records = itertools.chain.from_iterable(
      rows.read(path, name, broken=broken) for path, name in files)
  return iter(lambda: _block(records), [])


def _block(records) -> list[Any]:
  """Returns the next rows, so many that memory has room for them."""
  block, size = [], 0
  for record in itertools.islice(records, _ROWS):
    block.append(record)
    size += streams.count_characters(record[0])
    if size > _CHARACTERS:
      break
  return block


def _cells(block, name) -> Sequence[Any]:
  try:
    return [values[name] for values, _, _ in block]
  except KeyError as err:
    values, place, _ = next(row for row in block if name not in row[0])
    raise column_lib.absent(place, name, values) from err


class _Numbers:
  """A column of numbers, or of lists of numbers, converted block by block."""

  def __init__(self):
    self.size = 0  # In bytes.
    self._parts: list[np.ndarray] = []
    self._fault: Optional[column_lib.Fault] = None

  def add(self, values: Sequence[Any], places: Sequence[str]) -> None:
    """Adds the cells of some rows; after a fault nothing is kept."""
    if self._fault is not None:
      return
    part = _as_numbers(values)
    shape = self._parts[0].shape[1:] if self._parts else None
    if part is None or (shape is not None and part.shape[1:] != shape):
      if shape is None:
        shape = _shape(values[0])
      self._fault = _find_fault(values, places, shape)
      return
    self._parts.append(part)
    self.size += part.nbytes

  def finish(self) -> column_lib.Column:
    """Returns the column."""
    if self._fault is not None:
      return column_lib.Column(column_lib.TEXT, (), self._fault)
    values = np.concatenate(self._parts)  # Integers if all parts are.
    kind = column_lib.NUMBER if values.ndim == 1 else column_lib.ARRAY
    return column_lib.Column(kind, values)


class _Labels:
  """A column of numbers or of names of classes."""

  def __init__(self, name: str):
    self.size = 0  # In bytes.
    self._name = name
    self._values: list[Any] = []
    self._numbers = _Numbers()
    self._missing: Optional[column_lib.Fault] = None
    self._first: dict[bool, column_lib.Fault] = {}  # By whether it is a number.

  def add(self, values: Sequence[Any], places: Sequence[str]) -> None:
    """Adds the cells of some rows.

    Raises:
      DataError: numbers and names are mixed, or a cell is neither.
    """
    for value, place in zip(values, places):
      fault = column_lib.Fault(value, place)
      if column_lib.is_missing(value):
        self._missing = self._missing or fault._replace(value=None)
        continue
      is_number = _as_numbers([value]) is not None
      if not is_number and not isinstance(value, str):
        raise column_lib.no_label(self._name, fault)
      self._first.setdefault(is_number, fault)
    if len(self._first) == 2:
      number, text = self._first[True], self._first[False]
      raise checks.DataError(
          f'column {checks.show(self._name)} must hold only names of classes, '
          f'or only numbers; got {text.value!r} in {text.place} and '
          f'{number.value!r} in {number.place}. Fix the data.')
    self._values += values
    self.size += streams.count_characters(values) + _NAME_BYTES * len(values)
    self._numbers.add(values, places)

  def finish(self) -> column_lib.Column:
    """Returns the column."""
    if self._missing or True not in self._first:
      return column_lib.Column(
          column_lib.TEXT, np.array(self._values, object),
          self._missing or self._first[False])
    return self._numbers.finish()


def _as_numbers(values: Sequence[Any]) -> Optional[np.ndarray]:
  """Returns cells as finite numbers, integers if all are written as such.

  It is None if one of them is something else.
  """
  try:
    cells = np.asarray(values)
    numbers = cells.astype(np.float64)
  except (TypeError, ValueError):  # A text, or lists of different lengths.
    return None
  are_whole = cells.dtype.kind in 'biu'
  if cells.dtype.kind == 'U':
    written = ''.join(cells.ravel().tolist())
    if '_' in written:  # Python, but nobody's table, has 1_000 for 1000.
      return None
    are_whole = not any(x in written for x in '.eE')
  if not np.isfinite(numbers).all():
    return None
  if are_whole and (np.abs(numbers) < _EXACT).all():
    return numbers.astype(np.int64)
  return numbers


def _shape(value: Any) -> tuple[int, ...]:
  """Returns the shape of a cell; () of lists of different lengths."""
  try:
    return np.shape(value)
  except ValueError:
    return ()


def _find_fault(values, places, shape) -> column_lib.Fault:
  """Returns the first cell that is no number, or of another shape."""
  for value, place in zip(values, places):
    if column_lib.is_missing(value):
      return column_lib.Fault(None, place)
    array = _as_numbers([value])
    if array is None or array.shape[1:] != shape:
      return column_lib.Fault(value, place)
  raise AssertionError('no fault')
