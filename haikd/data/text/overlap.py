"""Work on the next batch of texts while rows are made of the last one."""

from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

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
