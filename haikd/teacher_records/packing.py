"""Integers packed with as many bits as the largest of them needs.

A group of eight integers of b bits has b bytes, the lowest bits first.
"""

import numpy as np

_GROUP = 8
# An integer may begin at the last bit of a byte, and is read as 32 bits.
MAX_BITS = 25


def bits_for(count: int) -> int:
  """Returns the bits of an integer from 0 to below `count`.

  Args:
    count: 1 or more, at most 2**25.
  """
  bits = max(int(count - 1).bit_length(), 1)
  if bits > MAX_BITS:
    raise ValueError(f'count must be at most 2**{MAX_BITS}; got {count}.')
  return bits


def packed_bytes(size: int, bits: int) -> int:
  """Returns how many bytes `pack` makes of integers.

  Args:
    size: how many integers.
    bits: of each.
  """
  return -(-size * bits // 8)


def pack(values: np.ndarray, bits: int) -> bytes:
  """Packs integers.

  Args:
    values: integers from 0 to below 2**bits, of any shape.
    bits: of each, from 1 to 25.
  """
  flat = values.reshape(-1).astype(np.uint64)
  groups = np.pad(flat, (0, -flat.size % _GROUP)).reshape(-1, _GROUP)
  packed = np.zeros((len(groups), bits), np.uint8)
  for place in range(_GROUP):
    first, shift = divmod(place * bits, 8)
    shifted = groups[:, place] << np.uint64(shift)
    for byte in range(first, min(first + -(-(shift + bits) // 8), bits)):
      part = shifted >> np.uint64(8 * (byte - first))
      packed[:, byte] |= part.astype(np.uint8)
  return packed.tobytes()[:packed_bytes(flat.size, bits)]


def unpack(content: bytes, size: int, bits: int) -> np.ndarray:
  """Returns packed integers.

  Args:
    content: from `pack`.
    size: how many integers.
    bits: of each.

  Returns:
    int32 `[size]`.
  """
  # Three bytes more, so that the last integer can be read as 32 bits.
  padded = np.zeros(packed_bytes(size, bits) + 4, np.uint8)
  padded[:len(content)] = np.frombuffer(content, np.uint8)
  start = np.arange(size, dtype=np.int64) * bits
  byte, shift = start >> 3, (start & 7).astype(np.uint32)
  word = padded[byte].astype(np.uint32)
  for place in (1, 2, 3):
    word |= padded[byte + place].astype(np.uint32) << np.uint32(8 * place)
  mask = np.uint32(2**bits - 1)
  return ((word >> shift) & mask).astype(np.int32)


class Parts:
  """Reads what several parts were joined to, one after the other.

  Args:
    content: the joined parts.
  """

  def __init__(self, content: bytes):
    self._content = content
    self._start = 0

  def packed(self, size: int, bits: int) -> np.ndarray:
    """Returns integers that `pack` has written, int32 `[size]`."""
    return unpack(self._take(packed_bytes(size, bits)), size, bits)

  def array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an array of a shape and dtype."""
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(self._take(size), dtype).reshape(shape)

  def _take(self, size):
    start, self._start = self._start, self._start + size
    return self._content[start:self._start]
