"""The folder of records: shards, and the manifest that completes it.

A record holds the digest of its row, a checksum, and what the codec wrote. A
shard appears atomically, beside a file with its size and checksum. The manifest
is written last.
"""

from collections.abc import Iterable, Mapping
import pathlib
from typing import Any, Optional
import zlib

import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.storage import files
from haikd.storage import inputs
from haikd.storage import outputs
from haikd.storage import paths
from haikd.teacher_records import recipe as recipe_lib
from haikd.teacher_records import rows as rows_lib

FIELD = 'config.teacher.records.path'

RECIPE, MANIFEST, INDEX = 'recipe.json', 'manifest.json', 'index.npy'
UNEMBEDDING = 'unembedding.npz'
CRC_BYTES = 4  # Of a record, behind the digest.

_AGAIN = 'Start --mode=teach again with another folder'


def shard_name(number: int) -> str:
  """Returns the name of a shard."""
  return f'{number:05d}.array_record'


def place(path: str) -> paths.ConcretePath:
  """Returns the folder that `config.teacher.records.path` names."""
  if paths.is_remote(path):
    return paths.as_path(path)
  return pathlib.Path(path).expanduser()


def read_recipe(folder: paths.ConcretePath) -> Optional[recipe_lib.Recipe]:
  """Returns what a folder holds or is being filled with; None for nothing."""
  path = folder / RECIPE
  if not paths.exists(path):
    return None
  with files.explaining_damage(path, _AGAIN):
    return recipe_lib.Recipe(**files.read_json(path))


def begin(folder: paths.ConcretePath, recipe: recipe_lib.Recipe) -> None:
  """Makes a folder, or checks that it is being filled with the same records.

  Args:
    folder: of the records.
    recipe: of the records.

  Raises:
    DataError: it holds others, or it cannot be written to.
  """
  found = read_recipe(folder)
  if found is None:
    try:
      paths.make_folder(folder)
      files.write_json(folder / RECIPE, recipe._asdict())
    except OSError as err:
      raise checks.DataError(
          f'{FIELD} must be a folder that can be written to; got {folder} '
          f'({checks.one_line(err)}). Choose another.') from err
  elif differences := recipe.differences(found):
    raise checks.DataError(
        f'{FIELD} must be empty, or hold records of this teacher, data and '
        f'these options; got {folder}, with {_told(differences)}. Choose '
        'another folder.')
  if not paths.is_remote(folder):
    paths.remove_leftovers(pathlib.Path(folder))


def _told(differences):
  """Returns differences in words: what is there, and what was asked for."""
  return checks.abbreviate(
      [f'{name}={_short(there)} where it should be {_short(expected)}'
       for name, (expected, there) in differences.items()], limit=3)


def _short(value):
  return value[:12] if isinstance(value, str) and len(value) > 40 else value


def missing(folder: paths.ConcretePath, shards: int) -> list[int]:
  """Returns the numbers of the shards that are not there, or are damaged.

  Args:
    folder: of the records.
    shards: how many there are.
  """
  names = set(paths.names(folder))
  return [number for number in range(shards)
          if not _is_whole(folder, number, names)]


def _is_whole(folder, number, names):
  path, statistics = folder / shard_name(number), _statistics(folder, number)
  if not {path.name, statistics.name} <= names:
    return False
  with files.explaining_damage(statistics, _AGAIN):
    expected = files.read_json(statistics)
    return (inputs.size(path) == expected['bytes'] and
            files.checksum(path) == expected['sha256'])


def _statistics(folder, number):
  return folder / f'{number:05d}.json'


def write_shard(folder: paths.ConcretePath, number: int,
                records: Iterable[tuple[bytes, bytes]],
                positions: int) -> dict[str, Any]:
  """Writes a shard, which appears at once.

  Args:
    folder: of the records.
    number: of the shard.
    records: the digest of the row of each, and what the codec wrote.
    positions: how many positions they hold, of all copies.

  Returns:
    Its statistics.
  """
  from array_record.python import array_record_module
  digests = []
  with outputs.staged(folder / shard_name(number)) as temporary:
    # Rows are read in random order: each is compressed on its own.
    writer = array_record_module.ArrayRecordWriter(
        str(temporary), 'group_size:1')
    try:
      for digest, content in records:
        writer.write(
            digest + zlib.crc32(content).to_bytes(CRC_BYTES) + content)
        digests.append(digest.hex())
    finally:
      writer.close()
    statistics = dict(
        records=len(digests), positions=positions,
        bytes=temporary.stat().st_size, sha256=files.checksum(temporary),
        digests=digests)
  files.write_json(_statistics(folder, number), statistics)
  return statistics


def complete(folder: paths.ConcretePath, recipe: recipe_lib.Recipe, shards: int,
             network: Mapping[str, Any],
             unembedding: Optional[base.LinearLogits]) -> dict[str, Any]:
  """Writes what completes a folder, the manifest last.

  Args:
    folder: of the records, with all shards.
    recipe: of the records.
    shards: how many there are.
    network: what the config says of the teacher.
    unembedding: from `hidden.rotated`; None for other kinds.

  Returns:
    The manifest.
  """
  known = [files.read_json(_statistics(folder, x)) for x in range(shards)]
  digests = b''.join(bytes.fromhex(x) for one in known for x in one['digests'])
  index = np.frombuffer(digests, np.uint8).reshape(-1, rows_lib.DIGEST_BYTES)
  with outputs.staged(folder / INDEX) as path, open(path, 'wb') as file:
    np.save(file, index[::recipe.copies])
  if unembedding is not None:
    arrays = {name: x for name, x in unembedding._asdict().items()
              if x is not None}
    name = folder / UNEMBEDDING
    with outputs.staged(name) as path, open(path, 'wb') as file:
      np.savez(file, **arrays)
  manifest = dict(
      recipe=recipe._asdict(), network=network,
      rows=len(index) // recipe.copies,
      positions=sum(x['positions'] for x in known),
      bytes=sum(x['bytes'] for x in known),
      shards=[dict(file=shard_name(number), **{
          name: x[name] for name in ('records', 'bytes', 'sha256')})
          for number, x in enumerate(known)])
  files.write_json(folder / MANIFEST, manifest)
  return manifest
