"""Rows of texts that are read while the rest is still being prepared."""

import bisect
import collections
from collections.abc import Callable, Mapping
import pathlib
import threading
import time
from typing import Any, NamedTuple, Optional

import numpy as np

from haikd.data import source
from haikd.data.text import shards

_INTERVAL = 0.05  # Seconds between two looks for a shard.


class _Shard(NamedTuple):
  """The indices of the rows in a shard, and what reads them."""

  indices: range
  rows: Any


class GrowingRows:
  """A Source of prepared rows whose shards appear one after another.

  What needs a shard that is not written yet waits for it. What needs the number
  of rows waits for all of them.

  Attributes:
    num_classes: V, or None.
    text: the tokenizer.

  Args:
    folder: the folder of the shards.
    dtype: of a row.
    expand: returns the columns of examples, from `[B]` rows.
    num_classes: V, or None.
    text: the tokenizer.
    prepare: writes the shards; it is started in a thread unless all are there.
  """

  def __init__(self, folder: pathlib.Path, dtype: np.dtype,
               expand: Callable[[np.ndarray], Mapping[str, np.ndarray]],
               num_classes: Optional[int], text: source.TextInfo,
               prepare: Callable[[], object]):
    self.num_classes = num_classes
    self.text = text
    self._folder = folder
    self._dtype = dtype
    self._expand = expand
    self._shards: list[_Shard] = []
    self._lock = threading.Lock()
    self._error: Optional[BaseException] = None
    if self.is_complete:
      prepare()  # Refuses a split without rows.
    else:
      # Shards appear atomically: the thread may be killed with the process.
      threading.Thread(target=self._run, args=(prepare,), daemon=True).start()

  def __len__(self) -> int:
    while self.block(len(self._shards)) is not None:
      pass
    return self._shards[-1].indices.stop

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return self.__getitems__([index])[0]

  def __getitems__(self, indices: list[int]) -> list[dict[str, np.ndarray]]:
    """Returns several examples, which is faster than one by one."""
    last = max(indices)
    while not self._shards or self._shards[-1].indices.stop <= last:
      if self.block(len(self._shards)) is None:
        raise IndexError(f'row {last} of {len(self)}')
    columns = self._expand(
        np.frombuffer(b''.join(self._read(indices)), self._dtype))
    return [{key: value[i] for key, value in columns.items()}
            for i in range(len(indices))]

  @property
  def is_complete(self) -> bool:
    """Whether all rows are there."""
    return shards.is_complete(self._folder)

  def block(self, number: int) -> Optional[range]:
    """Returns the indices of the rows in a shard; waits until it is written.

    Args:
      number: the number of the shard, at most one more than those known.

    Returns:
      A range; None after the last shard.

    Raises:
      Exception: whatever has ended the preparation.
    """
    while number >= len(self._shards):
      with self._lock:
        complete = self.is_complete  # Before looking for the shard.
        # Another thread may have opened it meanwhile.
        if number < len(self._shards) or self._open_next():
          continue
      if complete and self._shards and self._shards[-1].indices.stop:
        return None
      if self._error is not None:
        raise self._error
      time.sleep(_INTERVAL)
    return self._shards[number].indices

  def _open_next(self) -> bool:
    """Adds the next shard; returns whether it is there."""
    number = len(self._shards)
    rows = shards.rows_of(self._folder, number)
    if rows is None:
      return False
    start = self._shards[-1].indices.stop if number else 0
    self._shards.append(_Shard(
        range(start, start + rows),
        shards.open_shard(self._folder, number) if rows else ()))
    return True

  def _read(self, indices: list[int]) -> list[bytes]:
    """Returns rows; those of one shard are read at once."""
    of_shards = collections.defaultdict(list)
    for index in indices:
      number = bisect.bisect_right(
          self._shards, index, key=lambda shard: shard.indices.stop)
      of_shards[number].append(index)
    read: dict[int, bytes] = {}
    for number, wanted in of_shards.items():
      shard = self._shards[number]
      read.update(zip(wanted, shard.rows.__getitems__(
          [int(index) - shard.indices.start for index in wanted])))
    return [read[index] for index in indices]

  def _run(self, prepare):
    try:
      prepare()
    except BaseException as err:  # Raised again where rows are awaited.
      self._error = err
