"""Reads a complete folder of records, which may be damaged."""

import io
import os
from typing import Any, ContextManager

import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.storage import archive as archive_lib
from haikd.storage import files
from haikd.storage import inputs
from haikd.storage import paths
from haikd.teacher_records import folder as folder_lib
from haikd.teacher_records import hidden
from haikd.teacher_records import rows as rows_lib

_AGAIN = 'Start --mode=teach again with another folder'


def read_manifest(folder: paths.ConcretePath) -> dict[str, Any]:
  """Returns the manifest of complete records.

  Args:
    folder: of the records.

  Raises:
    DataError: there are none, or a shard is missing or cut short.
  """
  names = paths.names(folder)
  if folder_lib.MANIFEST not in names:
    state = ('records that are not complete' if folder_lib.RECIPE in names else
             'a folder without records')
    raise checks.DataError(
        f'{folder_lib.FIELD} must be a folder that --mode=teach has filled; '
        f'got {folder}, {state}. Start this config with --mode=teach.')
  with explaining_damage(folder):
    manifest = files.read_json(folder / folder_lib.MANIFEST)
    _check_manifest(folder, names, manifest)
  return manifest


def _check_manifest(folder, names, manifest):
  """Refuses a manifest whose shards are not there as it says."""
  for shard in manifest['shards']:
    if shard['file'] != os.path.basename(shard['file']):
      raise ValueError(f'the file {shard["file"]!r} in another folder')
    if type(shard['records']) is not int or shard['records'] < 0:
      raise ValueError(f'a shard of {shard["records"]!r} records')
    path = folder / shard['file']
    size = inputs.size(path) if shard['file'] in names else None
    if size != shard['bytes']:
      got = 'none' if size is None else f'{size} bytes'
      raise checks.DataError(
          f'{path} must be the shard of {shard["bytes"]} bytes that '
          f'{folder_lib.MANIFEST} names; got {got}. Start --mode=teach again, '
          'which writes what is missing.')


def explaining_damage(folder: paths.ConcretePath) -> ContextManager[None]:
  """Turns any error that a damaged manifest causes into one that names it."""
  return files.explaining_damage(folder / folder_lib.MANIFEST, _AGAIN)


def read_index(folder: paths.ConcretePath) -> np.ndarray:
  """Returns the digest of each row, uint8 `[rows, 16]`."""
  path = folder / folder_lib.INDEX
  with files.explaining_damage(path, _AGAIN):
    file = io.BytesIO(paths.read(path))
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.uint8 or shape[1:] != (rows_lib.DIGEST_BYTES,):
      raise ValueError(f'{dtype}{list(shape)}')
    return np.frombuffer(file.read(), np.uint8).reshape(shape)


def read_unembedding(folder: paths.ConcretePath) -> base.LinearLogits:
  """Returns what `complete` was given; NumPy arrays without hidden states."""
  path = folder / folder_lib.UNEMBEDDING
  if paths.is_remote(path):
    with files.explaining_damage(path, _AGAIN):
      with np.load(io.BytesIO(paths.read(path))) as archive:
        return _logits(archive)
  with archive_lib.opened(
      path, f'{folder_lib.FIELD} must hold an archive of arrays',
      _AGAIN) as archive:
    return _logits(archive)


def _logits(archive):
  return base.LinearLogits(
      hidden.ABSENT, **{name: archive[name] for name in archive})
