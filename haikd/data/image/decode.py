"""Image files to arrays, by Pillow."""

import io
from typing import Any, NamedTuple

import numpy as np

from haikd.core import checks

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
CHANNELS = (1, 3)

_DEEP = ('I;16', 'I;16L', 'I;16B', 'I')  # Modes of 16-bit greyscale.
_UNREAD = ('F',)  # Modes without a largest value to scale by.


class Header(NamedTuple):
  """What a file says of its image before it is decoded.

  Attributes:
    is_deep: whether it has 16 bits a pixel in one channel.
    is_transparent: whether some pixels may be transparent.
  """

  is_deep: bool
  is_transparent: bool


def check_channels(channels: int) -> None:
  """Raises ConfigError unless images can have this number of channels."""
  if channels not in CHANNELS:
    raise checks.ConfigError(
        'config.data.options.channels must be 3 for colour or 1 for '
        f'greyscale; got {channels}.')


def read_header(file: Any, place: str) -> Header:
  """Reads the header of an image file, and refuses what cannot be used.

  Args:
    file: an open file.
    place: the name of the file, for messages.

  Raises:
    DataError: no image, or one whose pixels have no largest value.
  """
  with _opened(file, place) as image:
    return Header(image.mode in _DEEP, _is_transparent(image))


def decode(content: bytes, place: str, channels: int = 3) -> np.ndarray:
  """Returns an image as it is meant to be seen.

  It is turned as its EXIF orientation says. Transparent pixels become white,
  palettes and other colour spaces RGB, and 16 bits are divided by 257.

  Args:
    content: a file's bytes.
    place: the name of the file, for messages.
    channels: 3 for RGB, where greyscale gets three equal channels; 1 for
      greyscale, to which colours are weighed by their luminance.

  Returns:
    uint8 `[height, width, channels]`.

  Raises:
    DataError: a file that is damaged, or no image.
  """
  from PIL import Image
  from PIL import ImageOps
  with _opened(io.BytesIO(content), place) as image:
    try:
      image.load()
      ImageOps.exif_transpose(image, in_place=True)
    except Exception as err:  # Pillow's decoders raise many kinds.
      raise _damaged(place, err) from err
    if image.mode in _DEEP:
      image = Image.fromarray(_of_16_bits(np.asarray(image), place))
    if _is_transparent(image):
      image = image.convert('RGBA')
      white = Image.new('RGBA', image.size, (255, 255, 255, 255))
      image = Image.alpha_composite(white, image)
    mode = 'RGB' if channels == 3 else 'L'
    array = np.asarray(image if image.mode == mode else image.convert(mode))
  return array.reshape(*array.shape[:2], channels)


def _opened(file, place):
  """Returns an image that Pillow has opened; nothing is decoded yet."""
  from PIL import Image
  try:
    image = Image.open(file)
  except Exception as err:  # As in `decode`.
    raise _damaged(place, err) from err
  if image.mode in _UNREAD:
    raise checks.DataError(
        f'{place} must have whole numbers as pixels; got mode={image.mode!r}. '
        'Scale it and save it with 8 bits.')
  return image


def _is_transparent(image):
  return image.mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La') or (
      'transparency' in image.info)


def _of_16_bits(array, place):
  if array.min() < 0 or array.max() > 65535:
    raise checks.DataError(
        f'{place} must have at most 16 bits a pixel; got values from '
        f'{array.min()} to {array.max()}. Scale it and save it with 8 bits.')
  return np.round(array / 257).astype(np.uint8)


def _damaged(place, err):
  from PIL import UnidentifiedImageError

  # Its message has the address of an object.
  got = ('none of the formats that it knows'
         if isinstance(err, UnidentifiedImageError) else checks.describe(err))
  return checks.DataError(
      f'{place} must be an image that Pillow can read; got {got}. Fetch it '
      'again, or remove it.')
