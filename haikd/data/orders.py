"""The order in which training reads examples.

An order is a function of the number of a batch: nothing has to be remembered,
and the processes of a run agree without a word.
"""

import bisect
from collections.abc import Callable, Mapping
import functools
import math
from typing import Any, NamedTuple, Optional, Protocol, TypeAlias, Union
import zlib

import numpy as np

from haikd.core import checks
from haikd.core import schedules

# Parts of a seed: what its random numbers are for. Others are in `batches`.
_ORDER = 0
_MIX = 4
_MOMENTS = 2**24  # In a step: when an example falls due is rounded to these.

# Of each data set, at each step.
Weights: TypeAlias = Mapping[str, Union[schedules.Schedule, schedules.Staged]]


class Picks(NamedTuple):
  """The examples of a batch.

  Attributes:
    indices: `[B]` integers.
    epochs: `[B]` integers, how often its data set was read to the end before.
  """

  indices: np.ndarray
  epochs: np.ndarray


class Order(Protocol):
  """Which examples are in a batch."""

  def batch(self, number: int) -> Picks:
    """Returns the examples of a batch of all processes."""


class Shuffled:
  """The order of one data set.

  The epochs are joined, each in a new order, and cut into batches. So every
  batch is full, and no example is dropped at the end of an epoch.

  Args:
    size: the number of examples.
    batch_size: examples in a batch.
    seed: the seed of the run.
  """

  def __init__(self, size: int, *, batch_size: int, seed: int):
    self._epochs = _Epochs(size, seed)
    self._batch_size = batch_size

  def batch(self, number: int) -> Picks:
    """Returns the examples of a batch."""
    return self._epochs.take(number * self._batch_size, self._batch_size)


class Growing:
  """The order of a data set that is read while it is still being prepared.

  In the first epoch the rows of a block come before those of the next, in
  random order; so only the blocks before a batch have to be there. All further
  epochs, and the batches, are as those of `Shuffled`. The order does not depend
  on how much is there.

  Args:
    block: returns the indices of a block; None after the last.
    batch_size: examples in a batch.
    seed: the seed of the run.
  """

  def __init__(self, block: Callable[[int], Optional[range]], *,
               batch_size: int, seed: int):
    self._block = block
    self._batch_size = batch_size
    self._seed = seed
    self._order = functools.lru_cache(maxsize=3)(self._order_of_block)
    self._later = functools.lru_cache(maxsize=1)(
        lambda size: _Epochs(size, seed))

  def batch(self, number: int) -> Picks:
    """Returns the examples of a batch."""
    start = number * self._batch_size
    end = start + self._batch_size
    parts, size, place = [], 0, 0
    while size < end and (block := self._block(place)) is not None:
      if block.stop > start:
        order = self._order(place, block.start, block.stop)
        parts.append(order[max(start - block.start, 0):end - block.start])
      size, place = block.stop, place + 1
    epochs = np.zeros(self._batch_size, np.int64)
    if size < end:  # The first epoch ends.
      first = max(start, size)
      later = self._later(size).take(first, end - first)
      parts.append(later.indices)
      epochs[first - start:] = later.epochs
    return Picks(np.concatenate(parts), epochs)

  def _order_of_block(self, place: int, start: int, stop: int) -> np.ndarray:
    rng = np.random.default_rng((self._seed, _ORDER, 0, place))
    return start + rng.permutation(stop - start)


