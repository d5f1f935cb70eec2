"""Objects on a pipe: a pickle, and beside it the arrays in it."""

import io
import math
import pickle
import struct
from typing import Any

import numpy as np

from haikd.config import file as config_file

_LENGTH = struct.Struct('<Q')


# Modules that only this process has, and what they are to a user.
_PRIVATE = {'__main__': 'the script that runs',
            config_file.MODULE: 'the config file'}
_SIZED = ('numpy', 'pyarrow')  # Packages whose arrays may be a table.


class TooLargeError(Exception):
  """A pickle would take more bytes than it may."""


class _Pickler(pickle.Pickler):
  """Pickles what another process can read, up to a size."""

  def __init__(self, content: '_Content'):
    super().__init__(content, pickle.HIGHEST_PROTOCOL)
    self._limit = content.limit

  def reducer_override(self, obj: Any) -> Any:
    """Refuses what only this process has, and arrays that are too large."""
    kind = type(obj)
    if isinstance(obj, type) or callable(obj) and hasattr(obj, '__qualname__'):
      if owner := _PRIVATE.get(obj.__module__):
        raise pickle.PicklingError(f'{obj.__qualname__} is of {owner}')
    elif kind.__module__.partition('.')[0] in _SIZED and (
        getattr(obj, 'nbytes', 0) > self._limit):
      raise TooLargeError  # Before its bytes are copied.
    return NotImplemented


class _Content(io.BytesIO):
  """Bytes up to a limit."""

  def __init__(self, limit: float):
    super().__init__()
    self.limit = limit

  def write(self, content: Any) -> int:
    """Adds bytes; raises TooLargeError beyond the limit."""
    if self.tell() + memoryview(content).nbytes > self.limit:
      raise TooLargeError
    return super().write(content)


def importable(value: Any, limit: float = math.inf) -> bytes:
  """Returns a pickle for another process.

  Args:
    value: any object.
    limit: bytes that the pickle may take.

  Raises:
    TooLargeError: it would take more.
    Exception: there can be none.
  """
  content = _Content(limit)
  _Pickler(content).dump(value)
  return content.getvalue()


def send(pipe: Any, value: Any) -> None:
  """Writes an object.

  Args:
    pipe: a raw file.
    value: its contiguous arrays are not copied.
  """
  buffers: list[pickle.PickleBuffer] = []
  main = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
  parts: list[Any] = [memoryview(main), *(x.raw() for x in buffers)]
  lengths = [len(parts), *(part.nbytes for part in parts)]
  for part in (b''.join(map(_LENGTH.pack, lengths)), *parts):
    view = memoryview(part)
    while view:
      view = view[pipe.write(view):]


def receive(pipe: Any) -> Any:
  """Reads an object.

  Args:
    pipe: a raw file.

  Raises:
    EOFError: the other side has ended.
  """
  count, = _LENGTH.unpack(_read(pipe, _LENGTH.size))
  lengths = _LENGTH.iter_unpack(_read(pipe, count * _LENGTH.size))
  main, *buffers = [_read(pipe, length) for length, in lengths]
  return pickle.loads(main, buffers=buffers)


def _read(pipe: Any, size: int) -> memoryview:
  content = np.empty(size, np.uint8).data
  rest = content
  while rest:
    if not (got := pipe.readinto(rest)):
      raise EOFError
    rest = rest[got:]
  return content
