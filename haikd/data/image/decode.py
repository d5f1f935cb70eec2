"""Image files to arrays, by Pillow.

A data set gives an `Encoded` image where it can. What is cut from it is known
when it is decoded: only that is resized, straight from Pillow's own memory, and
a JPEG that is much larger is decoded at a half, a quarter or an eighth.
"""

import functools
import io
import math
from typing import Any, NamedTuple

import numpy as np

from haikd.core import checks
from haikd.data.image import window

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
CHANNELS = (1, 3)

_DEEP = ('I;16', 'I;16L', 'I;16B', 'I')  # Modes of 16-bit greyscale.
_UNREAD = ('F',)  # Modes without a largest value to scale by.
_ORIENTATION = 0x0112  # Of EXIF.
_SWAPPED = (5, 6, 7, 8)  # Orientations in which width is height.
# Orientations in which the last column of the file, or its last row, is that at
# the left, and those in which it is that at the top.
_FROM_RIGHT, _FROM_BELOW = (2, 3, 6, 7), (3, 4, 7, 8)
# A JPEG is reduced to no less than this times the size that it is resized to:
# the libraries' halves are no averages, so that some of those are left to do.
_REDUCED = 2


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


class Encoded(np.lib.mixins.NDArrayOperatorsMixin):
  """An image of a file, decoded when its pixels are asked for.

  It is used as an array, which is not written into: uint8 `[height, width,
  channels]`. Operators, indices and the methods of arrays decode all of it, and
  return arrays. The image is as it is meant to be seen: turned as its EXIF
  orientation says. Transparent pixels become white, palettes and other colour
  spaces RGB, and 16 bits are divided by 257.

  Attributes:
    dtype: uint8.
    ndim: 3.
    shape: `(height, width, channels)`; reads the header, and raises a
      DataError for what is no image.

  Args:
    content: a file's bytes.
    place: the name of the file, for messages.
    channels: 3 for RGB, where greyscale gets three equal channels; 1 for
      greyscale, to which colours are weighed by their luminance.
  """

  dtype = np.dtype(np.uint8)
  ndim = 3

  def __init__(self, content: bytes, place: str, channels: int = 3):
    self._content = content
    self._place = place
    self._channels = channels
    self._header: Any = None  # Opened and not decoded.
    self._orientation: Any = None  # That of EXIF, once the shape is known.

  @functools.cached_property
  def shape(self) -> tuple[int, int, int]:
    """Its height, width and channels, from the header."""
    self._header = image = _opened(io.BytesIO(self._content), self._place)
    width, height = image.size
    try:
      self._orientation = image.getexif().get(_ORIENTATION)
    except Exception as err:  # Pillow's decoders raise many kinds.
      raise _damaged(self._place, err) from err
    is_swapped = self._orientation in _SWAPPED
    return (*((width, height) if is_swapped else (height, width)),
            self._channels)

  def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
    """Decodes all of it.

    Raises:
      DataError: a file that is damaged, or no image.
    """
    # Pillow's own memory cannot be written into.
    array = (np.array if copy else np.asarray)(self._decoded(1), dtype)
    return array.reshape(*array.shape[:2], self._channels)

  def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any,
                      **options: Any) -> Any:
    if 'out' in options:  # Of `image += 1`, which gives another array.
      options['out'] = tuple(
          np.array(x) if isinstance(x, Encoded) else x for x in options['out'])
    arrays = [np.asarray(x) if isinstance(x, Encoded) else x for x in inputs]
    return getattr(ufunc, method)(*arrays, **options)

  def __getitem__(self, key: Any) -> Any:
    return np.asarray(self)[key]

  def __len__(self) -> int:
    return self.shape[0]

  def __getattr__(self, name: str) -> Any:
    if name.startswith('_'):  # NumPy and pickle look for more than there is.
      raise AttributeError(name)
    return getattr(np.asarray(self), name)

  def resized(self, box: window.Box, size: int) -> np.ndarray:
    """Returns a window, resized bilinearly; shrinking averages pixels.

    Args:
      box: the window.
      size: height and width to resize it to.

    Returns:
      uint8 `[size, size, channels]`.

    Raises:
      DataError: as when it becomes an array.
    """
    height, width, _ = self.shape
    left, top, right, bottom = box
    least = min(right - left, bottom - top)
    image = self._decoded(max(int(least / (_REDUCED * size)), 1))
    factor = 2**round(math.log2(max(height, width) / max(image.size)))
    # A size that is no multiple of the factor is rounded up, at the last column
    # and row of the file. Where these are at the left or top, so is the rest.
    x, y = ((most * factor - full) if self._orientation in mirrored else 0
            for most, full, mirrored in zip(image.size, (width, height),
                                            (_FROM_RIGHT, _FROM_BELOW)))
    array = window.resized(
        image, ((left + x) / factor, (top + y) / factor,
                min((right + x) / factor, image.width),
                min((bottom + y) / factor, image.height)), size)
    return array.reshape(size, size, self._channels)

  def _decoded(self, reduction: int) -> Any:
    """Returns an image of Pillow, as it is meant to be seen.

    Args:
      reduction: how many times smaller it may be; only a JPEG is, by the
        largest of 1, 2, 4 and 8 up to this.
    """
    from PIL import Image
    from PIL import ImageOps

    # Reading the header for the shape has opened it, once.
    image, self._header = self._header, None
    with image or _opened(io.BytesIO(self._content), self._place) as image:
      try:
        image.draft(None, tuple(max(x // reduction, 1) for x in image.size))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
      except Exception as err:  # As above.
        raise _damaged(self._place, err) from err
      if image.mode in _DEEP:
        image = Image.fromarray(_of_16_bits(np.asarray(image), self._place))
      if _is_transparent(image):
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
      mode = 'RGB' if self._channels == 3 else 'L'
      return image if image.mode == mode else image.convert(mode)


def _opened(file, place):
  """Returns an image that Pillow has opened; nothing is decoded yet."""
  from PIL import Image
  try:
    image = Image.open(file)
  except Exception as err:  # As in `Encoded`.
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
