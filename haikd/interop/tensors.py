"""The tensors of safetensors files, mapped into memory and not copied."""

from collections.abc import Iterator, Mapping
import json
import math
import os
import pathlib
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from haikd.core import checks
from haikd.core import notes
from haikd.storage import files
from haikd.storage import regular
from haikd.storage import safetensors_header

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'

# What wrappers of PyTorch put before or into the names of all tensors.
_OUTER = ('_orig_mod.', 'module.', '_fsdp_wrapped_module.', 'base_model.model.')
_INNER = ('_orig_mod.', '_fsdp_wrapped_module.', '_checkpoint_wrapped_module.')
# Parts of the names of tensors that peft adds or renames.
_ADAPTERS = ('.lora_', '.base_layer.', '.modules_to_save.')

_PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle')
_GIT_LFS = b'version '  # How a pointer begins.


class TensorReader(Protocol):
  """The tensors of a file or folder.

  Attributes:
    path: the file or folder, for messages.
    shapes: `{name: ShapeDtypeStruct}`, known without reading the tensors.
  """

  path: str

  @property
  def shapes(self) -> Mapping[str, jax.ShapeDtypeStruct]:
    """See above."""

  def read(self, name: str, dtype: np.dtype) -> np.ndarray:
    """Returns a tensor: mapped as it is stored, or decoded to `dtype`."""


class _StoredTensor(NamedTuple):
  """The file of a tensor, the offset of its bytes, and what they hold."""

  path: pathlib.Path
  offset: int
  spec: jax.ShapeDtypeStruct


class Safetensors:
  """The tensors of a folder: of one file, or of shards with an index.

  Only headers are read. `read` returns a view of the file: the system loads
  the pages that are used, and drops them when it needs room.

  Attributes:
    path: the folder.
    shapes: `{name: ShapeDtypeStruct}`.

  Args:
    folder: with `model.safetensors` or `model.safetensors.index.json`.

  Raises:
    DataError: the folder has no safetensors, or a file is missing or broken.
  """

  def __init__(self, folder: pathlib.Path):
    self.path = str(folder)
    self._stored: dict[str, _StoredTensor] = {}
    weight_map: dict[str, str] = {}
    if (folder / WEIGHTS).exists():
      files = [WEIGHTS]
    elif (folder / INDEX).exists():
      weight_map = _read_weight_map(folder / INDEX)
      files = sorted(set(weight_map.values()))
    else:
      raise _no_safetensors(folder)
    for file in files:
      for name, stored in _read_tensors(folder / file):
        if name in self._stored:
          raise _broken(folder / file, f'{name} is in another file too')
        self._stored[name] = stored
    for name, file in weight_map.items():
      if name not in self._stored or self._stored[name].path != folder / file:
        raise _broken(folder / file, f'it does not hold {name}')
    _check_merged(folder, self._stored)
    self._stored = _unwrapped(folder, self._stored)
    self.shapes = {name: stored.spec for name, stored in self._stored.items()}

  def read(self, name: str, dtype: np.dtype) -> np.ndarray:
    """Returns a tensor as it is in the file, mapped.

    Args:
      name: of the tensor.
      dtype: ignored; only a reader of coded tensors decodes to it.
    """
    del dtype
    path, offset, spec = self._stored[name]
    if not math.prod(spec.shape):  # No byte can be mapped.
      return np.empty(spec.shape, spec.dtype)
    return np.memmap(path, spec.dtype, 'r', offset, spec.shape)


class Joined:
  """The tensors of a folder, with those of folders inside it.

  Attributes:
    path: the folder.
    shapes: `{name: ShapeDtypeStruct}`; tensors of a folder inside have its name
      and '/' before theirs.

  Args:
    reader: of the folder.
    inner: readers by the names of the folders inside.
  """

  def __init__(self, reader: TensorReader, inner: Mapping[str, TensorReader]):
    self.path = reader.path
    self._readers = {'': reader, **inner}
    self.shapes = dict(reader.shapes)
    for folder, other in inner.items():
      self.shapes.update(
          {f'{folder}/{name}': spec for name, spec in other.shapes.items()})

  def read(self, name: str, dtype: np.dtype) -> np.ndarray:
    """Returns a tensor as the reader of its folder does."""
    folder, _, name = name.rpartition('/')
    return self._readers[folder].read(name, dtype)


def read_header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
  """Returns the header of a safetensors file and the offset of its data.

  The package safetensors opens the file first. It refuses what does not follow
  the format: shapes and offsets that are no whole numbers, gaps, overlaps, and
  another size than the header says.

  Args:
    path: the file.

  Raises:
    DataError: the file cannot be read, or is no safetensors file.
  """
  import safetensors
  try:
    regular.check(path)
    with open(path, 'rb') as file:
      start = file.read(8)
      if start == _GIT_LFS:
        raise ValueError('it is a pointer of Git LFS; `git lfs pull` fetches '
                         'the file itself')
      with safetensors.safe_open(path, 'numpy'):
        pass
      length = int.from_bytes(start, 'little')
      header = json.loads(file.read(length), object_pairs_hook=_without_twins)
  except checks.DataError:
    raise
  except (OSError, ValueError, safetensors.SafetensorError) as err:
    raise _broken(path, checks.one_line(err).rstrip('.')) from err
  return header, 8 + length


