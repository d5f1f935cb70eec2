"""The tensors and metadata of a GGUF file. Tensors are decoded when read."""

from collections.abc import Mapping
import functools
import importlib.util
import math
import os
import pathlib
from typing import Any, NamedTuple, Union

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import checks
from haikd.storage import gguf_header

_DECODED_AT_ONCE = 2**18  # Numbers, about.

# The dtypes of what is not quantised, by the names of their kinds.
_PLAIN = {
    name: np.dtype(dtype) for name, dtype in (
        ('F16', np.float16), ('BF16', jnp.bfloat16), ('F32', np.float32),
        ('F64', np.float64), ('I8', np.int8), ('I16', np.int16),
        ('I32', np.int32), ('I64', np.int64))
}


class _GgufTensor(NamedTuple):
  """The place of a tensor's bytes in the file, and what they mean."""

  offset: int
  stored: tuple[int, ...]  # The shape of what is stored.
  dtype: np.dtype  # Of what is stored.
  kind: Any  # A gguf.GGMLQuantizationType.
  shape: tuple[int, ...]  # Of the tensor.


class Gguf:
  """The tensors of a GGUF file, mapped unless they are quantised.

  Attributes:
    path: the file.
    shapes: `{name: ShapeDtypeStruct}`, with float32 for quantised tensors.
    metadata: `{key: value}`, without the keys of the tokenizer.

  Args:
    path: the file.

  Raises:
    DataError: the file cannot be read, or is quantised in a way that cannot be
      decoded, or the package gguf is not installed.
  """

  def __init__(self, path: pathlib.Path):
    if importlib.util.find_spec('gguf') is None:
      raise checks.DataError(
          f'{path}: the package gguf must be installed to read the file. Run '
          "`pip install 'haikd[text]'`.")
    self.path = str(path)
    try:
      stat = os.stat(path)
      # Cached until the size or the time of the file changes.
      metadata, tensors = _open(self.path, stat.st_size, stat.st_mtime_ns)
    except checks.DataError:
      raise
    except Exception as err:  # A wrong offset causes errors of any kind.
      raise checks.DataError(
          f'{path} must be a complete GGUF file; got one that cannot be read '
          f'({checks.describe(err)}). Fetch it again.') from err
    self.metadata: Mapping[str, Any] = metadata
    self._tensors: Mapping[str, _GgufTensor] = tensors
    self.shapes = {
        name: jax.ShapeDtypeStruct(
            tensor.shape,
            np.float32 if tensor.dtype == np.uint8 else tensor.dtype)
        for name, tensor in self._tensors.items()
    }

  def read(self, name: str, dtype: np.dtype) -> Union[np.ndarray, 'Quantised']:
    """Returns a tensor: mapped, or decoded when needed if it is quantised.

    Args:
      name: of the tensor.
      dtype: to decode to.
    """
    tensor = self._tensors[name]
    if not math.prod(tensor.stored):  # No byte can be mapped.
      return np.empty(tensor.shape, self.shapes[name].dtype)
    stored = np.memmap(
        self.path, tensor.dtype, 'r', tensor.offset, tensor.stored)
    if tensor.dtype != np.uint8:
      return stored
    quantised = Quantised(stored, tensor.kind, tensor.shape, np.dtype(dtype))
    return quantised if quantised.ndim == 2 else np.asarray(quantised)


