"""Records that cannot be used: they stop the run, or are skipped and counted.

A record is all that is looked at. What the config causes, such as the name of a
field that no record has, therefore ends as a split with too many broken
records, or with none that can be used.
"""

import threading
from typing import Optional

from haikd.core import checks
from haikd.core import notes
from haikd.data import reading as reading_lib


class NotOfRecordError(checks.DataError):
  """What is wrong is not the content of one record: it is never skipped."""


class Broken:
  """What is done about the broken records of a split, one after the other.

  Attributes:
    first: what is wrong with the first one; None without one.

  Args:
    split: what they are of, for messages.
    reading: whether they are skipped, and how many.
  """

  def __init__(self, split: str,
               reading: reading_lib.Reading = reading_lib.Reading()):
    self.first: Optional[checks.DataError] = None
    self._split = split
    self._reading = reading
    self._count = 0
    self._lock = threading.Lock()  # Files of a bucket are read at once.

  @property
  def count(self) -> int:
    """How many were skipped."""
    return self._count

  def skip(self, error: checks.DataError) -> None:
    """Goes on after a broken record, and says so now and then.

    Args:
      error: what is wrong with it, and where it is.

    Raises:
      DataError: the error, if it must stop the run, or one too many.
    """
    if self._reading.on_error == reading_lib.STOP or isinstance(
        error, NotOfRecordError):
      raise error
    with self._lock:
      self.first = self.first or error
      self._count += 1
      count = self._count
    self._check(error)
    if not count & count - 1:  # A power of two.
      notes.say(f'{self._split}: {count} skipped so far of the records '
                f'(config.data.on_error). The last one: {error}')

  def add(self, number: int) -> None:
    """Counts records that an earlier process has skipped."""
    with self._lock:
      self._count += number
    self._check(None)

  def refuse_rest(self) -> None:
    """Raises DataError if there were any; call it where none are left."""
    if self.first:
      raise checks.DataError(
          f'{self._split} must have a record that can be used; got '
          f'{self._count} that cannot. The first one: {self.first}')

  def _check(self, error):
    if self._count > self._reading.max_skipped:
      first = f' The first one: {self.first}' if self.first else ''
      raise checks.DataError(
          f'{self._split} must have at most {self._reading.max_skipped} broken '
          f'records, config.data.max_skipped; got {self._count}.{first}'
      ) from error
