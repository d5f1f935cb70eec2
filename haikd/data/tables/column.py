"""One column of a table, whatever the format of its file."""

from collections.abc import Sequence
import os
import reprlib
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
      missing or something else.
    names: the names of the classes that its numbers stand for, or None.
  """

  kind: str
  values: Any
  fault: Optional['Fault'] = None
  names: Optional[tuple[str, ...]] = None

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
      f'{where} must have the column {name!r}; got none of that name. '
      f'{checks.suggest(name, known)} config.data.options.inputs and label '
      'name the columns.')


def no_rows(path: os.PathLike) -> checks.DataError:
  """Returns the error of a file without a row."""
  return checks.DataError(
      f'{str(path)!r} must have rows; got none. Write it again.')


def unusable(name: str, fault: Fault) -> checks.DataError:
  """Returns the error of a column with a cell that is missing or no number."""
  if fault.value is None:
    return checks.DataError(
        f'column {name!r} must have a value in every row; got none in '
        f'{fault.place}. Fill it in, remove the row, or leave the column out '
        'by naming the others in config.data.options.inputs.')
  return checks.DataError(
      f'column {name!r} must hold numbers, in every row as many; got '
      f'{reprlib.repr(fault.value)} in {fault.place}. Write it as numbers, or '
      'leave the column out by naming the others in '
      'config.data.options.inputs.')
