"""Reads the shards of complete records."""

from collections.abc import Iterator, Mapping
import pathlib
from typing import Any
import zlib

import numpy as np

from haikd.core import checks
from haikd.core import notes
from haikd.storage import files
from haikd.storage import outputs
from haikd.storage import paths
from haikd.teacher_records import folder as folder_lib
from haikd.teacher_records import rows as rows_lib

_CACHE = 'records'


class Shards:
  """The records of a complete folder, by number.

  Those in a bucket are fetched first: they are read in random order.

  Args:
    folder: of the records.
    manifest: its manifest.

  Raises:
    DataError: a shard cannot be opened.
  """

  def __init__(self, folder: paths.ConcretePath, manifest: Mapping[str, Any]):
    from array_record.python import array_record_data_source
    self._folder = folder
    self._shards = manifest['shards']
    names = [shard['file'] for shard in self._shards]
    here = [str(folder / name) for name in names]
    if paths.is_remote(folder):
      here = self._fetch()
    try:
      self._source = array_record_data_source.ArrayRecordDataSource(here)
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
      start = rows_lib.DIGEST_BYTES
      end = start + folder_lib.CRC_BYTES
      crc, content = record[start:end], record[end:]
      if (record[:start] != digest or
          crc != zlib.crc32(content).to_bytes(folder_lib.CRC_BYTES)):
        raise self._damaged(self._names([number]), 'another checksum')
      yield content

  def _fetch(self) -> list[str]:
    """Returns local copies of the shards, which are named by their content."""
    try:
      folder = outputs.cache(_CACHE)
      folder.mkdir(parents=True, exist_ok=True)
      copies = [folder / f'{x["sha256"]}.array_record' for x in self._shards]
      missing = [(shard, copy) for shard, copy in zip(self._shards, copies)
                 if not _is_copy(copy, shard)]
      if missing:
        size = sum(shard['bytes'] for shard, _ in missing)
        notes.say(f'{len(missing)} shards of {self._folder}, {size / 1e6:,.1f} '
                  f'MB, are copied to {folder}.')
      for shard, copy in missing:
        with outputs.staged(copy) as temporary:
          temporary.write_bytes(paths.read(self._folder / shard['file']))
          if files.checksum(temporary) != shard['sha256']:
            raise self._damaged([shard['file']], 'another checksum')
    except (OSError, RuntimeError) as err:  # RuntimeError: no home folder.
      raise checks.DataError(
          f'{folder_lib.FIELD}, {self._folder}, must be copied to this machine '
          f'to be read; got {checks.describe(err)}. Make room, or set '
          'XDG_CACHE_HOME to a folder with some.') from err
    return [str(copy) for copy in copies]

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


def _is_copy(path: pathlib.Path, shard: Mapping[str, Any]) -> bool:
  """Returns whether a file is a copy of a shard, and as it was written."""
  return (path.exists() and path.stat().st_size == shard['bytes'] and
          files.checksum(path) == shard['sha256'])
