"""The records of one file of texts, whatever its format."""

from collections.abc import Iterator
import hashlib
import os
import pathlib
from typing import Any, Optional

from haikd.data import reading as reading_lib
from haikd.data.records import broken as broken_lib
from haikd.data.records import file_names
from haikd.data.records import rows
from haikd.data.records import streams
from haikd.data.text import text_tokenizers
from haikd.storage import files
from haikd.storage import inputs
from haikd.storage import paths

DOCUMENTS = ('file', 'paragraph', 'line')  # What a document of a .txt file is.


def read(
    path: paths.ConcretePath, name: file_names.Name, *, documents: str,
    field: str,
    column_groups: tuple[tuple[str, ...], ...] = (),
    reading: reading_lib.Reading = reading_lib.Reading(),
    broken: Optional[broken_lib.Broken] = None
) -> Iterator[tuple[dict[str, Any], str, float]]:
  """Reads the records of a file.

  Args:
    path: the file.
    name: the parts of its name.
    documents: what a document is in a `.txt` file, one of DOCUMENTS.
    field: the name that the text of a `.txt` file gets.
    column_groups: which columns of a parquet or Arrow file are read: the first
      of these groups whose columns the file has, or all columns if it has no
      group.
    reading: the limits of the file.
    broken: what is done about broken records; None to refuse them.

  Yields:
    `{field: value}` of a record, its place in the file for messages, and how
    many bytes of the file are read after it.

  Raises:
    DataError: a file that cannot be read, or whose content does not fit its
      suffix.
  """
  if name.format != '.txt':
    yield from rows.read(path, name, column_groups, reading=reading,
                         broken=broken)
    return
  with streams.open_text(path, name.compression) as stream:
    for text, place, done in _plain(stream, documents):
      yield {field: text}, place, done


def digest(path: paths.ConcretePath, cache: pathlib.Path) -> str:
  """Returns a hash of a file's content, cached until the file changes.

  Args:
    path: the file. Of one in a bucket, the bucket knows a hash.
    cache: the folder of cached digests.

  Raises:
    DataError: the file cannot be read, or the cache cannot be written.
  """
  with streams.explaining_read_errors(path):
    if paths.is_remote(path):
      return inputs.identity(path)
    stat = os.stat(path)
  stamp = (f'{paths.absolute(path)} {stat.st_size} {stat.st_mtime_ns} '
           f'{stat.st_ino}')
  cached = cache / hashlib.sha256(stamp.encode()).hexdigest()
  if cached.exists():
    return cached.read_text()
  with streams.explaining_read_errors(path):
    computed = files.checksum(pathlib.Path(path))
  with text_tokenizers.explaining_write_errors(cache):
    cache.mkdir(parents=True, exist_ok=True)
    files.replace(cached, computed)
  return computed


def _plain(stream, documents):
  """Yields (text, place, bytes read) of each document of a .txt file.

  Lines end as on any system; within documents they end with a newline.
  """
  if documents == 'file':
    where = repr(str(stream.path))
    content = stream.file.read(streams.RECORD_BYTES + 1)
    if len(content) > streams.RECORD_BYTES:
      raise streams.too_long(
          where, "Set config.data.options.documents to 'paragraph' or 'line', "
          'or break the file into several')
    yield (streams.decode(content, where).replace('\r\n', '\n'), where,
           stream.done())
    return
  block, start, size, end = [], 1, 0, 0
  for number, text, done in streams.lines(stream):
    line, end = text.rstrip('\r\n'), done
    where = streams.place('line', number, stream.path)
    if line.strip() and documents == 'line':
      yield line.strip(), where, done
    elif line.strip():
      start = start if block else number
      block.append(line)
      size += len(line)
      if size > streams.RECORD_BYTES:
        raise streams.too_long(
            f'the paragraph from line {start} of {str(stream.path)!r}',
            "Set config.data.options.documents to 'line'")
    elif block:
      yield '\n'.join(block), streams.place('line', start, stream.path), done
      block, size = [], 0
  if block:
    yield '\n'.join(block), streams.place('line', start, stream.path), end
