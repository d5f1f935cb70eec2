"""Writes tensors to safetensors files, one after another."""

from collections.abc import Callable, Sequence
import math
import os
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from haikd.interop import tensors
from haikd.storage import files
from haikd.storage import safetensors_header

_MAX_SHARD = 5 * 10**9  # Bytes of a file, unless one tensor is larger.
_PRODUCER = 'haikd'


class PlannedTensor(NamedTuple):
  """A tensor that is to be written.

  Attributes:
    name: in the file.
    spec: its shape and dtype.
    read: returns its values; called when they are written.
  """

  name: str
  spec: jax.ShapeDtypeStruct
  read: Callable[[], np.ndarray]

  @property
  def size(self) -> int:
    """The size in bytes."""
    return math.prod(self.spec.shape) * self.spec.dtype.itemsize


def write(folder: pathlib.Path, planned: Sequence[PlannedTensor], *,
          limit: int = _MAX_SHARD) -> None:
  """Writes tensors to one file, or to shards and their index.

  Args:
    folder: to write to.
    planned: the tensors, in the order in which they are written. Those with a
      folder before their name are written to a file in that folder.
    limit: the most bytes of a file; a larger tensor has a file to itself.

  Raises:
    OSError: a file cannot be written.
  """
  by_folder: dict[str, list[PlannedTensor]] = {}
  for tensor in planned:
    inner, _, name = tensor.name.rpartition('/')
    by_folder.setdefault(inner, []).append(tensor._replace(name=name))
  outer = by_folder.pop('', [])
  for inner, part in by_folder.items():
    (folder / inner).mkdir(exist_ok=True)
    _write_file(folder / inner / tensors.WEIGHTS, part)
  shards: list[list[PlannedTensor]] = [[]]
  size = 0
  for tensor in outer:
    if shards[-1] and size + tensor.size > limit:
      shards.append([])
      size = 0
    shards[-1].append(tensor)
    size += tensor.size
  if len(shards) == 1:
    _write_file(folder / tensors.WEIGHTS, shards[0])
    return
  weight_map = {}
  for number, shard in enumerate(shards, start=1):
    name = f'model-{number:05}-of-{len(shards):05}.safetensors'
    _write_file(folder / name, shard)
    weight_map.update({tensor.name: name for tensor in shard})
  total = sum(tensor.size for tensor in outer)
  files.write_json(
      folder / tensors.INDEX,
      dict(metadata=dict(total_size=total, producer=_PRODUCER),
           weight_map=weight_map))


def _write_file(path, shard):
  header = safetensors_header.encode(
      {tensor.name: tensor.spec for tensor in shard},
      dict(format='pt', producer=_PRODUCER))
  with open(path, 'wb') as file:
    file.write(header)
    for tensor in shard:
      values = np.ascontiguousarray(tensor.read())
      file.write(values.reshape(-1).view(np.uint8).data)
    file.flush()
    os.fsync(file.fileno())
