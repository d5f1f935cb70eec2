"""The tensors and metadata of a GGUF file, decoded as they are read."""

from collections.abc import Mapping
import functools
import importlib.util
import os
import pathlib
from typing import Any, NamedTuple, Union

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import checks

_NUMBERS = 2**18  # That are decoded at once, about.


class _Entry(NamedTuple):
  """Where the bytes of a tensor are, and what they mean."""

  offset: int
  stored: tuple[int, ...]  # The axes of the bytes.
  dtype: np.dtype  # Of what is stored.
  kind: Any  # A gguf.GGMLQuantizationType.
  shape: tuple[int, ...]


class Gguf:
  """The tensors of a GGUF file, mapped where they are plain numbers.

  Attributes:
    path: the file.
    shapes: `{name: ShapeDtypeStruct}`; what is quantised is said to be float32.
    metadata: `{key: value}`, save for those of the tokenizer.

  Args:
    path: the file.

  Raises:
    DataError: the file cannot be read, or is quantised in a way that cannot be
      decoded; or the gguf package is not installed.
  """

  def __init__(self, path: pathlib.Path):
    if importlib.util.find_spec('gguf') is None:
      raise checks.DataError(
          'interop.read: gguf must be installed to read GGUF files; got none. '
          "Run `pip install 'haikd[text]'`.")
    self.path = str(path)
    try:
      stat = os.stat(path)
      found = _open(self.path, stat.st_size, stat.st_mtime_ns)
    except checks.DataError:
      raise
    except Exception as err:  # gguf raises whatever a wrong offset leads to.
      raise checks.DataError(
          f'interop.read: {path} must be a whole GGUF file; got one that '
          f'cannot be read ({checks.describe(err)}). Fetch it again.') from err
    self.metadata: Mapping[str, Any] = found[0]
    self._entries: Mapping[str, _Entry] = found[1]
    self.shapes = {
        name: jax.ShapeDtypeStruct(
            entry.shape,
            np.float32 if entry.dtype == np.uint8 else entry.dtype)
        for name, entry in self._entries.items()
    }

  def read(self, name: str, dtype: np.dtype) -> Union[np.ndarray, 'Quantised']:
    """Returns a tensor: mapped, or if it is quantised, decoded when needed.

    Args:
      name: of the tensor.
      dtype: to decode to.
    """
    entry = self._entries[name]
    stored = np.memmap(
        self.path, entry.dtype, 'r', entry.offset, entry.stored)
    if entry.dtype != np.uint8:
      return stored
    found = Quantised(stored, entry.kind, entry.shape, np.dtype(dtype))
    return found if found.ndim == 2 else np.asarray(found)


class Quantised:
  """A quantised matrix, of which rows are decoded when they are asked for.

  It can be turned and cut like an array; what is cut out of it is an array, and
  so is what NumPy makes of the whole.

  Attributes:
    shape: of the matrix.
    strides: such that rows are the slowest, whichever axis they lie along.

  Args:
    stored: the bytes of its rows.
    kind: a `gguf.GGMLQuantizationType`.
    shape: of the matrix, or of what else is stored.
    dtype: to decode to.
    turned: whether rows lie along the last axis.
  """

  def __init__(self, stored: np.ndarray, kind: Any, shape: tuple[int, ...],
               dtype: np.dtype, turned: bool = False):
    self._stored = stored
    self._kind = kind
    self._dtype = dtype
    self._turned = turned
    self._shape = shape
    self.shape = shape[::-1] if turned else shape
    self.strides = tuple(range(len(shape), 0, -1))[::-1 if turned else 1]

  @property
  def ndim(self) -> int:
    """The number of axes."""
    return len(self.shape)

  @property
  def T(self) -> 'Quantised':  # noqa: N802  As NumPy calls it.
    """The matrix turned."""
    return Quantised(self._stored, self._kind, self._shape, self._dtype,
                     not self._turned)

  def __getitem__(self, index) -> np.ndarray:
    if self._turned:
      return self.T[index[::-1]].T
    rows, *others = index
    return self._decode(self._stored[rows])[(slice(None), *others)]

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    del copy  # What is decoded is always new.
    values = self._decode(self._stored)
    values = values.T if self._turned else values
    return values if dtype is None else values.astype(dtype)

  def _decode(self, stored):
    """Returns rows, decoded to float32 and cast block by block."""
    import gguf
    values = np.empty((*stored.shape[:-1], self._shape[-1]), self._dtype)
    rows = stored.reshape(-1, stored.shape[-1])
    decoded = values.reshape(-1, values.shape[-1])
    step = max(1, _NUMBERS // decoded.shape[-1])
    for i in range(0, len(rows), step):
      decoded[i:i + step] = gguf.dequantize(rows[i:i + step], self._kind)
    return values


@functools.lru_cache(maxsize=1)
def _open(path, *version):
  """Returns metadata and entries; gguf takes seconds for a large vocabulary.

  What gguf itself returns is not kept: it holds every token as an array.
  """
  del version
  import gguf
  reader = gguf.GGUFReader(path)
  if reader.byte_order != 'I':
    raise ValueError('its bytes are in the order of other machines')
  metadata = {
      name: field.contents()
      for name, field in reader.fields.items()
      if not name.startswith('tokenizer.')
  }
  entries = {}
  for tensor in reader.tensors:
    shape = tuple(map(int, reversed(tensor.shape)))
    dtype = tensor.data.dtype
    stored = tensor.data.shape
    if tensor.tensor_type == gguf.GGMLQuantizationType.BF16:
      dtype, stored = np.dtype(jnp.bfloat16), shape
    entries[tensor.name] = _Entry(tensor.data_offset, stored, dtype,
                                  tensor.tensor_type, shape)
  for kind in {e.kind for e in entries.values() if e.dtype == np.uint8}:
    _check_decodes(path, kind)
  return metadata, entries


def _check_decodes(path, kind):
  import gguf
  size = gguf.GGML_QUANT_SIZES[kind][1]
  try:
    gguf.dequantize(np.zeros((1, size), np.uint8), kind)
  except NotImplementedError as err:
    raise checks.DataError(
        f'interop.read: {path} must be quantised in a way that gguf decodes; '
        f'got {kind.name}. Take another file of the model, such as Q8_0.'
    ) from err
