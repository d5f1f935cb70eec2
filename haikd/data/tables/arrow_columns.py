"""Columns of parquet files and of Arrow folders, with their types.

Folders that Hugging Face's `datasets` has saved are read without it: the
features that it knows are written beside the types of Arrow.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import json
import os
from typing import Any, Optional

import numpy as np

from haikd.core import checks
from haikd.data import reading as reading_lib
from haikd.data.image import decode
from haikd.data.records import file_names
from haikd.data.records import parquet_files
from haikd.data.records import streams
from haikd.data.records import table_records
from haikd.data.tables import column as column_lib
from haikd.storage import inputs
from haikd.storage import paths

_FEATURES = b'huggingface'  # The key of the schema's metadata.
_TEXTS = ('string', 'large_string', 'string_view')
_BYTES = ('binary', 'large_binary', 'binary_view')
_ROWS = 4096  # In a piece of a parquet file, at most.


def names(files: file_names.Files) -> tuple[str, ...]:
  """Returns the names of the columns."""
  path, name = files[0]
  with _opened(path, name) as (schema, _):
    return tuple(schema.names)


def read(files: file_names.Files, requested: Sequence[str], channels: int,
         reading: reading_lib.Reading) -> dict[str, column_lib.Column]:
  """Reads some columns; Arrow files are mapped into memory.

  Args:
    files: the files of a split.
    requested: the names of the columns.
    channels: of images, 1 or 3.
    reading: its limits.

  Raises:
    DataError: a file that cannot be read, files of different columns, or
      columns that take too much memory.
  """
  pyarrow = streams.import_pyarrow(files[0][0])
  # What is mapped into memory is not allocated.
  limit = functools.partial(_check_allocated, reading,
                            pyarrow.total_allocated_bytes())
  tables = [(path, _read(path, name, requested, reading, limit))
            for path, name in files]
  if not any(map(len, (table for _, table in tables))):
    raise column_lib.no_rows(tables[0][0])
  features = _features(*tables[0])
  return {
      name: _column([(path, table.column(name)) for path, table in tables],
                    features.get(name, {}), channels, reading.tolerated)
      for name in requested}


@contextlib.contextmanager
def _opened(path: paths.ConcretePath, name: file_names.Name) -> Iterator[Any]:
  """Opens a file; yields its schema, and a function from columns to batches."""
  if name.format == '.parquet':
    with (table_records.explaining_damage(path, 'a parquet file'),
          parquet_files.opened(path) as file):
      yield file.schema_arrow, functools.partial(
          parquet_files.batches, path, file, rows=_ROWS)
    return
  with table_records.explaining_damage(path, 'an Arrow file'):
    source = table_records.open_arrow(path)  # What is read keeps it open.
    schema, found = table_records.arrow_batches(path, source)
    yield schema, lambda columns, reading: (
        batch for batch, _ in found(columns))


def _read(path: paths.ConcretePath, name: file_names.Name,
          requested: Sequence[str], reading: reading_lib.Reading,
          check_allocated: Callable[[str], None]) -> Any:
  """Returns columns of a file as a table of pyarrow.

  Args:
    path: the file.
    name: the parts of its name.
    requested: the names of the columns.
    reading: its limits.
    check_allocated: takes a name, for messages.
  """
  pyarrow = streams.import_pyarrow(path)
  with _opened(path, name) as (schema, batches):
    for column in requested:
      if column not in schema.names:
        raise column_lib.absent(repr(str(path)), column, schema.names)
    found = []
    for batch in batches(list(requested), reading=reading):
      check_allocated(f'the columns of {str(path)!r}')
      found.append(batch)
    if not found:
      return schema.empty_table().select(requested)
    return pyarrow.Table.from_batches(found)


def _check_allocated(reading, before, what):
  """Refuses what pyarrow has allocated if it is too much."""
  pyarrow = streams.import_pyarrow(what)
  reading.check_memory(pyarrow.total_allocated_bytes() - before, what)


def _features(path, table) -> dict[str, Any]:
  """Returns what `datasets` knows of the columns, by their names."""
  written = (table.schema.metadata or {}).get(_FEATURES)
  if written is None:
    return {}
  try:
    features = json.loads(written).get('info', {}).get('features') or {}
    if not all(isinstance(feature, dict) for feature in features.values()):
      raise ValueError('features that are no objects')
  except (ValueError, AttributeError, RecursionError) as err:
    raise checks.DataError(
        f'{str(path)!r} must have the features of `datasets` as it writes '
        f'them; got {checks.describe(err)}. Save the data set again.') from err
  return features


def _column(parts, feature, channels, tolerated) -> column_lib.Column:
  """Returns a column.

  Args:
    parts: the path and the ChunkedArray of each file.
    feature: what `datasets` knows of it.
    channels: of images.
    tolerated: how many of its cells may be unusable.
  """
  from pyarrow import types
  kind = next(_chunks(parts))[2].type  # That of no rows may be another.
  if types.is_dictionary(kind):
    parts = [(path, part.cast(kind.value_type)) for path, part in parts]
    kind = kind.value_type
  is_image = feature.get('_type') == 'Image' or str(kind) in _BYTES or (
      types.is_struct(kind) and kind.get_field_index('bytes') >= 0)
  if is_image:
    images = column_lib.Chunks([
        _Images(chunk, path, start, channels)
        for path, start, chunk in _chunks(parts)])
    return column_lib.Column(
        column_lib.IMAGE, images, None if tolerated else _missing(parts))
  if str(kind) in _TEXTS:
    return _texts(parts, tolerated)
  return _numbers(parts, feature, tolerated)


def _texts(parts, tolerated):
  """Returns a column of texts."""
  texts, faults, good = [], {}, None
  for path, start, chunk in _chunks(parts):
    for row, text in enumerate(chunk.to_pylist(), start):
      if column_lib.is_missing(text):
        faults[len(texts)] = column_lib.Fault(
            None, streams.place('row', row, path))
      elif good is None:
        good = column_lib.Fault(text, streams.place('row', row, path))
      texts.append(text)
  values = np.array(texts, object)
  if good is None or len(faults) > tolerated:
    return column_lib.Column(
        column_lib.TEXT, values, next(iter(faults.values())))
  values[list(faults)] = good.value
  return column_lib.Column(column_lib.TEXT, values, good, faults=faults)


def _numbers(parts, feature, tolerated):
  """Returns a column of numbers or of lists of numbers."""
  arrays, faults, size = [], {}, 0
  for path, start, chunk in _chunks(parts):
    converted = _as_array(chunk)
    shape = arrays[0].shape[1:] if arrays else None
    if converted is None or (shape is not None and
                             converted.shape[1:] != shape):
      found = _find_faults(chunk, path, start, shape)
      faults.update({size + row: fault for row, fault in found.items()})
      is_good = [row not in found for row in range(len(chunk))]
      if len(faults) > tolerated or not any(is_good):
        return column_lib.Column(
            column_lib.TEXT, (), next(iter(faults.values())))
      converted = column_lib.filled(_as_array(chunk.filter(is_good)), is_good)
    arrays.append(converted)
    size += len(chunk)
  classes = feature.get('names') if (
      feature.get('_type') == 'ClassLabel') else None
  if arrays[0].ndim > 1:
    return column_lib.Column(
        column_lib.ARRAY, column_lib.Chunks(arrays), faults=faults)
  return column_lib.Column(column_lib.NUMBER, np.concatenate(arrays),
                           names=None if classes is None else tuple(classes),
                           faults=faults)


def _chunks(parts):
  """Yields (path, number of the first row in its file, array)."""
  for path, part in parts:
    start = 0
    for chunk in part.chunks:
      if len(chunk):
        yield path, start, chunk
      start += len(chunk)


def _as_array(chunk) -> Optional[np.ndarray]:
  """Returns an array of finite numbers of one shape; None if it is not."""
  from pyarrow import compute
  from pyarrow import types
  shape = [len(chunk)]
  while True:
    if chunk.null_count:
      return None
    if hasattr(chunk, 'storage'):  # An extension type that `datasets` adds.
      chunk = chunk.storage
      continue
    kind = chunk.type
    if types.is_fixed_size_list(kind):
      shape.append(kind.list_size)
    elif types.is_list(kind) or types.is_large_list(kind):
      lengths = compute.min_max(compute.list_value_length(chunk)).as_py()
      if lengths['min'] != lengths['max']:
        return None
      shape.append(lengths['min'])
    else:
      break
    chunk = chunk.flatten()
  if not (types.is_integer(kind) or types.is_floating(kind) or
          types.is_boolean(kind)):
    return None
  array = chunk.to_numpy(zero_copy_only=False)
  if array.dtype.kind == 'f' and not np.isfinite(array).all():
    return None
  return array.reshape(shape)


def _find_faults(chunk, path, start, shape) -> dict[int, column_lib.Fault]:
  """Returns the cells that are no numbers, or of another shape, by rows."""
  faults = {}
  for i in range(len(chunk)):
    array = _as_array(chunk.slice(i, 1))
    if array is not None and shape is None:
      shape = array.shape[1:]
    if array is None or array.shape[1:] != shape:
      value = chunk[i].as_py()
      faults[i] = column_lib.Fault(
          None if column_lib.is_missing(value) else value,
          streams.place('row', start + i, path))
  return faults


def _missing(parts) -> Optional[column_lib.Fault]:
  """Returns the first cell without a value, or None."""
  from pyarrow import compute
  for path, start, chunk in _chunks(parts):
    if chunk.null_count:
      row = compute.index(compute.is_null(chunk), True).as_py()
      return column_lib.Fault(None, streams.place('row', start + row, path))
  return None


class _Images:
  """The images of a chunk, decoded when they are read."""

  def __init__(self, chunk: Any, path: os.PathLike, start: int, channels: int):
    self._chunk = chunk
    self._place = functools.partial(streams.place, 'row', path=path)
    self._start = start
    self._channels = channels

  def __len__(self) -> int:
    return len(self._chunk)

  def __getitem__(self, index: int) -> decode.Encoded:
    place = self._place(number=self._start + int(index))
    value = self._chunk[int(index)].as_py()
    content = value.get('bytes') if isinstance(value, dict) else value
    if content is None and isinstance(value, dict) and value.get('path'):
      place = repr(value['path'])
      with streams.explaining_read_errors(paths.as_path(value['path'])):
        with inputs.open_file(value['path']) as file:
          content = file.read()
    if not isinstance(content, bytes):
      raise checks.DataError(
          f'{place} must have the bytes of an image; got '
          f'{type(content).__name__}. Save the data set with its images.')
    return decode.Encoded(content, place, self._channels)
