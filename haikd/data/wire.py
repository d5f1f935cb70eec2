"""Objects on a pipe: a pickle, and beside it the arrays in it."""

import io
import pickle
import struct
from typing import Any

import numpy as np

_LENGTH = struct.Struct('<Q')


class PicklerOfImportable(pickle.Pickler):
  """Pickles what another process can read: nothing of the user's script."""

  def reducer_override(self, obj: Any) -> Any:
    """Refuses functions and classes that only this process has."""
    if isinstance(obj, type) or callable(obj) and hasattr(obj, '__qualname__'):
      if obj.__module__ == '__main__':
        raise pickle.PicklingError(
            f'{obj.__qualname__} is of the script that runs')
    return NotImplemented


def importable(value: Any) -> bytes:
  """Returns a pickle for another process.

  Raises:
    PicklingError, TypeError, AttributeError: there can be none.
  """
  content = io.BytesIO()
  PicklerOfImportable(content, pickle.HIGHEST_PROTOCOL).dump(value)
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
