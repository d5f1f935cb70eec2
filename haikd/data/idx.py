"""Files in the idx format of MNIST, plain or gzipped."""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from haikd.core import checks

PARTS = ('train', 't10k')

REMEDY = ('On Debian, `apt-get install dataset-fashion-mnist` puts the files '
          'into /usr/share/datasets/fashion-mnist.')

_UNSIGNED_BYTE = 0x08  # The format's code of the type.


def read_pair(folder: pathlib.Path,
              part: str) -> tuple[np.ndarray, np.ndarray]:
  """Reads the images and the labels of one part of an MNIST-like data set.

  Args:
    folder: the folder of the files.
    part: 'train' or 't10k'.

  Returns:
    Images, `[size, height, width]` uint8, and labels, `[size]` uint8.

  Raises:
    DataError: a file that is missing or damaged, or counts that differ.
  """
  images = read(find(folder, _images(part)), rank=3)
  labels = read(find(folder, _labels(part)), rank=1)
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


def read(path: pathlib.Path, *, rank: int) -> np.ndarray:
  """Reads an idx file of unsigned bytes.

  Args:
    path: the file; decompressed if it ends in .gz.
    rank: the number of axes that the array must have.

  Returns:
    A uint8 array of that rank.

  Raises:
    DataError: a file that is damaged or of another format.
  """
  opener = gzip.open if path.suffix == '.gz' else open
  try:
    with opener(path, 'rb') as file:
      content = file.read()
  except (OSError, EOFError, zlib.error) as err:
    raise _damaged(path, 'be readable', checks.describe(err)) from err
  header = 4 + 4 * rank
  magic = bytes((0, 0, _UNSIGNED_BYTE, rank))
  if content[:4] != magic:
    raise _damaged(path, f'begin with the bytes {magic.hex()}',
                   content[:4].hex() or 'nothing')
  if len(content) < header:
    raise _damaged(path, f'have a header of {header} bytes',
                   f'{len(content)} bytes')
  shape = struct.unpack(f'>{rank}I', content[4:header])
  size = len(content) - header
  if size != math.prod(shape):
    raise _damaged(path, f'hold {math.prod(shape)} values, as its header says',
                   f'{size} values')
  return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _images(part):
  return f'{part}-images-idx3-ubyte'


def _labels(part):
  return f'{part}-labels-idx1-ubyte'


def _damaged(path, rule, value):
  return checks.DataError(
      f'the file {str(path)!r} must {rule}; got {value}. Fetch it again.')
