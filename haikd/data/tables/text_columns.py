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
      name: (_Labels(name, reading.tolerated) if name in labels else
             _Numbers(reading.tolerated)) for name in requested}
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
  """A column of numbers, or of lists of numbers, converted block by block.

  Args:
    tolerated: how many cells may be something else, if others are numbers.
  """

  def __init__(self, tolerated: int):
    self.size = 0  # In bytes.
    self._tolerated = tolerated
    self._parts: list[np.ndarray] = []
    self._rows = 0
    self._faults: dict[int, column_lib.Fault] = {}
    self._fault: Optional[column_lib.Fault] = None

  def add(self, values: Sequence[Any], places: Sequence[str]) -> None:
    """Adds the cells of some rows; after a fault nothing is kept."""
    if self._fault is not None:
      return
    part = _as_numbers(values)
    shape = self._parts[0].shape[1:] if self._parts else None
    if part is None or (shape is not None and part.shape[1:] != shape):
      part = self._add_faults(values, places, shape)
      if part is None:
        return
    self._parts.append(part)
    self._rows += len(part)
    self.size += part.nbytes

  def _add_faults(self, values, places, shape) -> Optional[np.ndarray]:
    """Returns cells with others in place of faults; None if none is kept."""
    if shape is None and not self._tolerated:
      shape = _shape(values[0])
    faults = _find_faults(values, places, shape)
    is_good = [row not in faults for row in range(len(values))]
    good = [value for value, right in zip(values, is_good) if right]
    numbers = _as_numbers(good) if good else None
    known = {**self._faults, **{
        self._rows + row: fault for row, fault in faults.items()}}
    if len(known) > self._tolerated or not faults or (
        numbers is None and (good or not self._parts)):
      self._fault = next(iter(known.values()), column_lib.Fault(
          values[0], places[0]))
      return None
    self._faults = known
    if numbers is None:
      return np.repeat(self._parts[0][:1], len(values), axis=0)
    return column_lib.filled(numbers, is_good)

  def finish(self) -> column_lib.Column:
    """Returns the column."""
    if self._fault is not None:
      return column_lib.Column(column_lib.TEXT, (), self._fault)
    values = np.concatenate(self._parts)  # Integers if all parts are.
    kind = column_lib.NUMBER if values.ndim == 1 else column_lib.ARRAY
    return column_lib.Column(kind, values, faults=self._faults)


class _Labels:
  """A column of numbers or of names of classes.

  Args:
    name: of the column.
    tolerated: how many cells may be something else.
  """

  def __init__(self, name: str, tolerated: int):
    self.size = 0  # In bytes.
    self._name = name
    self._tolerated = tolerated
    self._values: list[Any] = []
    self._numbers = _Numbers(tolerated)
    self._texts = 0
    self._faults: dict[int, column_lib.Fault] = {}  # Neither number nor name.
    self._first: dict[bool, column_lib.Fault] = {}  # By whether it is a number.

  def add(self, values: Sequence[Any], places: Sequence[str]) -> None:
    """Adds the cells of some rows.

    Raises:
      DataError: numbers and names are mixed, or a cell is neither.
    """
    for row, (value, place) in enumerate(zip(values, places),
                                         len(self._values)):
      fault = column_lib.Fault(value, place)
      if column_lib.is_missing(value):
        self._faults[row] = fault._replace(value=None)
        continue
      is_number = _as_numbers([value]) is not None
      if not is_number and not isinstance(value, str):
        if len(self._faults) >= self._tolerated:
          raise column_lib.no_label(self._name, fault)
        self._faults[row] = fault
        continue
      self._texts += not is_number
      self._first.setdefault(is_number, fault)
    if len(self._first) == 2 and self._texts > self._tolerated:
      raise self._mixed()
    self._values += values
    self.size += streams.count_characters(values) + _NAME_BYTES * len(values)
    self._numbers.add(values, places)

  def finish(self) -> column_lib.Column:
    """Returns the column.

    Raises:
      DataError: as `add`.
    """
    if True in self._first:
      # Texts among numbers are faults; a number among names may be a name.
      if 2 * self._texts > len(self._values):
        raise self._mixed()
      return self._numbers.finish()
    first = self._first.get(False)
    values = np.array(self._values, object)
    if first is None or len(self._faults) > self._tolerated:
      return column_lib.Column(
          column_lib.TEXT, values, next(iter(self._faults.values())))
    values[list(self._faults)] = first.value
    return column_lib.Column(
        column_lib.TEXT, values, first, faults=self._faults)

  def _mixed(self) -> checks.DataError:
    number, text = self._first[True], self._first[False]
    return checks.DataError(
        f'column {checks.show(self._name)} must hold only names of classes, '
        f'or only numbers; got {text.value!r} in {text.place} and '
        f'{number.value!r} in {number.place}. Fix the data.')


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


def _find_faults(values, places, shape) -> dict[int, column_lib.Fault]:
  """Returns the cells that are no numbers, or of another shape, by their rows.

  Args:
    values: the cells.
    places: where they are.
    shape: of a number; None for that of the first one.
  """
  faults = {}
  for row, (value, place) in enumerate(zip(values, places)):
    array = None if column_lib.is_missing(value) else _as_numbers([value])
    if array is not None and shape is None:
      shape = array.shape[1:]
    if array is None or array.shape[1:] != shape:
      faults[row] = column_lib.Fault(
          None if column_lib.is_missing(value) else value, place)
  return faults
