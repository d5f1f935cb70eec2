"""The tensors of safetensors files, mapped into memory and never copied."""

from collections.abc import Iterator, Mapping
import json
import math
import os
import pathlib
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import checks

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
METADATA = '__metadata__'

# By their names in the header of a file.
DTYPES = {
    name: np.dtype(dtype) for name, dtype in (
        ('F64', np.float64), ('F32', np.float32), ('F16', np.float16),
        ('BF16', jnp.bfloat16), ('F8_E4M3', jnp.float8_e4m3fn),
        ('F8_E5M2', jnp.float8_e5m2), ('I64', np.int64),
        ('I32', np.int32), ('I16', np.int16), ('I8', np.int8),
        ('U64', np.uint64), ('U32', np.uint32), ('U16', np.uint16),
        ('U8', np.uint8), ('BOOL', np.bool_))
}

_PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle')
_HEADER = 100_000_000  # Bytes; what the format allows.


class TensorReader(Protocol):
  """The tensors of a file or folder.

  Attributes:
    path: where they are, for messages.
    shapes: `{name: ShapeDtypeStruct}`, known without reading them.
  """

  path: str
  shapes: Mapping[str, jax.ShapeDtypeStruct]

  def read(self, name: str, dtype: np.dtype) -> np.ndarray:
    """Returns a tensor: mapped as it is, or decoded to `dtype`."""


class _Place(NamedTuple):
  """Where the bytes of a tensor are."""

  path: pathlib.Path
  offset: int
  shape: jax.ShapeDtypeStruct


class Safetensors:
  """The tensors of a folder: of one file, or of shards with an index.

  Only headers are read. What `read` returns is a view of the file, of which the
  system loads what is used and drops what it needs room for.

  Attributes:
    path: the folder.
    shapes: `{name: ShapeDtypeStruct}`.

  Args:
    folder: with `model.safetensors` or `model.safetensors.index.json`.

  Raises:
    DataError: there are none, or a file is missing or broken.
  """

  def __init__(self, folder: pathlib.Path):
    self.path = str(folder)
    self._places: dict[str, _Place] = {}
    if (folder / WEIGHTS).exists():
      files, wanted = [WEIGHTS], {}
    elif (folder / INDEX).exists():
      wanted = _weight_map(folder / INDEX)
      files = sorted(set(wanted.values()))
    else:
      raise _nothing(folder)
    for name in files:
      for tensor, place in _places(folder / name):
        if tensor in self._places:
          raise _broken(folder / name, f'{tensor} is in another file too')
        self._places[tensor] = place
    for tensor, name in wanted.items():
      if tensor not in self._places or (
          self._places[tensor].path != folder / name):
        raise _broken(folder / name, f'it does not hold {tensor}')
    self.shapes = {name: place.shape for name, place in self._places.items()}

  def read(self, name: str, dtype: np.dtype) -> np.ndarray:
    """Returns a tensor as it is in the file, mapped; `dtype` is not used.

    Args:
      name: of the tensor.
      dtype: to decode to, of a reader that has to decode.
    """
    del dtype
    path, offset, like = self._places[name]
    if not math.prod(like.shape):  # Nothing can be mapped.
      return np.empty(like.shape, like.dtype)
    return np.memmap(path, like.dtype, 'r', offset, like.shape)


def read_header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
  """Returns the header of a safetensors file, and where its data begins.

  Args:
    path: the file.

  Raises:
    DataError: the file cannot be read, or is something else.
  """
  try:
    with open(path, 'rb') as file:
      length = int.from_bytes(file.read(8), 'little')
      content = file.read(length) if length <= _HEADER else b''
    header = json.loads(content)
    if len(content) < length or not isinstance(header, dict):
      raise ValueError('its header is cut short')
  except (OSError, ValueError) as err:
    raise _broken(path, checks.one_line(err)) from err
  return header, 8 + length


def _places(path) -> Iterator[tuple[str, _Place]]:
  """Yields the tensors of a file, having checked that it is whole."""
  header, start = read_header(path)
  header.pop(METADATA, None)
  spans = []
  for name, entry in header.items():
    try:
      dtype = DTYPES[entry['dtype']]
      shape = tuple(map(int, entry['shape']))
      begin, end = map(int, entry['data_offsets'])
    except (KeyError, TypeError, ValueError) as err:
      raise _broken(path, f'{name} is {entry}, which is not known') from err
    if min(shape, default=0) < 0 or (
        end - begin != math.prod(shape) * dtype.itemsize):
      raise _broken(path, f'{name} has {end - begin} bytes for '
                          f'{dtype}{list(shape)}')
    spans.append((begin, end, name))
    yield name, _Place(path, start + begin, jax.ShapeDtypeStruct(shape, dtype))
  position = 0
  for begin, end, name in sorted(spans):
    if begin != position:
      kind = 'overlaps another' if begin < position else 'leaves a gap before'
      raise _broken(path, f'{name} {kind}')
    position = end
  size = os.path.getsize(path) - start
  if size != position:
    raise _broken(path, f'it has {size} bytes of data instead of {position}')


def _weight_map(path):
  try:
    found = json.loads(path.read_bytes())['weight_map']
    if not all(name == os.path.basename(name) for name in found.values()):
      raise ValueError('it names files elsewhere')
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
    raise _broken(path, checks.describe(err)) from err
  for name in sorted(set(found.values())):
    if not (path.parent / name).exists():
      raise _broken(path, f'{name}, which it names, is missing')
  return found


def _nothing(folder):
  """Returns the error of a folder without safetensors."""
  found = sorted(path.name for path in folder.iterdir())
  pickles = [name for name in found if name.endswith(_PICKLES)]
  remedy = 'Give the folder that holds config.json and the weights'
  if pickles:
    remedy = (f'{pickles[0]} may run any code and is not opened: convert it '
              'with `save_pretrained(folder, safe_serialization=True)` of '
              'transformers, where you trust it')
  return checks.DataError(
      f'interop.read: {folder} must hold {WEIGHTS} or {INDEX}; got '
      f'{", ".join(found[:8]) or "an empty folder"}. {remedy}.')


def _broken(path, reason):
  return checks.DataError(
      f'interop.read: {path} must be a whole safetensors file or index; got '
      f'one of which {reason}. Fetch the model again.')
