"""Parquet files, read in pieces that memory has room for."""

from collections.abc import Iterator, Sequence
import contextlib
from typing import Any

from haikd.data import reading as reading_lib
from haikd.data.records import parquet_pages
from haikd.data.records import streams
from haikd.storage import inputs
from haikd.storage import paths

_PIECE_BYTES = 2**24  # Of a piece, about, where one row does not take more.
# Part of the memory that a piece takes if each of its texts is the longest of
# its dictionary. Few are, and small pieces take long.
_OF_TEXTS = 1 / 8


@contextlib.contextmanager
def opened(path: paths.ConcretePath) -> Iterator[Any]:
  """Opens a file as a `pyarrow.parquet.ParquetFile`."""
  streams.import_pyarrow(path)
  from pyarrow import parquet

  # A path is read faster than a file of Python.
  source = inputs.open_file(path) if paths.is_remote(path) else path
  with parquet.ParquetFile(source) as file:
    yield file


def batches(path: paths.ConcretePath, file: Any, columns: Sequence[str],
            reading: reading_lib.Reading, rows: int) -> Iterator[Any]:
  """Yields the rows of a file as record batches.

  Args:
    path: the file.
    file: the same, opened.
    columns: the names of those that are read.
    reading: its limits.
    rows: in a batch, at most.

  Raises:
    DataError: a piece takes more memory than there may be.
  """
  for chunk in _chunks(path, file, columns):
    reading.check_memory(
        max(chunk.page, chunk.dictionary), f'a page of {str(path)!r}')
    # One row of a list may hold all of them.
    if chunk.values > file.metadata.num_rows:
      reading.check_memory(chunk.values * chunk.width,
                           f'a column of lists in {str(path)!r}')
    per_row = chunk.values // max(file.metadata.num_rows, 1) + 1
    rows = min(rows, _PIECE_BYTES // (per_row * max(chunk.width, 1)))
    if chunk.dictionary:
      rows = min(rows, int(_OF_TEXTS * reading.memory_bytes) // (
          per_row * chunk.dictionary))
  rows = max(rows, 1)
  yield from file.iter_batches(batch_size=rows, columns=list(columns))


def _chunks(path, file, columns) -> Iterator[parquet_pages.Chunk]:
  """Yields what the columns of a file take."""
  # In a bucket each page would take a request.
  if not paths.is_remote(path):
    with inputs.open_file(path) as raw:
      yield from parquet_pages.chunks(raw, file.metadata, columns)
