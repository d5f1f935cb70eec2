"""Files in the idx format of MNIST, plain or gzipped."""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from haikd.core import checks
from haikd.data import reading as reading_lib
from haikd.storage import regular

PARTS = ('train', 't10k')

REMEDY = ('On Debian, `apt-get install dataset-fashion-mnist` puts the files '
          'into /usr/share/datasets/fashion-mnist.')

_PIECE_BYTES = 2**20  # That are read at a time.
_UNSIGNED_BYTE = 0x08  # The format's code of the type.


def read_pair(
    folder: pathlib.Path, part: str,
    reading: reading_lib.Reading = reading_lib.Reading()
) -> tuple[np.ndarray, np.ndarray]:
  """Reads the images and the labels of one part of an MNIST-like data set.

  Args:
    folder: the folder of the files.
    part: 'train' or 't10k'.
    reading: how much memory each may take.

  Returns:
    Images, `[size, height, width]` uint8, and labels, `[size]` uint8.

  Raises:
    DataError: a file that is missing or damaged, or counts that differ.
  """
  images = read(find(folder, _images(part)), rank=3, reading=reading)
  labels = read(find(folder, _labels(part)), rank=1, reading=reading)
  if len(images) != len(labels):
    raise checks.DataError(
        f'config.data.source_dir must hold a label for every {part} image; got '
        f'images={len(images)}, labels={len(labels)} in {str(folder)!r}. Fetch '
        'the files again.')
  return images, labels


def stamps(folder: pathlib.Path) -> tuple[tuple[int, int], ...]:
  """Returns the size and the time in nanoseconds of each of the four files."""
  files = [find(folder, name(part)) for part in PARTS
           for name in (_images, _labels)]
  stats = [file.stat() for file in files]
  return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)


def find(folder: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the path of an idx file, plain or with the ending .gz."""
  for path in (folder / name, folder / f'{name}.gz'):
    if path.is_file():
      return path
  raise checks.DataError(
      f'config.data.source_dir must hold {name} or {name}.gz; got '
      f'{str(folder)!r}, which does not. {REMEDY}')


def read(path: pathlib.Path, *, rank: int,
         reading: reading_lib.Reading = reading_lib.Reading()) -> np.ndarray:
  """Reads an idx file of unsigned bytes.

  Args:
    path: the file; decompressed if it ends in .gz.
    rank: the number of axes that the array must have.
    reading: how much memory the array may take.

  Returns:
    A uint8 array of that rank.

  Raises:
    DataError: a file that is damaged, of another format, or too large.
  """
  try:
    regular.check(path)
    opener = gzip.open if path.suffix == '.gz' else open
    with opener(path, 'rb') as file:
      return _read(path, file, rank, reading)
  except checks.DataError:
    raise
  except (OSError, EOFError, zlib.error) as err:
    raise _damaged(path, 'be readable', checks.describe(err)) from err


def _read(path, file, rank, reading):
  """Reads the array of an open file, which must end with it."""
  magic = bytes((0, 0, _UNSIGNED_BYTE, rank))
  start = file.read(4 + 4 * rank)
  if start[:4] != magic:
    raise _damaged(path, f'begin with the bytes {magic.hex()}',
                   start[:4].hex() or 'nothing')
  if len(start) < 4 + 4 * rank:
    raise _damaged(path, f'have a header of {4 + 4 * rank} bytes',
                   f'{len(start)} bytes')
  shape = struct.unpack(f'>{rank}I', start[4:])
  size = math.prod(shape)
  reading.check_memory(size, f'the array of {str(path)!r}')
  pieces, missing = [], size
  while missing and (piece := file.read(min(missing, _PIECE_BYTES))):
    pieces.append(piece)
    missing -= len(piece)
  if missing or file.read(1):
    got = f'{size - missing} values' if missing else 'more'
    raise _damaged(path, f'hold {size} values, as its header says', got)
  values = np.empty(size, np.uint8)
  place = size
  while pieces:  # Each is dropped once it is copied.
    piece = pieces.pop()
    values[place - len(piece):place] = np.frombuffer(piece, np.uint8)
    place -= len(piece)
  return values.reshape(shape)


def _images(part):
  return f'{part}-images-idx3-ubyte'


def _labels(part):
  return f'{part}-labels-idx1-ubyte'


def _damaged(path, rule, value):
  return checks.DataError(
      f'the file {str(path)!r} must {rule}; got {value}. Fetch it again.')