class Mixed:
  """The order of a mixture of data sets, by weights.

  Each data set is read in its own epochs, as by `Shuffled`. Its next example
  falls due when its share of all examples so far, in real numbers, passes the
  next half. Batches take examples as they fall due. So after any number of
  batches, each data set has been read as often as its weights say, to within
  half an example and its share of half an example for every data set.

  Args:
    sizes: the number of examples of each data set. Indices count through all of
      them, in this order.
    weights: the weight of each, at each step.
    batch_size: examples in a batch.
    seed: the seed of the run.

  Raises:
    ConfigError: a weight below 0, or a step at which none is above 0.
  """

  def __init__(self, sizes: Mapping[str, int], weights: Weights, *,
               batch_size: int, seed: int):
    # A name, unlike a place among others, stays when data sets are added.
    self._epochs = [_Epochs(size, seed, zlib.crc32(name.encode()))
                    for name, size in sizes.items()]
    self._offsets = np.cumsum([0, *sizes.values()])
    self._batch_size = batch_size
    self._seed = seed
    self._totals, self._rates = _accumulate(weights, batch_size)
    self._counts = functools.lru_cache(maxsize=8)(self._count)

  def __getstate__(self) -> dict[str, Any]:
    return {key: value for key, value in self.__dict__.items()
            if key != '_counts'}  # Workers have their own.

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._counts = functools.lru_cache(maxsize=8)(self._count)

  def batch(self, number: int) -> Picks:
    """Returns the examples of a batch."""
    starts, ends = self._counts(number), self._counts(number + 1)
    picks = [epochs.take(start, end - start) for epochs, start, end
             in zip(self._epochs, starts.tolist(), ends.tolist())]
    indices = np.concatenate([
        offset + part.indices for offset, part in zip(self._offsets, picks)])
    # Each process takes a contiguous share of this.
    rng = np.random.default_rng((self._seed, _MIX, number))
    order = rng.permutation(self._batch_size)
    return Picks(indices[order],
                 np.concatenate([part.epochs for part in picks])[order])

  def _count(self, number: int) -> np.ndarray:
    """Returns how often each data set is read before a batch."""
    position = number * self._batch_size
    # At a moment t, in steps, `_due(t)` adds up to t batches, give or take half
    # an example for each data set.
    slack = (len(self._epochs) / 2 + 1) / self._batch_size
    low = max(int((number - slack) * _MOMENTS), 0)
    moments = range(low, math.ceil((number + slack) * _MOMENTS))
    moment = moments[bisect.bisect_left(
        moments, position, key=lambda moment: self._due(moment).sum())]
    before = self._due(moment - 1) if moment else 0 * self._due(0)
    # Where several fall due at one moment, the first data set goes first.
    now = self._due(moment) - before
    missing = position - before.sum()
    return before + np.diff(np.minimum(np.cumsum(now), missing), prepend=0)

  def _due(self, moment: int) -> np.ndarray:
    """Returns how many examples of each data set have fallen due."""
    step = min(moment // _MOMENTS, len(self._totals) - 1)
    passed = moment / _MOMENTS - step
    shares = self._totals[step] + passed * self._rates[step]
    return np.floor(shares + 0.5).astype(np.int64)


class _Epochs:
  """An endless stream of the indices of one data set, epoch after epoch."""

  def __init__(self, size: int, seed: int, *key: int):
    self._size = size
    self._seed, self._key = seed, key
    self._order = functools.lru_cache(maxsize=3)(self._order_of_epoch)

  def __reduce__(self) -> Any:
    return _Epochs, (self._size, self._seed, *self._key)

  def take(self, start: int, count: int) -> Picks:
    """Returns some consecutive examples of the stream."""
    epoch, first = divmod(start, self._size)
    indices = self._order(epoch)[first:first + count]
    while len(indices) < count:
      epoch += 1
      missing = count - len(indices)
      indices = np.concatenate([indices, self._order(epoch)[:missing]])
    return Picks(indices, np.arange(start, start + count) // self._size)

  def _order_of_epoch(self, epoch: int) -> np.ndarray:
    rng = np.random.default_rng((self._seed, _ORDER, epoch, *self._key))
    return rng.permutation(self._size)


def _accumulate(weights, batch_size):
  """Returns the examples of each data set before each step, and in it.

  Both are `[steps, data sets]`. The last row holds for all further steps as
  well: no weight changes any more.
  """
  last = max(schedule.settled for schedule in weights.values())
  steps = np.arange(last + 1)
  values = np.stack([np.broadcast_to(schedule(steps, np), steps.shape)
                     for schedule in weights.values()], axis=1)
  wrong = (values < 0).any(1) | (values.sum(1) <= 0)
  if wrong.any():
    step = int(wrong.argmax())
    found = dict(zip(weights, values[step].tolist()))
    raise checks.ConfigError(
        'config.data.mixture must have weights of 0 or more, at least one of '
        f'them above 0 at each step; got {found} at step {step}.')
  rates = batch_size * values / values.sum(1, keepdims=True)
  totals = np.concatenate([np.zeros((1, len(weights))), rates[:-1]]).cumsum(0)
  return totals, rates


def stratified(labels: np.ndarray) -> np.ndarray:
  """Returns an order in which every stretch has the classes in proportion.

  Within a class the order is random but never changes: NumPy has frozen the
  stream of RandomState, while that of a Generator may change.

  Args:
    labels: `[size]` integers.

  Returns:
    `[size]` integers, a permutation of the indices.
  """
  random = np.random.RandomState(0)
  place = np.empty(len(labels))
  rows = np.argsort(labels, kind='stable')
  for group in np.split(rows, np.flatnonzero(np.diff(labels[rows])) + 1):
    members = random.permutation(group)
    place[members] = (np.arange(len(members)) + 0.5) / len(members)
  return np.argsort(place, kind='stable')
