"""Examples that cannot be used, left out of their batches.

One that is left out stays in its batch with weight 0, as padding does: so the
order of examples and the position of a run do not change, and processes agree
without a word. What stands in its row is another example, since a network may
compute statistics over the batch.
"""

from collections.abc import Callable, Sequence
import pickle
import threading
from typing import Any

import numpy as np

from haikd.core import checks
from haikd.core import notes
from haikd.data import columns as columns_lib

Columns = columns_lib.Columns
Read = Callable[[list[int]], Columns]  # Raises DataError.


class Skips:
  """The examples of a split that are left out.

  Args:
    split: its name, for messages.
    most: how many may be left out.
  """

  def __init__(self, split: str, most: int):
    self._split = split
    self._most = most
    self._errors: dict[int, checks.DataError] = {}
    self._lock = threading.Lock()  # Several threads read ahead.

  def __reduce__(self) -> Any:
    raise pickle.PicklingError(
        'config.data.on_error=skip counts in one process')

  def first(self, size: int, read: Read) -> Columns:
    """Returns the first example that can be read.

    Args:
      size: the number of examples.
      read: reads some.

    Raises:
      DataError: none can be read, or too many cannot.
    """
    for index in range(size):
      columns = self._try(index, read)
      if columns is not None:
        return columns
    raise self._refusal(f'none of {size} that can be used')

  def gather(self, indices: Sequence[int], size: int, read: Read) -> Columns:
    """Returns examples, and as their weight 0 where one is left out.

    Args:
      indices: of the examples.
      size: the number of examples of the split.
      read: reads some.

    Returns:
      `{key: [len(indices), ...]}`, always with a weight.

    Raises:
      DataError: too many cannot be used.
    """
    if not self._errors.keys() & set(indices):
      try:
        return _weighted(read(list(indices)), np.ones(len(indices), bool))
      except checks.DataError:
        pass  # Find out which it is.
    parts = [self._try(index, read) for index in indices]
    sample = next((part for part in parts if part is not None), None)
    if sample is None:
      sample = self.first(size, read)
    expected = _signature(sample)
    for place, part in enumerate(parts):
      if part is not None and (
          fault := columns_lib.unlike(_signature(part), expected)):
        self._add(indices[place], checks.DataError(
            f'example {indices[place]} of split {self._split!r} must '
            f'{fault.rule}; got {fault.value}. {fault.remedy}'))
        parts[place] = None
    columns = {
        key: np.concatenate([(sample if part is None else part)[key]
                             for part in parts]) for key in sample}
    return _weighted(columns, np.array([part is not None for part in parts]))

  def _try(self, index, read):
    """Returns an example, None for one that is left out."""
    if index in self._errors:
      return None
    try:
      return read([index])
    except checks.DataError as err:
      self._add(index, err)
      return None

  def _add(self, index, error):
    """Leaves an example out from now on, and says so now and then."""
    with self._lock:
      self._errors[index] = error
      count = len(self._errors)
    if count > self._most:
      raise self._refusal(f'more than {self._most}') from error
    if not count & count - 1:  # A power of two.
      notes.say(
          f'split {self._split!r}: {count} skipped so far of the examples that '
          f'were read (config.data.on_error). The last one: {error}')

  def _refusal(self, got):
    first = self._errors[min(self._errors)]
    return checks.DataError(
        f'split {self._split!r} must have at most {self._most} examples that '
        f'cannot be used, config.data.max_skipped; got {got}. The first one: '
        f'{first}')


def _signature(columns):
  return {key: (value.shape[1:], value.dtype) for key, value in columns.items()}


def _weighted(columns, is_used):
  """Returns columns with a weight, 0 for what is not used."""
  weight = columns.get(columns_lib.WEIGHT, np.ones(len(is_used), np.float32))
  return {**columns, columns_lib.WEIGHT: np.where(
      is_used, weight, 0).astype(np.float32)}
