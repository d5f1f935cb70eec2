"""Work in threads whose results come in the order of the texts."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import queue
import threading
from typing import TypeVar

_WAITING = 4  # What a reader may be ahead of its consumer, in items.
_INTERVAL = 0.1  # Seconds between two looks whether a reader is still needed.
_Item = TypeVar('_Item')
_Result = TypeVar('_Result')


def one_ahead(function: Callable[[_Item], _Result],
              items: Iterable[_Item]) -> Iterator[_Result]:
  """Yields what a function makes of each item, in order.

  The function runs in a thread, one item ahead. The package `tokenizers` lets
  other threads run meanwhile, so that all cores have work.

  Args:
    function: what takes long.
    items: its arguments; they are drawn in the thread of the caller.
  """
  with futures.ThreadPoolExecutor(1) as pool:
    waiting = None
    for item in items:
      started = pool.submit(function, item)
      if waiting is not None:
        yield waiting.result()
      waiting = started
    if waiting is not None:
      yield waiting.result()


def in_order(readers: Iterable[Iterator[_Item]],
             number: int) -> Iterator[_Item]:
  """Yields what each reader yields, one reader after another.

  Readers run in threads, so that they may wait for a network at once.

  Args:
    readers: the readers, such as one for each file.
    number: the number of readers that run at a time.
  """
  stopped = threading.Event()
  running: collections.deque[queue.Queue] = collections.deque()
  with futures.ThreadPoolExecutor(number) as pool:
    try:
      for reader in readers:
        running.append(queue.Queue(_WAITING))
        pool.submit(_fill, reader, running[-1], stopped)
        if len(running) == number:
          yield from _drain(running.popleft())
      while running:
        yield from _drain(running.popleft())
    finally:
      stopped.set()


def _fill(reader, waiting, stopped):
  """Puts what a reader yields into a queue: tuples, the last one empty."""
  end = ()
  try:
    for item in reader:
      if not _put((item, None), waiting, stopped):
        return
  except BaseException as err:  # Raised again where the item is awaited.
    end = (None, err)
  _put(end, waiting, stopped)


def _put(entry, waiting, stopped):
  """Puts an entry into a queue; returns whether anybody needs it."""
  while not stopped.is_set():
    try:
      waiting.put(entry, timeout=_INTERVAL)
      return True
    except queue.Full:
      pass
  return False


def _drain(waiting):
  """Yields what `_fill` puts into a queue."""
  while entry := waiting.get():
    item, err = entry
    if err is not None:
      raise err
    yield item
