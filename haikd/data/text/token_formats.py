"""The formats of files of token ids, all mapped into memory.

A `.npy` file says its dtype. So does a `.bin` file of Megatron, in an index
beside it, and one of llm.c, in a header. A `.bin` file of nanoGPT holds nothing
but ids.
"""

import os
import pathlib
from typing import NamedTuple, Optional

import numpy as np

from haikd.core import checks

DTYPES = ('uint16', 'uint32')  # Of files that do not say it.
HOW_TO_MAKE = (
    "Make one with `numpy.save('train.npy', ids.astype('uint32'))`, with the "
    'documents joined end to end.')

_MEGATRON = b'MMIDIDX\0\0'  # How an index begins.
_MEGATRON_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32,
                    5: np.int64, 8: np.uint16}
_LLM_C = {(20240520, 1): np.uint16, (20240801, 7): np.uint32}
_LLM_C_HEADER = 256  # int32: magic number, version, number of tokens, zeros.
_CHUNK = 2**20  # Entries of an index that are checked at a time.
_SAMPLE = 4096  # Ids that are looked at to recognise a wrong dtype.


class Ids(NamedTuple):
  """The token ids of a split.

  Attributes:
    ids: integers of one axis, mapped into memory.
    starts: int64, the index of each document's first token; None if the file
      does not say it.
  """

  ids: np.ndarray
  starts: Optional[np.ndarray] = None


def read(path: pathlib.Path, dtype: Optional[str]) -> Ids:
  """Maps a file of token ids into memory.

  Args:
    path: an existing file, `.npy` or `.bin`.
    dtype: one of DTYPES for a file that does not say it; otherwise None, or
      what the file says.

  Returns:
    Its Ids.

  Raises:
    ConfigError: `dtype` is needed, or not what the file says.
    DataError: a file that is damaged or none of these formats.
  """
  if path.suffix == '.npy':
    opened = Ids(_numpy(path))
  elif path.with_suffix('.idx').exists():
    opened = _megatron(path)
  elif (headed := _llm_c(path)) is not None:
    opened = Ids(headed)
  else:
    return Ids(_raw(path, dtype))
  if dtype is not None and opened.ids.dtype != dtype:
    raise checks.ConfigError(
        'config.data.options.dtype must be left out, or be the dtype that the '
        f'file says; got {dtype!r} and {opened.ids.dtype} in {str(path)!r}. '
        'Leave it out.')
  return opened


def _numpy(path):
  try:
    ids = np.lib.format.open_memmap(path, mode='r')
  except Exception as err:  # A broken header raises whatever parsing it raises.
    raise checks.DataError(
        f'{str(path)!r} must be an array that NumPy can map into memory; got '
        f'{checks.one_line(err).rstrip(".")}. {HOW_TO_MAKE}') from err
  if ids.ndim != 1 or ids.dtype.kind not in 'iu':
    raise checks.DataError(
        f'{str(path)!r} must hold integers along one axis; got '
        f'shape={ids.shape}, dtype={ids.dtype}. {HOW_TO_MAKE}')
  return ids


def _raw(path, dtype):
  """Returns the ids of a file that holds nothing else."""
  if dtype is None:
    raise checks.ConfigError(
        'config.data.options.dtype must be given, since a .bin file without an '
        f'.idx file does not say it; got {str(path)!r}. nanoGPT writes '
        "'uint16', and 'uint32' is used above 65,536 tokens.")
  ids = _map(path, np.dtype(dtype))
  sample = np.array(ids[:_SAMPLE])
  even, odd = sample[::2], sample[1::2]
  # The upper halves of ids below 2 ** 18 are 0 to 3.
  if (ids.dtype == np.uint16 and len(odd) >= 32 and (odd <= 3).all() and
      (even > 3).any()):
    raise checks.ConfigError(
        "config.data.options.dtype must be that of the ids; got 'uint16' where "
        f'every second id of {str(path)!r} is 3 or less. Set it to '
        "'uint32'.")
  return ids


def _llm_c(path):
  """Returns the ids of a file of llm.c; None if it is no such file."""
  with open(path, 'rb') as file:
    content = file.read(4 * _LLM_C_HEADER)
  if len(content) < 4 * _LLM_C_HEADER:
    return None
  header = np.frombuffer(content, '<i4')
  if (*header[:2],) not in _LLM_C:
    return None
  dtype = np.dtype(_LLM_C[(*header[:2],)])
  ids = _map(path, dtype, offset=header.nbytes)
  if len(ids) != header[2]:
    raise checks.DataError(
        f'{str(path)!r} must hold as many tokens as its header says; got '
        f'{len(ids)} where it says {header[2]}. Fetch the file again.')
  return ids


def _megatron(path):
  """Returns the ids of a file with an index, and where documents begin."""
  index = path.with_suffix('.idx')

  def bad(what):
    return checks.DataError(
        f'{str(index)!r} must be the index of {path.name!r}, as Megatron '
        f'writes it; got {what}. Fetch both files again, or, if it is '
        'something else, give it another name.')

  content = np.memmap(index, np.uint8, 'r') if index.stat().st_size else b''
  head = bytes(content[:34])
  if len(head) < 34 or not head.startswith(_MEGATRON):
    raise bad('a file that begins otherwise')
  version = int.from_bytes(head[9:17], 'little')
  dtype = _MEGATRON_DTYPES.get(head[17])
  count = int.from_bytes(head[18:26], 'little')
  documents = int.from_bytes(head[26:34], 'little')
  if version != 1 or dtype is None:
    raise bad(f'version {version} and dtype code {head[17]}')
  if len(content) < 34 + 12 * count + 8 * documents or not documents:
    raise bad(f'{len(content)} bytes for {count} sequences and {documents} '
              'bounds of documents')
  sizes = content[34:34 + 4 * count].view('<i4')
  offsets = content[34 + 4 * count:34 + 12 * count].view('<i8')
  bounds = content[34 + 12 * count:34 + 12 * count + 8 * documents].view('<i8')
  ids = _map(path, np.dtype(dtype))
  end = 0
  for start in range(0, count, _CHUNK):
    ends = end + np.cumsum(sizes[start:start + _CHUNK], dtype=np.int64)
    expected = np.concatenate([[end], ends[:-1]]) * ids.itemsize
    if (offsets[start:start + _CHUNK] != expected).any():
      raise bad('sequences that do not follow one another')
    end = int(ends[-1])
  if end != len(ids):
    raise bad(f'{end} tokens, where {path.name!r} holds {len(ids)}')
  first = np.array(bounds[:-1])  # The last one is the end.
  if bounds[-1] != count or (np.diff(bounds) < 0).any() or bounds[0] != 0:
    raise bad('bounds of documents out of order')
  starts = offsets[first[first < count]] // ids.itemsize
  return Ids(ids, starts)


def _map(path, dtype, offset=0):
  """Maps a file of nothing but ids, from an offset in bytes."""
  size = os.path.getsize(path) - offset
  if size % dtype.itemsize or not size:
    raise checks.DataError(
        f'{str(path)!r} must hold whole ids of {dtype.itemsize} bytes; got '
        f'{size} bytes of them. Correct config.data.options.dtype, or fetch '
        'the file again.')
  return np.memmap(path, dtype, 'r', offset=offset)
