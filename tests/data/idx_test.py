"""idx files written by hand, byte by byte."""

import gzip

import numpy as np
import pytest

from haikd.core import checks
from haikd.data import idx

# Two images of 2 x 3: magic (0, 0, unsigned byte, rank 3), sizes, values.
IMAGES = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3, *range(12)])
LABELS = bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])


def write(path, content):
  opener = gzip.open if path.suffix == '.gz' else open
  with opener(path, 'wb') as file:
    file.write(content)
  return path


@pytest.mark.parametrize('ending', ['', '.gz'])
def test_read_returns_what_the_header_says(tmp_path, ending):
  images = idx.read(write(tmp_path / f'images{ending}', IMAGES), rank=3)
  assert images.dtype == np.uint8
  assert images.tolist() == np.arange(12).reshape(2, 2, 3).tolist()
  labels = idx.read(write(tmp_path / f'labels{ending}', LABELS), rank=1)
  assert labels.tolist() == [7, 9]


@pytest.mark.parametrize('content, message', [
    (b'', 'begin with the bytes 00000803; got nothing'),
    (LABELS, 'begin with the bytes 00000803; got 00000801'),
    (b'\x1f\x8b' + IMAGES, 'begin with the bytes 00000803; got 1f8b0000'),
    (IMAGES[:9], 'have a header of 16 bytes; got 9 bytes'),
    (IMAGES[:-1], 'hold 12 values, as its header says; got 11 values'),
    (IMAGES + b'0', 'hold 12 values, as its header says; got more'),
])
def test_damaged_file_is_refused(tmp_path, content, message):
  with pytest.raises(checks.DataError,
                     match=f"the file '.*/images' must {message}. Fetch it"):
    idx.read(write(tmp_path / 'images', content), rank=3)


@pytest.mark.parametrize('cut', [5, -4])
def test_damaged_compression_is_refused(tmp_path, cut):
  path = tmp_path / 'images.gz'
  path.write_bytes(gzip.compress(IMAGES)[:cut])
  with pytest.raises(checks.DataError, match="gz' must be readable; got"):
    idx.read(path, rank=3)


def test_flipped_bits_in_compression_are_refused(tmp_path):
  content = bytearray(gzip.compress(IMAGES))
  content[10] ^= 0xff  # The first byte after gzip's header.
  path = tmp_path / 'images.gz'
  path.write_bytes(content)
  with pytest.raises(checks.DataError, match="gz' must be readable; got"):
    idx.read(path, rank=3)


def test_gz_file_that_is_not_gzip_is_refused(tmp_path):
  path = tmp_path / 'images.gz'
  path.write_bytes(IMAGES)
  with pytest.raises(checks.DataError, match='must be readable; got .*gzip'):
    idx.read(path, rank=3)


def test_every_image_must_have_a_label(tmp_path):
  write(tmp_path / 'train-images-idx3-ubyte', IMAGES)
  write(tmp_path / 'train-labels-idx1-ubyte.gz',
        bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]))
  with pytest.raises(
      checks.DataError,
      match='a label for every train image; got images=2, labels=1 in'):
    idx.read_pair(tmp_path, 'train')


def test_missing_file_is_named(tmp_path):
  write(tmp_path / 'train-images-idx3-ubyte', IMAGES)
  with pytest.raises(
      checks.DataError,
      match='source_dir must hold train-labels-idx1-ubyte or .*apt-get'):
    idx.read_pair(tmp_path, 'train')
