"""The rows of one file whose records have fields, whatever its format."""

from collections.abc import Iterator
from typing import Any, Optional

from haikd.data import reading as reading_lib
from haikd.data.records import broken as broken_lib
from haikd.data.records import file_names
from haikd.data.records import json_records
from haikd.data.records import streams
from haikd.data.records import table_records
from haikd.storage import paths


def read(
    path: paths.ConcretePath, name: file_names.Name,
    column_groups: tuple[tuple[str, ...], ...] = (), *,
    reading: reading_lib.Reading = reading_lib.Reading(),
    broken: Optional[broken_lib.Broken] = None
) -> Iterator[tuple[dict[str, Any], str, float]]:
  """Reads the rows of a file.

  Args:
    path: the file; not one of plain text.
    name: the parts of its name.
    column_groups: which columns of a parquet or Arrow file are read: the first
      of these groups whose columns the file has, or all columns if it has no
      group.
    reading: its limits.
    broken: what is done about broken records; None to refuse them.

  Yields:
    `{field: value}` of a row, its place in the file for messages, and how many
    bytes of the file are read after it.

  Raises:
    DataError: a file that cannot be read, or whose content does not fit its
      suffix.
  """
  if name.format == '.parquet':
    yield from table_records.parquet(path, column_groups, reading)
    return
  if name.format == '.arrow':
    yield from table_records.arrow(path, column_groups)
    return
  broken = broken or broken_lib.Broken(repr(str(path)))
  with streams.open_text(path, name.compression) as stream:
    if name.format == '.jsonl':
      yield from json_records.json_lines(stream, broken)
    elif name.format == '.json':
      yield from json_records.json_file(stream, broken)
    elif name.format == '.csv':
      yield from table_records.separated(stream, ',', broken)
    else:
      yield from table_records.separated(stream, '\t', broken)
