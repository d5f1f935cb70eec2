"""The records of one file of texts: plain text, JSON lines, or parquet."""

from collections.abc import Iterator
import contextlib
import hashlib
import json
import pathlib
from typing import Any

from haikd.core import checks
from haikd.data.text import text_tokenizers
from haikd.storage import files

DOCUMENTS = ('file', 'paragraph', 'line')  # What a document of a .txt file is.
SUFFIXES = ('.txt', '.jsonl', '.parquet')


def read(
    path: pathlib.Path, *, documents: str, field: str,
    column_groups: tuple[tuple[str, ...], ...] = ()
) -> Iterator[tuple[dict[str, Any], str, float]]:
  """Reads the records of a file.

  Args:
    path: the file, with one of SUFFIXES.
    documents: what a document is in a `.txt` file, one of DOCUMENTS.
    field: the name that the text of a `.txt` file gets.
    column_groups: which columns of a parquet file are read: the first of these
      groups whose columns the file has, or all columns if it has no group.

  Yields:
    `{field: value}` of a record, its place in the file for messages, and how
    many bytes are read after it.

  Raises:
    DataError: a file that cannot be read, or whose content does not fit its
      suffix.
  """
  with _explaining_read_errors(path):
    if path.suffix == '.parquet':
      yield from _parquet(path, column_groups)
    elif path.suffix == '.jsonl':
      yield from _json_lines(path)
    else:
      for text, place, done in _plain(path, documents):
        yield {field: text}, place, done


def digest(path: pathlib.Path, cache: pathlib.Path) -> str:
  """Returns a hash of a file's content, cached until the file changes.

  Args:
    path: the file.
    cache: the folder of cached digests.

  Raises:
    DataError: the file cannot be read, or the cache cannot be written.
  """
  stat = path.stat()
  stamp = f'{path.absolute()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}'
  cached = cache / hashlib.sha256(stamp.encode()).hexdigest()
  if cached.exists():
    return cached.read_text()
  with _explaining_read_errors(path), open(path, 'rb') as file:
    computed = hashlib.file_digest(file, 'sha256').hexdigest()
  with text_tokenizers.explaining_write_errors(cache):
    cache.mkdir(parents=True, exist_ok=True)
    files.replace(cached, computed)
  return computed


def decode(content: bytes, place: str) -> str:
  """Returns bytes as text.

  Args:
    content: UTF-8, with or without a byte order mark.
    place: the file and line, for messages.

  Raises:
    DataError: it is not UTF-8.
  """
  try:
    return content.decode('utf-8').removeprefix('\ufeff')
  except UnicodeDecodeError as err:
    raise checks.DataError(
        f'{place} must be UTF-8; got {checks.one_line(err)}. Convert it, as '
        'with `iconv -t UTF-8`.') from err


def _plain(path, documents):
  """Yields (text, place, bytes read) of each document of a .txt file."""
  if documents == 'file':
    content = path.read_bytes()
    place = repr(str(path))
    yield decode(content, place), place, len(content)
    return
  block, start = [], 1
  for number, line, done in _lines(path):
    if line.strip() and documents == 'line':
      yield line.strip(), _place('line', number, path), done
    elif line.strip():
      start = start if block else number
      block.append(line)
    elif block:
      yield '\n'.join(block), _place('line', start, path), done
      block = []
  if block:
    yield '\n'.join(block), _place('line', start, path), done


def _json_lines(path):
  for number, line, done in _lines(path):
    if not line.strip():
      continue
    place = _place('line', number, path)
    try:
      values = json.loads(line)
      if not isinstance(values, dict):
        raise ValueError('not an object')
    except ValueError as err:
      raise checks.DataError(
          f'{place} must be a JSON object; got {checks.one_line(err)}. Remove '
          'or fix the line.') from err
    yield values, place, done


def _parquet(path, column_groups):
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as err:
    raise checks.DataError(
        f'pyarrow must be installed to read {str(path)!r}; got '
        f"{checks.one_line(err)}. Run `pip install 'haikd[text]'`.") from err
  number, size = 0, path.stat().st_size
  try:
    with parquet.ParquetFile(path) as file:
      rows = file.metadata.num_rows
      available = file.schema_arrow.names
      # Without a matching group all columns are read: the message about the
      # missing field lists them.
      columns = next((group for group in column_groups
                      if {*group} <= {*available}), available)
      for batch in file.iter_batches(batch_size=1024, columns=list(columns)):
        for values in batch.to_pylist():
          yield (values, _place('row', number, path),
                 size * (number + 1) / rows)
          number += 1
  except pyarrow.ArrowException as err:
    raise checks.DataError(
        f'{str(path)!r} must be a parquet file; got {checks.one_line(err)}. '
        'Fetch it again.') from err


def _lines(path):
  """Yields (number, line without its end, bytes read)."""
  done = 0
  with open(path, 'rb') as file:
    for number, line in enumerate(file, start=1):
      done += len(line)
      text = decode(line, _place('line', number, path))
      yield number, text.rstrip('\r\n'), done


def _place(unit, number, path):
  """Returns where a record is, for messages."""
  return f'{unit} {number} of {str(path)!r}'


@contextlib.contextmanager
def _explaining_read_errors(path):
  """Turns errors of reading a file into DataErrors."""
  try:
    yield
  except OSError as err:
    raise checks.DataError(
        f'{str(path)!r} must be readable; got {checks.describe(err)}. Remove '
        'it, or correct its permissions.') from err