class Quantised:
  """A quantised matrix whose rows are decoded when they are read.

  It can be transposed and indexed like an array. Indexing and `np.asarray`
  return decoded arrays.

  Attributes:
    shape: of the matrix.
    strides: only their order is right: the axis of stored rows is the slowest.

  Args:
    stored: the bytes of its rows.
    kind: a `gguf.GGMLQuantizationType`.
    shape: of what is stored: the matrix, or an array of other axes.
    dtype: to decode to.
    transposed: whether the stored rows are the columns of the matrix.
  """

  def __init__(self, stored: np.ndarray, kind: Any, shape: tuple[int, ...],
               dtype: np.dtype, transposed: bool = False):
    self._stored = stored
    self._kind = kind
    self._dtype = dtype
    self._transposed = transposed
    self._shape = shape
    self.shape = shape[::-1] if transposed else shape
    self.strides = tuple(range(len(shape), 0, -1))[::-1 if transposed else 1]

  @property
  def ndim(self) -> int:
    """The number of axes."""
    return len(self.shape)

  @property
  def T(self) -> 'Quantised':  # noqa: N802  The name in NumPy.
    """The transposed matrix."""
    return Quantised(self._stored, self._kind, self._shape, self._dtype,
                     not self._transposed)

  def __getitem__(self, index) -> np.ndarray:
    if self._transposed:
      return self.T[index[::-1]].T
    rows, *others = index
    return self._decode(self._stored[rows])[(slice(None), *others)]

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    del copy  # Decoding always makes a new array.
    values = self._decode(self._stored)
    values = values.T if self._transposed else values
    return values if dtype is None else values.astype(dtype)

  def _decode(self, stored):
    """Returns rows, decoded to float32 and cast block by block."""
    import gguf
    values = np.empty((*stored.shape[:-1], self._shape[-1]), self._dtype)
    rows = stored.reshape(-1, stored.shape[-1])
    decoded = values.reshape(-1, values.shape[-1])
    step = max(1, _DECODED_AT_ONCE // decoded.shape[-1])
    for i in range(0, len(rows), step):
      decoded[i:i + step] = gguf.dequantize(rows[i:i + step], self._kind)
    return values


@functools.lru_cache(maxsize=1)
def _open(path, *version):
  """Returns metadata and tensors of a file.

  The last file is cached, without its tokenizer, which takes a second to read
  and much room.

  Args:
    path: the file.
    *version: its size and time, so that a changed file is read again.
  """
  del version
  header = gguf_header.read(path)
  metadata = {name: value for name, value in header.metadata.items()
              if not name.startswith('tokenizer.')}
  tensors = {name: _placed(name, info) for name, info in header.tensors.items()}
  _check_places(tensors, os.path.getsize(path))
  for kind in {x.kind for x in tensors.values() if x.dtype == np.uint8}:
    _check_decodes(path, kind)
  return metadata, tensors


def _placed(name, info) -> _GgufTensor:
  """Returns where the bytes of a tensor are, and what they mean."""
  import gguf
  kind = gguf.GGMLQuantizationType(info.kind)
  dtype = _PLAIN.get(kind.name)
  if dtype is not None:
    return _GgufTensor(info.offset, info.shape, dtype, kind, info.shape)
  block, size = gguf.GGML_QUANT_SIZES[kind]
  *others, last = info.shape
  if last % block:
    raise ValueError(f'{name} has rows of {last}, no multiple of {block} as '
                     f'{kind.name} needs')
  return _GgufTensor(info.offset, (*others, last // block * size),
                     np.dtype(np.uint8), kind, info.shape)


def _check_places(tensors, size):
  """Refuses tensors that are not in the file, or that share bytes."""
  end = 0
  for name, tensor in sorted(tensors.items(), key=lambda x: x[1].offset):
    if tensor.offset < end:
      raise ValueError(f'{name} overlaps another tensor')
    end = tensor.offset + math.prod(tensor.stored) * tensor.dtype.itemsize
    if end > size:
      raise ValueError(
          f'{name} ends at byte {end}, where the file has {size}')


def _check_decodes(path, kind):
  """Raises DataError unless gguf can decode a kind of quantisation."""
  import gguf
  size = gguf.GGML_QUANT_SIZES[kind][1]
  try:
    gguf.dequantize(np.zeros((1, size), np.uint8), kind)
  except NotImplementedError as err:
    raise checks.DataError(
        f'{path} must be quantised in a way that gguf decodes; got {kind.name}.'
        ' Use another file of the model, such as Q8_0.') from err
