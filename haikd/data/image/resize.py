"""Resizes images of any size to one size.

Each image is resized when it is read, before it joins a batch. In training an
augmentation of the stage `size` may choose which part of the image is used:
`f(image, rng, *, size, **options) -> image`, on `[height, width, channels]`,
uint8 or floating; or on a `decode.Encoded`, for one that is registered as
`raw`. Without one, and in evaluation, the centre is used.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any, Optional, Union

import numpy as np

from haikd.core import checks
from haikd.data.image import augment as augment_lib
from haikd.data.image import decode
from haikd.data.image import window

AnyImage = Union[np.ndarray, decode.Encoded]
Cut = Callable[..., np.ndarray]  # (image, rng) -> image.

_TRIES = 10  # Random windows to try before falling back to the centre.


def build_cut(augment: Mapping[str, Mapping[str, Any]],
              image_size: Optional[int],
              *,
              crop: float,
              field: str = 'config.data.augment') -> Optional[Cut]:
  """Returns what cuts an image in training and resizes it.

  Args:
    augment: `{name: options}` of all augmentations.
    image_size: height and width to resize to, or None to keep the size.
    crop: the share of the shorter side that is used without an augmentation.
    field: the config field that holds `augment`, for messages.

  Returns:
    `(image, rng) -> image`, which can be pickled; or None if images keep
    their size.

  Raises:
    ConfigError: an augmentation of the stage `size` without an image size, or
      more than one.
  """
  crops = {}
  for name, options in augment.items():
    entry, options = augment_lib.lookup(f'{field}.{name}', name, options)
    if entry.stage == augment_lib.SIZE:
      crops[name] = functools.partial(
          entry.function if entry.raw else
          functools.partial(_on_array, entry.function),
          size=image_size, **options)
  if crops and image_size is None:
    raise checks.ConfigError(
        f'config.data.image_size must be set for {", ".join(crops)}; got None. '
        f'Set it, for example to 224, or leave {field}.{next(iter(crops))} out.'
    )
  if len(crops) > 1:
    raise checks.ConfigError(
        f'{field} must hold at most one augmentation of the stage `size`; got '
        f'{", ".join(crops)}. Leave out all but one.')
  if image_size is None:
    return None
  return next(iter(crops.values()), functools.partial(
      _centre, size=image_size, crop=crop))


def _on_array(function, image, rng, **options):
  return function(np.asarray(image), rng, **options)


def _centre(image, rng, *, size, crop):
  del rng
  return resize_and_crop(image, size=size, crop=crop)


@augment_lib.register_augmentation(stage=augment_lib.SIZE, raw=True)
def random_resized_crop(image: AnyImage,
                        rng: np.random.Generator,
                        *,
                        size: int,
                        smallest: float = 0.08,
                        ratio: float = 4 / 3) -> np.ndarray:
  """Cuts a random window from an image and resizes it.

  The window's area is uniform between `smallest` and 1 times the image's, and
  its width over height is log-uniform between 1 / `ratio` and `ratio`. If no
  such window is found inside the image, the largest one at the centre within
  the ratio is taken.

  Args:
    image: uint8 or floating `[height, width, channels]`, or encoded.
    rng: the source of randomness.
    size: height and width to resize to.
    smallest: above 0 and at most 1.
    ratio: at least 1.

  Returns:
    `[size, size, channels]`, interpolated bilinearly; uint8 or float32.

  Raises:
    ConfigError: an option out of its range.

  References:
    Szegedy et al., arXiv:1409.4842, section 6.
  """
  if not 0 < smallest <= 1:
    raise checks.ConfigError(
        'config.data.augment.random_resized_crop.smallest must be above 0 and '
        f'at most 1; got {smallest}.')
  if not ratio >= 1:
    raise checks.ConfigError(
        'config.data.augment.random_resized_crop.ratio must be at least 1; got '
        f'{ratio}.')
  height, width = image.shape[:2]
  for _ in range(_TRIES):
    area = rng.uniform(smallest, 1.0) * height * width
    aspect = ratio**rng.uniform(-1, 1)
    rows, columns = round((area / aspect)**0.5), round((area * aspect)**0.5)
    if 0 < rows <= height and 0 < columns <= width:
      top = rng.integers(height - rows, endpoint=True)
      left = rng.integers(width - columns, endpoint=True)
      return _resize(image, top, left, rows, columns, size)
  rows, columns = min(height, width * ratio), min(width, height * ratio)
  return _resize(image, (height - rows) / 2, (width - columns) / 2, rows,
                 columns, size)


def resize_and_crop(image: AnyImage, *, size: int, crop: float) -> np.ndarray:
  """Resizes the square at the centre of an image.

  Args:
    image: uint8 or floating `[height, width, channels]`, or encoded.
    size: height and width to resize to.
    crop: the side of the square, as a share of the image's shorter side; 0.875
      is as if that were resized to 256 pixels and the middle 224 cut out.

  Returns:
    `[size, size, channels]`, interpolated bilinearly; uint8 or float32.
  """
  height, width = image.shape[:2]
  side = crop * min(height, width)
  return _resize(image, (height - side) / 2, (width - side) / 2, side, side,
                 size)


def _resize(image, top, left, rows, columns, size):
  """Returns a window of an image, resized; shrinking averages pixels."""
  from PIL import Image
  box = (left, top, left + columns, top + rows)
  if isinstance(image, decode.Encoded):
    return image.resized(box, size)
  if image.ndim != 3 or image.dtype != np.uint8 and image.dtype.kind != 'f':
    raise checks.DataError(
        'image must be uint8 or floating [height, width, channels] to be '
        f'resized; got {image.dtype}{list(image.shape)}. Set '
        'config.data.image_size to None.')
  if image.dtype != np.uint8:
    image = image.astype(np.float32)

  def resized(pixels):
    return window.resized(Image.fromarray(pixels), box, size)

  if image.dtype == np.uint8 and image.shape[-1] == 3:
    return resized(image)  # As below, in two thirds of the time.
  return np.stack([resized(x) for x in np.moveaxis(image, -1, 0)], axis=-1)
