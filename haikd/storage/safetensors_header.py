"""The header of a safetensors file: names, dtypes, shapes and offsets.

A file begins with the length of its header in 8 bytes, little-endian. The
header is JSON; the bytes of the tensors follow without gaps.
"""

from collections.abc import Mapping
import json
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

METADATA = '__metadata__'

# {name in the header of a file: dtype}
DTYPES = {
    name: np.dtype(dtype) for name, dtype in (
        ('F64', np.float64), ('F32', np.float32), ('F16', np.float16),
        ('BF16', jnp.bfloat16), ('F8_E4M3', jnp.float8_e4m3fn),
        ('F8_E5M2', jnp.float8_e5m2), ('I64', np.int64),
        ('I32', np.int32), ('I16', np.int16), ('I8', np.int8),
        ('U64', np.uint64), ('U32', np.uint32), ('U16', np.uint16),
        ('U8', np.uint8), ('BOOL', np.bool_))
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def encode(specs: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
  """Returns what a file begins with, up to the bytes of the tensors.

  Args:
    specs: `{name: array or ShapeDtypeStruct}`, in the order of their bytes.
    metadata: what the header says besides.
  """
  header: dict[str, Any] = {METADATA: dict(metadata)}
  position = 0
  for name, spec in specs.items():
    size = spec.size * spec.dtype.itemsize
    header[name] = dict(dtype=NAMES[spec.dtype], shape=list(spec.shape),
                        data_offsets=[position, position + size])
    position += size
  content = json.dumps(header).encode()
  content += b' ' * (-len(content) % 8)
  return len(content).to_bytes(8, 'little') + content


def read(file: BinaryIO) -> tuple[dict[str, jax.ShapeDtypeStruct],
                                  dict[str, int]]:
  """Returns shapes by name, and where in the file the bytes begin by name.

  Args:
    file: that `encode` began, open at its start.

  Raises:
    Exception: of any kind; the file is damaged.
  """
  length = int.from_bytes(file.read(8), 'little')
  header = json.loads(file.read(length))
  header.pop(METADATA, None)
  shapes = {name: jax.ShapeDtypeStruct(entry['shape'], DTYPES[entry['dtype']])
            for name, entry in header.items()}
  return shapes, {name: 8 + length + entry['data_offsets'][0]
                  for name, entry in header.items()}