def _without_twins(pairs):
  """Returns a JSON object; refuses names that it has twice."""
  values = dict(pairs)
  if len(values) < len(pairs):
    names = [name for name, _ in pairs]
    twin = next(name for name in names if names.count(name) > 1)
    raise ValueError(f'{twin} is twice in its header')
  return values


def dtype_and_shape(spec: Any) -> str:
  """Returns the dtype and shape of an array as text."""
  return f'{spec.dtype}{list(spec.shape)}'


def _read_tensors(path) -> Iterator[tuple[str, _StoredTensor]]:
  """Yields the tensors of a file."""
  header, start = read_header(path)
  header.pop(safetensors_header.METADATA, None)
  for name, entry in header.items():
    if entry['dtype'] not in safetensors_header.DTYPES:
      raise _broken(path, f'{name} is of {entry["dtype"]}, which is not known')
    shape = tuple(entry['shape'])
    # With an axis of 0 the others could be anything.
    if math.prod(max(size, 1) for size in shape) > 2**62:
      raise _broken(path, f'{name} has the shape {list(shape)}')
    spec = jax.ShapeDtypeStruct(
        shape, safetensors_header.DTYPES[entry['dtype']])
    yield name, _StoredTensor(path, start + entry['data_offsets'][0], spec)


def _check_merged(folder, names):
  """Refuses the tensors of an adapter beside those of a model."""
  found = [name for name in names if any(part in name for part in _ADAPTERS)]
  if found:
    raise checks.DataError(
        f'{folder} must hold the tensors of one model; got those of an adapter '
        f'too: {checks.abbreviate(sorted(found), limit=2)}. Merge it where '
        'peft is installed: call `merge_and_unload()` of the model, and '
        '`save_pretrained(folder)` of what it returns.')


def _unwrapped(folder, stored):
  """Returns tensors without what wrappers add to all of their names."""
  names = {name: name for name in stored}
  removed = []
  for part in _INNER:
    if any(f'.{part}' in name for name in stored):
      names = {name: short.replace(f'.{part}', '.')
               for name, short in names.items()}
      removed.append(part)
  while outer := next((part for part in _OUTER if names and all(
      short.startswith(part) for short in names.values())), None):
    names = {name: short.removeprefix(outer) for name, short in names.items()}
    removed.append(outer)
  if not removed:
    return stored
  if len(set(names.values())) < len(names):
    raise checks.DataError(
        f'{folder} must hold each tensor once; got some twice, with and '
        f'without {" or ".join(removed)}. Save the model again, unwrapped.')
  notes.say(f'{folder}: {" and ".join(map(repr, removed))} is left out of the '
            'names of all tensors; a wrapper of PyTorch has added it.')
  return {short: stored[name] for name, short in names.items()}


def _read_weight_map(path) -> dict[str, str]:
  """Returns `{tensor: file}` of an index."""
  weight_map = files.read_json(path)
  if isinstance(weight_map, dict):
    weight_map = weight_map.get('weight_map')
  if not isinstance(weight_map, dict) or not all(
      isinstance(file, str) for file in weight_map.values()):
    raise _broken(path, 'it has no weight_map of names')
  for file in sorted(set(weight_map.values())):
    if file != os.path.basename(file):
      raise _broken(path, f'it names the file {file[:80]!r} in another folder')
    # Unlike `pathlib`, `os.path` also answers for a name that is too long.
    if not os.path.isfile(path.parent / file):
      raise _broken(path, f'{file[:80]!r}, which it names, is no file')
  return weight_map


def _no_safetensors(folder):
  """Returns the error of a folder without safetensors."""
  names = sorted(path.name for path in folder.iterdir())
  pickles = [name for name in names if name.endswith(_PICKLES)]
  remedy = 'Give the folder that holds config.json and the weights'
  if any(name.endswith('.safetensors') for name in names):
    remedy = f'Fetch {INDEX} too, or rename a single file to {WEIGHTS}'
  elif pickles:
    remedy = (f'{pickles[0]} may run any code and is not opened. If you trust '
              'it, convert it with `save_pretrained(folder, '
              'safe_serialization=True)` of transformers')
  return checks.DataError(
      f'{folder} must hold {WEIGHTS} or {INDEX}; got '
      f'{checks.abbreviate(names, limit=8) or "an empty folder"}. {remedy}.')


def _broken(path, problem):
  """Returns the error of a broken file."""
  return checks.DataError(
      f'{path} must be a complete safetensors file or index; got a broken one: '
      f'{problem}. Fetch the model again.')
