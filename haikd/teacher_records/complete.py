"""Reads a complete folder of records, which may be damaged."""

from collections.abc import Iterator, Mapping
import os
import pathlib
from typing import Any, ContextManager
import zlib

import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.storage import archive as archive_lib
from haikd.storage import files
from haikd.teacher_records import folder as folder_lib
from haikd.teacher_records import hidden
from haikd.teacher_records import rows as rows_lib

_AGAIN = 'Start --mode=teach again with another folder'


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the manifest of complete records.

  Args:
    folder: of the records.

  Raises:
    DataError: there are none, or a shard is missing or cut short.
  """
  if not (folder / folder_lib.MANIFEST).exists():
    is_begun = (folder / folder_lib.RECIPE).exists()
    state = ('records that are not complete' if is_begun else
             'a folder without records')
    raise checks.DataError(
        f'{folder_lib.FIELD} must be a folder that --mode=teach has filled; '
        f'got {folder}, {state}. Start this config with --mode=teach.')
  with explaining_damage(folder):
    manifest = files.read_json(folder / folder_lib.MANIFEST)
    _check_manifest(folder, manifest)
  return manifest


def _check_manifest(folder, manifest):
  """Refuses a manifest whose shards are not there as it says."""
  for shard in manifest['shards']:
    if shard['file'] != os.path.basename(shard['file']):
      raise ValueError(f'the file {shard["file"]!r} in another folder')
    if type(shard['records']) is not int or shard['records'] < 0:
      raise ValueError(f'a shard of {shard["records"]!r} records')
    path = folder / shard['file']
    size = path.stat().st_size if path.exists() else None
    if size != shard['bytes']:
      got = 'none' if size is None else f'{size} bytes'
      raise checks.DataError(
          f'{path} must be the shard of {shard["bytes"]} bytes that '
          f'{folder_lib.MANIFEST} names; got {got}. Start --mode=teach again, '
          'which writes what is missing.')


def explaining_damage(folder: pathlib.Path) -> ContextManager[None]:
  """Turns any error that a damaged manifest causes into one that names it."""
  return files.explaining_damage(folder / folder_lib.MANIFEST, _AGAIN)


def read_index(folder: pathlib.Path) -> np.ndarray:
  """Returns the digest of each row, uint8 `[rows, 16]`."""
  path = folder / folder_lib.INDEX
  with files.explaining_damage(path, _AGAIN):
    index = np.array(np.lib.format.open_memmap(path, mode='r'))
    if index.dtype != np.uint8 or index.shape[1:] != (rows_lib.DIGEST_BYTES,):
      raise ValueError(f'{index.dtype}{list(index.shape)}')
    return index


def read_unembedding(folder: pathlib.Path) -> base.LinearLogits:
  """Returns what `complete` was given; NumPy arrays without hidden states."""
  with archive_lib.opened(
      folder / folder_lib.UNEMBEDDING,
      f'{folder_lib.FIELD} must hold an archive of arrays', _AGAIN) as archive:
    return base.LinearLogits(
        hidden.ABSENT, **{name: archive[name] for name in archive})


class Shards:
  """The records of a complete folder, by number.

  Args:
    folder: of the records.
    manifest: its manifest.

  Raises:
    DataError: a shard cannot be opened.
  """

  def __init__(self, folder: pathlib.Path, manifest: Mapping[str, Any]):
    from array_record.python import array_record_data_source
    self._folder = folder
    self._shards = manifest['shards']
    names = [shard['file'] for shard in self._shards]
    try:
      self._source = array_record_data_source.ArrayRecordDataSource(
          [str(folder / name) for name in names])
    except Exception as err:  # Of array_record, which has no type for it.
      damaged = folder_lib.missing(folder, len(names))
      raise self._damaged([names[number] for number in damaged],
                          checks.one_line(err)) from err

  def read(self, numbers: list[int],
           digests: list[bytes]) -> Iterator[bytes]:
    """Yields what the codec wrote.

    Args:
      numbers: of records.
      digests: of their rows.

    Raises:
      DataError: a record is damaged.
    """
    try:
      records = self._source.__getitems__(numbers)
    except Exception as err:  # As above.
      raise self._damaged(self._names(numbers), checks.one_line(err)) from err
    for number, digest, record in zip(numbers, digests, records):
      size = rows_lib.DIGEST_BYTES
      start = size + folder_lib.CRC_BYTES
      crc, content = record[size:start], record[start:]
      if (record[:size] != digest or
          crc != zlib.crc32(content).to_bytes(folder_lib.CRC_BYTES)):
        raise self._damaged(self._names([number]), 'another checksum')
      yield content

  def _names(self, numbers):
    """Returns the names of the shards that hold records."""
    ends = np.cumsum([shard['records'] for shard in self._shards])
    places = np.searchsorted(ends, numbers, side='right')
    return sorted({self._shards[int(place)]['file'] for place in places})

  def _damaged(self, names, what):
    return checks.DataError(
        f'{self._folder / " or ".join(names)} must be as it was '
        f'written; got {what}. Start --mode=teach again, which writes damaged '
        'shards anew.')
