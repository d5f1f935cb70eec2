"""The header of a GGUF file, which its size bounds.

Every length and count in a header is compared with the bytes that are left
before anything is made of it. The format is that of ggml's docs/gguf.md, in
versions 2 and 3.
"""

import math
import mmap
import os
import reprlib
import struct
from typing import Any, NamedTuple, Union

import numpy as np

from haikd.storage import regular

_MAGIC = b'GGUF'
_VERSIONS = (2, 3)
_ALIGNMENT = 'general.alignment'  # Of the data; that of a file without it:
_DEFAULT_ALIGNMENT = 32

_STRING, _ARRAY = 8, 9
# The dtypes of the other types of values, by their numbers.
_DTYPES = {0: '<u1', 1: '<i1', 2: '<u2', 3: '<i2', 4: '<u4', 5: '<i4',
           6: '<f4', 7: '?', 10: '<u8', 11: '<i8', 12: '<f8'}
_BYTES = {_STRING: 8, _ARRAY: 12}  # Of a value without its content.

_MOST_AXES = 4  # GGML_MAX_DIMS.
_MOST_CHARACTERS = 256  # Of a name; those of tensors have 64.
_MOST_NESTED = 4  # Arrays in one another.
# Entries of all arrays together, each of which takes up to 32 bytes. The
# largest vocabularies have a million tokens and merges.
_MOST_ENTRIES = 2**22


class TensorInfo(NamedTuple):
  """Where a tensor is.

  Attributes:
    shape: slowest axis first, where the file has the fastest one first.
    kind: the number of a `gguf.GGMLQuantizationType`.
    offset: of its first byte in the file.
  """

  shape: tuple[int, ...]
  kind: int
  offset: int


class Header(NamedTuple):
  """What precedes the data.

  Attributes:
    metadata: `{key: value}`; arrays are lists.
    tensors: `{name: TensorInfo}`.
  """

  metadata: dict[str, Any]
  tensors: dict[str, TensorInfo]


def read(path: Union[str, os.PathLike]) -> Header:
  """Reads the header of a GGUF file.

  Args:
    path: the file.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is no such file, or is damaged; the message says how.
    DataError: it is no regular file.
  """
  regular.check(path)
  with open(path, 'rb') as file:
    if not os.fstat(file.fileno()).st_size:
      raise ValueError('it is empty')
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
      return _Cursor(content).header()


class _Cursor:
  """A position in a file, which moves on as values are read."""

  def __init__(self, content: mmap.mmap):
    self._content = content
    self._position = 0
    self._entries = 0

  def header(self) -> Header:
    """Returns the header, from the beginning of the file."""
    if self._take(4, 'its magic number') != _MAGIC:
      raise ValueError('it does not begin with GGUF')
    version, = self._unpack('<I', 'its version')
    if not version & 0xFFFF:
      raise ValueError('its byte order is not that of this machine')
    if version not in _VERSIONS:
      raise ValueError(f'its version is {version}, not 2 or 3')
    tensors, keys = self._unpack('<QQ', 'its counts')
    self._check_count(keys, 13, 'keys')
    metadata: dict[str, Any] = {}
    for _ in range(keys):
      name = self._name('a key')
      if name in metadata:
        raise ValueError(f'it has the key {name} twice')
      kind, = self._unpack('<I', name)
      metadata[name] = self._value(kind, name)
    self._check_count(tensors, 24, 'tensors')
    found: dict[str, TensorInfo] = {}
    for _ in range(tensors):
      name = self._name('the name of a tensor')
      if name in found:
        raise ValueError(f'it has the tensor {name} twice')
      found[name] = self._tensor(name)
    start = self._data_start(metadata)
    return Header(metadata, {
        name: info._replace(offset=start + info.offset)
        for name, info in found.items()})

  def _data_start(self, metadata):
    """Returns the offset of the data in the file."""
    alignment = metadata.get(_ALIGNMENT, _DEFAULT_ALIGNMENT)
    if (not isinstance(alignment, int) or alignment < 1 or
        alignment & alignment - 1):
      raise ValueError(f'{_ALIGNMENT} is {alignment!r}, no power of 2')
    return -(-self._position // alignment) * alignment

  def _tensor(self, name):
    axes, = self._unpack('<I', name)
    if not 1 <= axes <= _MOST_AXES:
      raise ValueError(f'the tensor {name} has {axes} axes, not 1 to '
                       f'{_MOST_AXES}')
    shape = self._unpack(f'<{axes}Q', name)
    kind, offset = self._unpack('<IQ', name)
    # With an axis of 0 the others could be anything.
    if math.prod(max(size, 1) for size in shape) > 2**62:
      raise ValueError(f'the tensor {name} has the shape {list(shape)}')
    return TensorInfo(tuple(reversed(shape)), kind, offset)

  def _value(self, kind, name, depth=0):
    if kind == _STRING:
      return self._string(name)
    if kind == _ARRAY:
      return self._array(name, depth + 1)
    return self._numbers(kind, 1, name)[0]

  def _array(self, name, depth):
    kind, count = self._unpack('<IQ', name)
    if depth > _MOST_NESTED:
      raise ValueError(f'{name} has more than {_MOST_NESTED} arrays in one '
                       'another')
    if kind not in _BYTES:
      return self._numbers(kind, count, name)
    self._check_count(count, _BYTES[kind], f'entries of {name}')
    self._count_entries(count, name)
    return [self._value(kind, name, depth) for _ in range(count)]

  def _numbers(self, kind, count, name):
    if kind not in _DTYPES:
      raise ValueError(f'{name} is of the unknown type {kind}')
    dtype = np.dtype(_DTYPES[kind])
    self._check_count(count, dtype.itemsize, f'entries of {name}')
    self._count_entries(count, name)
    content = self._take(count * dtype.itemsize, name)
    return np.frombuffer(content, dtype).tolist()

  def _count_entries(self, count, name):
    self._entries += count
    if self._entries > _MOST_ENTRIES:
      raise ValueError(f'its arrays have more than {_MOST_ENTRIES} entries, '
                       f'with those of {name}')

  def _name(self, what):
    """Returns the name of a key or tensor, which messages can hold."""
    name = self._string(what)
    if len(name) > _MOST_CHARACTERS or not name.isprintable():
      raise ValueError(f'{what} is {reprlib.repr(name)}')
    return name

  def _string(self, what):
    length, = self._unpack('<Q', what)
    return self._take(length, what).decode()

  def _unpack(self, form, what):
    return struct.unpack(form, self._take(struct.calcsize(form), what))

  def _take(self, size, what):
    """Returns the next bytes of the file."""
    end = self._position + size
    if end > len(self._content):
      raise ValueError(
          f'{what} takes {size} bytes at byte {self._position}, where the file '
          f'has {len(self._content)}')
    taken = self._content[self._position:end]
    self._position = end
    return taken

  def _check_count(self, count, size, what):
    """Refuses more things than there is room for, each of a size at least."""
    left = len(self._content) - self._position
    if count * size > left:
      raise ValueError(f'it says that it has {count} {what}, for which the '
                       f'{left} bytes that are left have no room')
