"""Records of tables: CSV, parquet and Arrow."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import csv
import itertools
import re
from typing import Any

from haikd.core import checks
from haikd.core import notes
from haikd.data import reading as reading_lib
from haikd.data.records import broken as broken_lib
from haikd.data.records import parquet_files
from haikd.data.records import streams
from haikd.storage import inputs
from haikd.storage import paths

_DELIMITERS = (';', '\t', '|', ',')
_SEPARATOR = re.compile('"?sep=(.)"?', re.IGNORECASE)  # As Excel has it.
_ROWS = 1024  # Rows that are turned into Python objects at a time.

Groups = tuple[tuple[str, ...], ...]
Records = Iterator[tuple[dict[str, Any], str, float]]


def separated(stream: streams.Stream, delimiter: str,
              broken: broken_lib.Broken) -> Records:
  r"""Reads a table whose first row has the names of the columns.

  A field in quotation marks may hold delimiters, line breaks, and quotation
  marks that are doubled. Blank lines are left out. All values are texts.

  Where the first line has no delimiter, but another one that people use, as
  Excel writes it in many languages, that one counts; and so does one that a
  first line `sep=;` names.

  Args:
    stream: an open file.
    delimiter: ',' or '\t'.
    broken: what is done about a row with another number of fields.

  Yields:
    The values of a row, its place, and how many bytes of the file are read.

  Raises:
    DataError: a row that is not written like this, or has not as many fields
      as the first.
  """
  csv.field_size_limit(max(csv.field_size_limit(), streams.RECORD_BYTES))
  done = 0
  read = streams.lines(stream)
  start = []
  for line in read:
    start.append(line)
    if line.text.strip():
      break
  first = start[-1].text.strip() if start else ''
  named = _SEPARATOR.fullmatch(first)
  if named:
    start[-1] = start[-1]._replace(text='\n')
  delimiters = [delimiter, *_DELIMITERS] if not named else [named[1]]
  found = next((each for each in delimiters if each in first), delimiter)
  if found != delimiter:
    notes.say(f'{str(stream.path)!r}: columns are separated by {found!r}, as '
              'the first line shows.')
    delimiter = found

  def lines():
    nonlocal done
    for line in itertools.chain(start, read):
      done = line.done
      yield line.text

  rows = csv.reader(lines(), delimiter=delimiter, strict=True)
  header: list[str] = []
  while True:
    where = streams.place('line', rows.line_num + 1, stream.path)
    try:
      row = next(rows, None)
    except csv.Error as err:
      raise checks.DataError(
          f'{where} must begin a row of {len(header) or "named"} fields; got '
          f'{checks.one_line(err)}. Put a field that holds a delimiter, a line '
          'break or a quotation mark in quotation marks, and double those '
          'inside.') from err
    if row is None:
      return
    if not row:
      continue
    if not header:
      header = row
      if len({*header}) < len(header):
        twin = next(name for name in header if header.count(name) > 1)
        raise checks.DataError(
            f'{where} must name each column once; got {twin[:80]!r} twice. '
            'Rename one.')
      continue
    if len(row) != len(header):
      broken.skip(checks.DataError(
          f'{where} must begin a row of {len(header)} fields, as the first has '
          f'names; got {len(row)}. Put a field that holds a delimiter in '
          'quotation marks, or remove the row.'))
      continue
    # A quotation mark that was never meant to open a field takes the rows after
    # it into the field.
    if delimiter == '\t' and any('\t' in x and '\n' in x for x in row):
      raise checks.DataError(
          f'{where} must begin a row whose fields hold tabs or line breaks, '
          'not both, since a single quotation mark would swallow rows; got '
          'both. Double the mark and put its field in quotation marks, or use '
          '.jsonl.')
    yield dict(zip(header, row)), where, done


def parquet(path: paths.ConcretePath, column_groups: Groups,
            reading: reading_lib.Reading) -> Records:
  """Reads a parquet file.

  Args:
    path: the file.
    column_groups: which columns are read, as for `text_lines.read`.
    reading: its limits.

  Yields:
    As `separated`.

  Raises:
    DataError: a file that is damaged or no such file, a text that is not UTF-8,
      or a piece that takes too much memory.
  """
  number, size = 0, inputs.size(path)
  with (explaining_damage(path, 'a parquet file'),
        parquet_files.opened(path) as file):
    rows = file.metadata.num_rows
    columns = _choose(file.schema_arrow.names, column_groups)
    for batch in parquet_files.batches(path, file, columns, reading, _ROWS):
      for values, where in _rows(batch, number, path):
        number += 1
        yield values, where, size * number / rows


def arrow(path: paths.ConcretePath, column_groups: Groups) -> Records:
  """Reads an Arrow file: a stream, as `datasets` writes it, or a file.

  Args:
    path: the file.
    column_groups: which columns are read, as for `text_lines.read`.

  Yields:
    As `separated`.

  Raises:
    DataError: as `parquet`.
  """
  number = 0
  with (explaining_damage(path, 'an Arrow file'),
        open_arrow(path) as source):
    schema, batches = arrow_batches(path, source)
    columns = _choose(schema.names, column_groups)
    for batch, done in batches(columns):
      for values, where in _rows(batch, number, path):
        number += 1
        yield values, where, done


def arrow_batches(path: paths.ConcretePath,
                  source: Any) -> tuple[Any, Callable[[Sequence[str]], Any]]:
  """Returns the schema of an Arrow file, and what reads its record batches.

  Args:
    path: the file.
    source: the same, from `open_arrow`.

  Returns:
    The schema; and a function of the names of columns, which yields record
    batches, each with how many bytes of the file are read after it.
  """
  pyarrow = streams.import_pyarrow(path)
  if source.read(6) == b'ARROW1':
    reader = pyarrow.ipc.open_file(source)
    count = reader.num_record_batches
    return reader.schema, lambda columns: (
        (_valid(reader.get_batch(i).select(columns)),
         source.size() * (i + 1) / count) for i in range(count))
  source.seek(0)
  stream = pyarrow.ipc.open_stream(source)
  return stream.schema, lambda columns: (
      (_valid(batch.select(columns)), source.tell()) for batch in stream)


def _valid(batch):
  """Returns a record batch whose offsets were found to be inside it.

  pyarrow trusts the offsets of texts and lists in a file, and one beyond its
  buffer would end the process.
  """
  import pyarrow
  for column in batch.columns:
    try:
      column.validate(full=True)
    except pyarrow.ArrowInvalid as err:
      if 'UTF8' not in str(err):  # Else `_rows` names the row.
        raise
  return batch


def open_arrow(path):
  """Opens a file for pyarrow: mapped into memory if it is local."""
  pyarrow = streams.import_pyarrow(path)
  if paths.is_remote(path):
    return pyarrow.PythonFile(inputs.open_file(path))
  return pyarrow.memory_map(str(path))


def _choose(available, column_groups):
  """Returns the columns to read.

  Without a matching group these are all: the message about the missing field
  lists them.
  """
  return list(next((group for group in column_groups
                    if {*group} <= {*available}), available))


def _rows(batch, number, path):
  """Yields (values, place) of the rows of a record batch."""
  for start in range(0, batch.num_rows, _ROWS):
    part = batch.slice(start, _ROWS)
    try:
      rows = part.to_pylist()
    except UnicodeDecodeError:  # Find the row.
      rows = None
    for i in range(part.num_rows):
      where = streams.place('row', number + start + i, path)
      try:
        yield rows[i] if rows else part.slice(i, 1).to_pylist()[0], where
      except UnicodeDecodeError as err:
        raise streams.not_utf8(where, err) from err


@contextlib.contextmanager
def explaining_damage(path, kind):
  """Turns errors of a table that is opened or read into DataErrors."""
  pyarrow = streams.import_pyarrow(path)
  with streams.explaining_read_errors(path):
    inputs.open_file(path).close()  # An error of opening is about permissions.
  try:
    yield
  except checks.DataError:
    raise
  # What is damaged also causes a ValueError, MemoryError or KeyError.
  except (pyarrow.ArrowException, OSError, ValueError, MemoryError, KeyError,
          IndexError, OverflowError) as err:
    raise checks.DataError(
        f'{str(path)!r} must be {kind}; got '
        f'{checks.one_line(err).rstrip(".")}. Fetch it again.') from err
