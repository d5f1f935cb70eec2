"""What the pages of a parquet file take once they are decoded.

A page of some bytes may hold a billion values, and its footer need not say so.
The headers of pages, which do, are read here: structs in Thrift's compact
protocol, as parquet.thrift has them (PageHeader).
"""

from collections.abc import Iterator
import contextlib
from typing import Any, BinaryIO, NamedTuple

_HEADERS = (2**9, 2**16)  # Bytes that a header is looked for in; a long one.
# Fields of a PageHeader.
_KIND, _UNCOMPRESSED, _COMPRESSED = 1, 2, 3
_COUNTED = (5, 7, 8)  # Structs for the kinds of pages; field 1 is a count.
_DICTIONARY = 2  # A value of _KIND.

# Types in the compact protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY = 1, 2, 3, 7, 8
_INTEGERS = (4, 5, 6)
_LIST, _SET, _STRUCT = 9, 10, 12
_MOST_NESTED = 8

_TEXT = 'BYTE_ARRAY'
_WIDTHS = {'BOOLEAN': 1, 'INT32': 4, 'INT64': 8, 'INT96': 12, 'FLOAT': 4,
           'DOUBLE': 8, _TEXT: 4}


class Chunk(NamedTuple):
  """What one column of a row group takes.

  Attributes:
    page: bytes of its largest page, uncompressed.
    dictionary: bytes of its dictionary of texts, uncompressed, which is as long
      as its longest entry or longer; 0 without one.
    values: how many it has, for a list as many as it has entries.
    width: bytes of a value; of a text only what precedes its content.
  """

  page: int
  dictionary: int
  values: int
  width: int


def chunks(file: BinaryIO, metadata: Any, columns: Any) -> Iterator[Chunk]:
  """Yields what the columns of a file take, row group by row group.

  Args:
    file: the parquet file, open.
    metadata: a `pyarrow.parquet.FileMetaData`.
    columns: the names of the columns.

  Raises:
    ValueError: a header of a page is damaged.
  """
  for group in range(metadata.num_row_groups):
    row_group = metadata.row_group(group)
    # Of a group without rows nothing is read, and its offsets are anything.
    for number in range(row_group.num_columns if row_group.num_rows else 0):
      column = row_group.column(number)
      if column.path_in_schema.partition('.')[0] in columns:
        width = _WIDTHS.get(column.physical_type) or metadata.schema.column(
            number).length
        yield _chunk(file, column, width)


def _chunk(file, column, width):
  """Returns what a column of a row group takes."""
  starts = [column.data_page_offset]
  if column.has_dictionary_page:
    starts.append(column.dictionary_page_offset)
  position = min(starts)
  end = position + column.total_compressed_size
  page = dictionary = values = 0
  while position < end:
    header = _header(file, position)
    sizes = [header.fields.get(x) for x in (_UNCOMPRESSED, _COMPRESSED)]
    counts = [header.fields[x] for x in _COUNTED if x in header.fields]
    if not all(isinstance(x, int) and x >= 0 for x in sizes):
      raise ValueError(f'the header of the page at byte {position} is damaged')
    page = max(page, sizes[0])
    if header.fields.get(_KIND) == _DICTIONARY:
      if column.physical_type == _TEXT:
        dictionary = max(dictionary, sizes[0])
    elif counts and isinstance(counts[0], dict):
      values += max(counts[0].get(1, 0), 0)
    position += header.size + sizes[1]
  return Chunk(page, dictionary, values, width)


def _header(file, position):
  """Returns the header at a position of a file."""
  for size in _HEADERS:
    file.seek(position)
    content = file.read(size)
    with contextlib.suppress(IndexError):
      return _Struct(content)
  raise ValueError(f'the header of the page at byte {position} has no end')


class _Struct:
  """A struct in the compact protocol.

  Attributes:
    fields: `{number: value}` of whole numbers and of structs.
    size: in bytes.

  Raises:
    IndexError: it goes on after the end of the content.
    ValueError: it is no struct.
  """

  def __init__(self, content: bytes):
    self._content = content
    self.size = 0
    self.fields = self._struct(0)

  def _struct(self, depth):
    if depth > _MOST_NESTED:
      raise ValueError('the header of a page has too many structs')
    fields: dict[int, Any] = {}
    number = 0
    while head := self._byte():
      delta, kind = head >> 4, head & 15
      number = number + delta if delta else _zigzag(self._varint())
      value = self._value(kind, depth)
      if value is not None:
        fields[number] = value
    return fields

  def _value(self, kind, depth):
    """Returns a whole number or a struct, None for anything else."""
    if kind in _INTEGERS:
      return _zigzag(self._varint())
    if kind == _STRUCT:
      return self._struct(depth + 1)
    if kind == _BINARY:
      self._skip(self._varint())
    elif kind in (_BYTE, _DOUBLE):
      self._skip(1 if kind == _BYTE else 8)
    elif kind in (_LIST, _SET):
      head = self._byte()
      count = head >> 4 if head >> 4 != 15 else self._varint()
      for _ in range(min(count, len(self._content))):
        inside = head & 15
        # In a list a truth value takes a byte.
        self._value(_BYTE if inside in (_TRUE, _FALSE) else inside, depth + 1)
    elif kind not in (_TRUE, _FALSE):
      raise ValueError(f'the header of a page has the unknown type {kind}')
    return None

  def _byte(self):
    self._skip(1)
    return self._content[self.size - 1]

  def _varint(self):
    value = shift = 0
    while True:
      byte = self._byte()
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value
      if shift > 63:
        raise ValueError('the header of a page has a number of over 64 bits')

  def _skip(self, size):
    self.size += size
    if self.size > len(self._content):
      raise IndexError


def _zigzag(value):
  return value >> 1 ^ -(value & 1)
