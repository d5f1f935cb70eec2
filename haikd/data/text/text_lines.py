"""What stands in one file of texts: plain, JSON lines, or parquet."""

from collections.abc import Iterator
import contextlib
import hashlib
import json
import pathlib
from typing import Any

from haikd.core import checks
from haikd.data.text import text_tokenizers
from haikd.storage import files

DOCUMENTS = ('file', 'paragraph', 'line')  # What a .txt file holds.
SUFFIXES = ('.txt', '.jsonl', '.parquet')


def read(
    path: pathlib.Path, *, documents: str, field: str,
    fields: tuple[tuple[str, ...], ...] = ()
) -> Iterator[tuple[dict[str, Any], str, float]]:
  """Reads what stands in a file.

  Args:
    path: of the file, with one of SUFFIXES.
    documents: what a document is in a `.txt` file, one of DOCUMENTS.
    field: what its text is called there.
    fields: which columns of a parquet file are read: the first of these groups
      that it has as a whole, or all that it has.

  Yields:
    `{field: value}` of a record, where it stands, and how many bytes are read
    after it.

  Raises:
    DataError: a file that cannot be read, or is not what its name says.
  """
  with _reading(path):
    if path.suffix == '.parquet':
      yield from _parquet(path, fields)
    elif path.suffix == '.jsonl':
      yield from _json_lines(path)
    else:
      for text, place, done in _plain(path, documents):
        yield {field: text}, place, done


def digest(path: pathlib.Path, cache: pathlib.Path) -> str:
  """Returns a hash of a file's content; kept until the file is changed.

  Args:
    path: of the file.
    cache: a folder for the digests of files.

  Raises:
    DataError: the file cannot be read, or the cache not written.
  """
  stat = path.stat()
  stamp = f'{path.absolute()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}'
  kept = cache / hashlib.sha256(stamp.encode()).hexdigest()
  if kept.exists():
    return kept.read_text()
  with _reading(path), open(path, 'rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  with text_tokenizers.writing(cache):
    cache.mkdir(parents=True, exist_ok=True)
    files.replace(kept, found)
  return found


def decode(content: bytes, place: str) -> str:
  """Returns bytes as text.

  Args:
    content: UTF-8, maybe with a byte order mark.
    place: where it stands, for messages.

  Raises:
    DataError: it is not UTF-8.
  """
  try:
    return content.decode('utf-8').removeprefix('\ufeff')
  except UnicodeDecodeError as err:
    raise checks.DataError(
        f'text_lines.decode: {place} must be UTF-8; got '
        f'{checks.one_line(err)}. Convert it, as with `iconv -t UTF-8`.'
    ) from err


def _plain(path, documents):
  if documents == 'file':
    content = path.read_bytes()
    place = repr(str(path))
    yield decode(content, place), place, len(content)
    return
  block, start = [], 1
  for number, line, done in _lines(path):
    if line.strip() and documents == 'line':
      yield line.strip(), f'line {number} of {str(path)!r}', done
    elif line.strip():
      start = start if block else number
      block.append(line)
    elif block:
      yield '\n'.join(block), f'line {start} of {str(path)!r}', done
      block = []
  if block:
    yield '\n'.join(block), f'line {start} of {str(path)!r}', done


def _json_lines(path):
  for number, line, done in _lines(path):
    if not line.strip():
      continue
    place = f'line {number} of {str(path)!r}'
    try:
      values = json.loads(line)
      if not isinstance(values, dict):
        raise ValueError('not an object')
    except ValueError as err:
      raise checks.DataError(
          f'text_lines.read: {place} must be a JSON object; got '
          f'{checks.one_line(err)}. Remove or mend the line.') from err
    yield values, place, done


def _parquet(path, fields):
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as err:
    raise checks.DataError(
        'text_lines.read: pyarrow must be installed for parquet files; got '
        f"{checks.one_line(err)}. Run `pip install 'haikd[text]'`.") from err
  number, size = 0, path.stat().st_size
  try:
    with parquet.ParquetFile(path) as file:
      rows = file.metadata.num_rows
      there = file.schema_arrow.names
      # Where none is there, a message is due that says what is.
      used = next((group for group in fields if {*group} <= {*there}), there)
      for batch in file.iter_batches(batch_size=1024, columns=list(used)):
        for values in batch.to_pylist():
          yield (values, f'row {number} of {str(path)!r}',
                 size * (number + 1) / rows)
          number += 1
  except pyarrow.ArrowException as err:
    raise checks.DataError(
        f'text_lines.read: {str(path)!r} must be a parquet file; got '
        f'{checks.one_line(err)}. Fetch it again.') from err


def _lines(path):
  """Yields (number, line without its end, bytes read)."""
  done = 0
  with open(path, 'rb') as file:
    for number, line in enumerate(file, start=1):
      done += len(line)
      text = decode(line, f'line {number} of {str(path)!r}')
      yield number, text.rstrip('\r\n'), done


@contextlib.contextmanager
def _reading(path):
  try:
    yield
  except OSError as err:
    raise checks.DataError(
        f'text_lines.read: {str(path)!r} must be readable; got '
        f'{checks.describe(err)}.') from err
