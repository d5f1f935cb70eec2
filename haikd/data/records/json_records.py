"""Records of JSON files: an object a line, or one array of objects."""

import codecs
from collections.abc import Iterator
import json
from typing import Any

from haikd.core import checks
from haikd.data.records import broken as broken_lib
from haikd.data.records import streams

_READ = 2**16  # Bytes of an array that are read at a time, at least.
_SHOWN = 40  # Characters of what is no JSON that a message shows.
_BLANK = ' \t\r\n'

Records = Iterator[tuple[dict[str, Any], str, int]]


def json_lines(stream: streams.Stream, broken: broken_lib.Broken) -> Records:
  """Reads a file with one object a line; blank lines are left out.

  Args:
    stream: an open file.
    broken: what is done about a line that is no object.

  Yields:
    The values of a record, its place, and how many bytes of the file are read.

  Raises:
    DataError: a line that is no object.
  """
  for line in streams.lines(stream, broken):
    if not line.text.strip():
      continue
    where = streams.place('line', line.number, stream.path)
    try:
      values = _parse(line.text, where)
    except checks.DataError as err:
      broken.skip(err)
      continue
    yield values, where, line.done


def _parse(text, where):
  """Returns the object in a line; raises DataError if there is none."""
  try:
    values = json.loads(text)
  except (ValueError, RecursionError) as err:
    if text.lstrip().startswith('['):
      raise _is_array(where) from err
    raise _not_object(where, f'{_describe(err, 0)}, where each line must be a '
                      'whole object') from err
  if isinstance(values, list):
    raise _is_array(where)
  if not isinstance(values, dict):
    raise _not_object(where, type(values).__name__)
  return values


def json_file(stream: streams.Stream, broken: broken_lib.Broken) -> Records:
  """Reads an array of objects, or one object a line as `json_lines` does.

  An array is read element by element, and never held in memory.

  Args:
    stream: an open file.
    broken: what is done about a line, or an element, that is no object.

  Yields:
    As `json_lines`.

  Raises:
    DataError: a file that is neither, or an element that is no object.
  """
  start = stream.file.peek(_READ).removeprefix(codecs.BOM_UTF8)
  if start.lstrip().startswith(b'['):
    yield from _array(stream, broken)
    return
  try:
    yield from json_lines(stream, broken)
  except checks.DataError as err:
    # Such as an object that goes over several lines.
    raise checks.DataError(
        f'{err} Apart from that, a .json file may be one array of objects.'
    ) from err


def _array(stream, broken):
  """Yields what `json_file` does of the elements of an array."""
  text = _Text(stream)
  text.skip_blank()
  text.position += 1  # The bracket that opens it.
  decoder, number = json.JSONDecoder(), 0
  if text.skip_blank() != ']':
    while True:
      number += 1
      text.skip_blank()
      where = (f'element {number} (line {text.line}) of '
               f'{str(stream.path)!r}')
      values = text.parse(decoder, where)
      if isinstance(values, dict):
        yield values, where, stream.done()
      else:
        broken.skip(_not_object(where, type(values).__name__))
      following = text.skip_blank()
      if following == ']':
        break
      if following != ',':
        raise checks.DataError(
            f'{where} must be followed by a comma or by the bracket that ends '
            f'the array; got {following or "the end of the file"!r}. Fix the '
            'file, or fetch it again.')
      text.position += 1
  text.position += 1
  if following := text.skip_blank():
    raise checks.DataError(
        f'{str(stream.path)!r} must end with the array; got {following!r} '
        f'after it in line {text.line}. Write one array, or an object a line '
        'into a .jsonl file.')


class _Text:
  """The part of a file that is being parsed.

  Attributes:
    position: the index in the part that is reached.
    line: the number of the line that is reached by `skip_blank`.
  """

  def __init__(self, stream: streams.Stream):
    self.position = 0
    self.line = 1
    self._stream = stream
    self._decoder = codecs.getincrementaldecoder('utf-8-sig')()
    self._part = ''
    self._counted = 0  # The index up to which lines are counted.
    self._ended = False

  def skip_blank(self) -> str:
    """Moves to the next character that is not blank; returns it, or ''."""
    while True:
      part = self._part
      while self.position < len(part) and part[self.position] in _BLANK:
        self.position += 1
      if self.position < len(part) or not self._read(_READ):
        break
    self.line += self._part.count('\n', self._counted, self.position)
    self._counted = self.position
    return self._part[self.position:self.position + 1]

  def parse(self, decoder: json.JSONDecoder, where: str) -> Any:
    """Returns the value that begins here, and moves behind it."""
    while True:
      start = self.position
      try:
        value, self.position = decoder.raw_decode(self._part, start)
        return value
      except (ValueError, RecursionError) as err:
        size = len(self._part) - start
        # Each time twice as much, so that long elements take linear time.
        if isinstance(err, RecursionError) or not self._read(max(_READ, size)):
          raise _not_object(where, _describe(err, start)) from err
        if size > streams.RECORD_BYTES:
          raise streams.too_long(
              where, 'Break it into several elements') from err

  def _read(self, size: int) -> bool:
    """Reads on, forgetting what is parsed; returns whether there was more."""
    content = self._stream.file.read(size)
    try:
      more = self._decoder.decode(content, final=not content)
    except UnicodeDecodeError as err:
      line = self.line + self._part.count('\n', self._counted) + (
          content[:err.start].count(b'\n'))
      raise streams.not_utf8(
          streams.place('line', line, self._stream.path), err) from err
    self.line += self._part.count('\n', self._counted, self.position)
    self._part = self._part[self.position:] + more
    self.position = self._counted = 0
    return bool(content)


def _describe(err, start):
  """Returns what is wrong with a record that begins at an index."""
  if isinstance(err, json.JSONDecodeError):
    what = err.msg.removesuffix(' at').removesuffix(' starting')
    rest = err.doc[err.pos:err.pos + _SHOWN].strip()
    return (f'{what} at character {err.pos - start + 1}' +
            (f', before {rest!r}' if rest else ''))
  if isinstance(err, RecursionError):
    return 'lists or objects that are nested too deeply'
  return checks.one_line(err)


def _not_object(where, what):
  return checks.DataError(
      f'{where} must be a JSON object; got {what}. Remove or fix it.')


def _is_array(where):
  return checks.DataError(
      f'{where} must be a JSON object; got a list. If the file is one array, '
      'give it the suffix .json.')
