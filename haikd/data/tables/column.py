"""One column of a table, whatever the format of its file."""

from collections.abc import Mapping, Sequence
import math
import os
import reprlib
import types
from typing import Any, NamedTuple, Optional

import numpy as np

from haikd.core import checks

NUMBER, ARRAY, IMAGE, TEXT = 'number', 'array', 'image', 'text'


class Column(NamedTuple):
  """The cells of a column.

  Attributes:
    kind: NUMBER, one a row; ARRAY, of one shape; IMAGE, a file's bytes, which
      are decoded when they are read; TEXT.
    values: `[size]` or `[size, ...]`: an array, or a sequence of arrays.
    fault: why it cannot be used as numbers, if so: the first cell that is
      missing, otherwise the first that is something else.
    names: the names of the classes that its numbers stand for, or None.
    faults: cells that cannot be used where others can, by their rows; other
      cells stand in their places. There are none unless they are skipped.
  """

  kind: str
  values: Any
  fault: Optional['Fault'] = None
  names: Optional[tuple[str, ...]] = None
  faults: Mapping[int, 'Fault'] = types.MappingProxyType({})

  @property
  def is_complete(self) -> bool:
    """Whether no cell is missing."""
    return self.fault is None or self.fault.value is not None


class Fault(NamedTuple):
  """A cell that is no number.

  Attributes:
    value: what is in it; None if nothing is.
    place: the file and row, for messages.
  """

  value: Any
  place: str


class Chunks:
  """Arrays that follow one another, as one sequence; none is copied."""

  def __init__(self, arrays: Sequence[Any]):
    self._arrays = arrays
    self._ends = np.cumsum([len(array) for array in arrays])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> Any:
    number = int(np.searchsorted(self._ends, index, side='right'))
    array = self._arrays[number]
    return array[index - self._ends[number] + len(array)]


def filled(good: np.ndarray, is_good: Sequence[bool]) -> np.ndarray:
  """Returns cells where others stand in the places of those that are not good.

  Args:
    good: `[number of good cells, ...]`, one at least.
    is_good: whether each cell is.
  """
  return good[np.maximum(np.cumsum(is_good) - 1, 0)]


def as_array(column: Column) -> np.ndarray:
  """Returns a column's values in one array."""
  values = column.values
  if isinstance(values, np.ndarray):
    return values
  return np.stack([values[i] for i in range(len(values))])


def absent(where: str, name: str, known: Sequence[str]) -> checks.DataError:
  """Returns the error of a column that a file does not have.

  Args:
    where: the file or row, for messages.
    name: of the column.
    known: the columns that are there.
  """
  return checks.DataError(
      f'{where} must have the column {checks.show(name)}; got none of that '
      f'name. {checks.suggest(name, known)} config.data.options.inputs and '
      'label name the columns.')


def no_rows(path: os.PathLike) -> checks.DataError:
  """Returns the error of a file without a row."""
  return checks.DataError(
      f'{str(path)!r} must have rows; got none. Write it again.')


def is_missing(value: Any) -> bool:
  """Returns whether a cell has no value."""
  if isinstance(value, str):
    return not value.strip() or value.strip().lower() == 'nan'
  return value is None or isinstance(value, float) and math.isnan(value)


def no_input(name: str, fault: Fault) -> checks.DataError:
  """Returns the error of an input that is missing in a row or no number."""
  return _unusable(name, fault, 'numbers', 'leave the column out by naming the '
                   'others in config.data.options.inputs')


def no_label(name: str, fault: Fault,
             are_several: bool = False) -> checks.DataError:
  """Returns the error of a label that is missing or cannot be one.

  Args:
    name: of the column.
    fault: the cell.
    are_several: whether other columns are labels too.
  """
  return _unusable(
      name, fault, 'numbers' if are_several else 'names of classes or numbers',
      'name another in config.data.options.label')


def _unusable(name, fault, rule, otherwise):
  if fault.value is None:
    return checks.DataError(
        f'column {checks.show(name)} must have a value in every row; got none '
        f'in {fault.place}. Fill it in, remove the row, or {otherwise}.')
  return checks.DataError(
      f'column {checks.show(name)} must hold {rule}, in every row as many; got '
      f'{reprlib.repr(fault.value)} in {fault.place}. Write it as '
      f'{rule}, or {otherwise}.')
