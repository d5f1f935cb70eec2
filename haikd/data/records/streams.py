"""Files of text as streams of bytes and lines, compressed or not."""

import codecs
from collections.abc import Callable, Iterator, Mapping
import contextlib
import gzip
import io
from typing import Any, BinaryIO, NamedTuple, Optional
import zlib

from haikd.core import checks
from haikd.data.records import broken as broken_lib
from haikd.storage import inputs
from haikd.storage import paths

# The longest text that is held in memory at once, in bytes: a file that is one
# document, a line, or an element of an array. To tokenise it takes about 120
# times as much.
RECORD_BYTES = 2**26

_READ = 2**16  # Bytes that are decompressed at a time.

# First bytes of what a file of text is not, and what to do about it.
_FOREIGN = (
    (b'version https://git-lfs', 'a pointer of Git LFS',
     'Fetch the file itself with `git lfs pull`'),
    (b'\x1f\x8b', 'gzip', 'Add .gz to its name'),
    (b'\x28\xb5\x2f\xfd', 'Zstandard', 'Add .zst to its name'),
    (b'PAR1', 'parquet', 'Give its name the suffix .parquet'),
    (b'ARROW1', 'Arrow', 'Give its name the suffix .arrow'),
    (b'PK\x03\x04', 'a zip archive', 'Unpack it'),
    (b'\xff\xfe', 'UTF-16', 'Convert it with `iconv -f UTF-16 -t UTF-8`'),
    (b'\xfe\xff', 'UTF-16', 'Convert it with `iconv -f UTF-16 -t UTF-8`'),
)


class Stream(NamedTuple):
  """An open file of text.

  Attributes:
    path: the file.
    file: its bytes, decompressed.
    done: returns how many bytes of the file are read, before decompression.
  """

  path: paths.ConcretePath
  file: io.BufferedReader
  done: Callable[[], int]


class Line(NamedTuple):
  """A line of a file.

  Attributes:
    number: from 1.
    text: the line with the newline that ends it.
    done: how many bytes of the file are read, before decompression.
  """

  number: int
  text: str
  done: int


@contextlib.contextmanager
def open_text(path: paths.ConcretePath, compression: str) -> Iterator[Stream]:
  """Opens a file of text.

  Args:
    path: the file.
    compression: '.gz', '.zst' or ''.

  Yields:
    A Stream.

  Raises:
    DataError: a file that cannot be read, that is damaged, or that begins as
      files of another kind do.
  """
  with explaining_read_errors(path), inputs.open_file(path) as raw:
    if not compression:
      _check_start(path, raw.peek(32)[:32])
      yield Stream(path, raw, raw.tell)
      return
    try:
      with _decompressed(path, raw, compression) as file:
        _check_start(path, file.peek(32)[:32])
        yield Stream(path, file, raw.tell)
    except (OSError, EOFError, zlib.error) as err:
      raise checks.DataError(
          f'{str(path)!r} must be a complete {compression} file; got '
          f'{checks.one_line(err)}. Fetch it again; if it is not compressed, '
          f'take {compression} off its name.') from err


def lines(stream: Stream, broken: Optional[broken_lib.Broken] = None
          ) -> Iterator[Line]:
  """Yields the lines of a file, each with its newline.

  Args:
    stream: an open file.
    broken: what is done about lines that are not UTF-8; None to refuse them.

  Yields:
    A Line.

  Raises:
    DataError: a line that is not UTF-8, or longer than RECORD_BYTES.
  """
  number = 0
  while line := stream.file.readline(RECORD_BYTES + 1):
    number += 1
    if len(line) > RECORD_BYTES:
      raise too_long(place('line', number, stream.path),
                     'Break it into several lines')
    try:
      text = line.decode('utf-8')
    except UnicodeDecodeError as err:
      refusal = not_utf8(place('line', number, stream.path), err)
      if broken is None:
        raise refusal from err
      broken.skip(refusal)
      continue
    yield Line(number, text.removeprefix('\ufeff'), stream.done())


def too_long(where: str, remedy: str) -> checks.DataError:
  """Returns the error of a record that is too long to be held in memory."""
  return checks.DataError(
      f'{where} must have at most {RECORD_BYTES >> 20} MiB, which is held in '
      f'memory at once; got more. {remedy}.')


def decode(content: bytes, where: str) -> str:
  """Returns bytes as text.

  Args:
    content: UTF-8, with or without a byte order mark.
    where: the file and line, for messages.

  Raises:
    DataError: it is not UTF-8.
  """
  try:
    return content.decode('utf-8').removeprefix('\ufeff')
  except UnicodeDecodeError as err:
    raise not_utf8(where, err) from err


def not_utf8(where: str, err: UnicodeDecodeError) -> checks.DataError:
  """Returns the error of a text that is not UTF-8."""
  return checks.DataError(
      f'{where} must be UTF-8; got {checks.one_line(err)}. Convert the file, '
      'as with `iconv -f CP1252 -t UTF-8`.')


def count_characters(value: Any) -> int:
  """Returns the number of characters in a value and in what it contains.

  A number counts as one.
  """
  if isinstance(value, (str, bytes)):
    return len(value)
  if isinstance(value, Mapping):
    return sum(map(count_characters, value.values()))
  return sum(map(count_characters, value)) if isinstance(value, list) else 1


def place(unit: str, number: int, path: paths.ConcretePath) -> str:
  """Returns where a record is, for messages."""
  return f'{unit} {number} of {str(path)!r}'


@contextlib.contextmanager
def explaining_read_errors(path: paths.ConcretePath) -> Iterator[None]:
  """Turns errors of opening and reading a file into DataErrors."""
  try:
    yield
  except FileNotFoundError as err:
    raise checks.DataError(
        f'{str(path)!r} must be readable; got no file, or a link to none. '
        'Fetch it again.') from err
  except OSError as err:
    raise checks.DataError(
        f'{str(path)!r} must be readable; got {checks.describe(err)}. Remove '
        'it, or correct its permissions.') from err


def import_pyarrow(path: paths.ConcretePath):
  """Returns pyarrow; raises DataError if it is not installed.

  Args:
    path: the file that needs it, for messages.
  """
  try:
    import pyarrow
  except ImportError as err:
    raise checks.DataError(
        f'pyarrow must be installed to read {str(path)!r}; got '
        f"{checks.one_line(err)}. Run `pip install 'haikd[text]'`.") from err
  return pyarrow


def _decompressed(path: paths.ConcretePath, raw: BinaryIO,
                  compression: str) -> io.BufferedReader:
  if compression == '.gz':
    return io.BufferedReader(gzip.GzipFile(fileobj=raw), _READ)
  pyarrow = import_pyarrow(path)
  return io.BufferedReader(
      pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), 'zstd'), _READ)


def _check_start(path, start):
  """Refuses a file that begins as files of another kind do."""
  # Without a mark at its start, Western text has a zero in every other byte.
  zeros = bytes(len(start) // 2)
  if len(start) > 3 and zeros in (start[::2], start[1::2]):
    start = codecs.BOM_UTF16
  for magic, kind, remedy in _FOREIGN:
    if start.startswith(magic):
      raise checks.DataError(
          f'{str(path)!r} must hold text in UTF-8; got {kind}, by its first '
          f'bytes. {remedy}.')
