"""Images of any size made images of one, `config.data.image_size`.

This is done to one image at a time, as it is read, before a batch is made. In
training an augmentation of the stage `size` may choose what part of the image
is seen: `f(image, rng, *, size, **options) -> image`, on uint8
`[height, width, channels]`. Without one, and in evaluation, it is the centre.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any, NamedTuple, Optional

import numpy as np

from haikd.core import checks
from haikd.data.image import augment as augment_lib

# Of the shorter side, how much evaluation sees: 224 pixels of 256.
CENTRE = 0.875

_TRIES = 10


class Sizes(NamedTuple):
  """How images become images of one size; made by `build_sizes`.

  Attributes:
    training: `(image, rng) -> image`.
    evaluation: `(image) -> image`.
  """

  training: Callable[[np.ndarray, np.random.Generator], np.ndarray]
  evaluation: Callable[[np.ndarray], np.ndarray]


def build_sizes(augment: Mapping[str, Mapping[str, Any]],
                image_size: Optional[int],
                *,
                where: str = 'config.data.augment') -> Optional[Sizes]:
  """Returns what a config does to the size of images.

  Args:
    augment: `{name: options}` of all augmentations.
    image_size: height and width to make of them, or None to keep theirs.
    where: the field of the config that names them, for messages.

  Returns:
    Sizes, or None where images keep their size.

  Raises:
    ConfigError: an augmentation of the stage `size` without an image size, or
      more than one.
  """
  chosen = {}
  for name, options in augment.items():
    entry, options = augment_lib.lookup(f'{where}.{name}', name, options)
    if entry.stage == augment_lib.SIZE:
      chosen[name] = functools.partial(
          entry.function, size=image_size, **options)
  if chosen and image_size is None:
    raise checks.ConfigError(
        f'{where}: {", ".join(chosen)} must know the size of the images to '
        'make; got config.data.image_size=None. Set it, for example to 224.')
  if len(chosen) > 1:
    raise checks.ConfigError(
        f'{where}: one augmentation at most must choose the size of images; got'
        f' {", ".join(chosen)}. Leave the others out.')
  if image_size is None:
    return None
  centre = functools.partial(resize_and_crop, size=image_size)
  training, = chosen.values() or [lambda image, rng: centre(image)]
  return Sizes(training, centre)


@augment_lib.register_augmentation(stage=augment_lib.SIZE)
def random_resized_crop(image: np.ndarray,
                        rng: np.random.Generator,
                        *,
                        size: int,
                        smallest: float = 0.08,
                        ratio: float = 4 / 3) -> np.ndarray:
  """Cuts a random window from an image and brings it to one size.

  The area of the window is uniform between `smallest` and 1 times the image's,
  its width over height log-uniform between 1 / `ratio` and `ratio`. Where no
  such window is found inside the image, it is the largest at the centre that
  keeps to the ratio.

  Args:
    image: uint8 `[height, width, channels]`.
    rng: the source of randomness.
    size: height and width of what is returned.
    smallest: above 0, and 1 at most.
    ratio: 1 or more.

  Returns:
    uint8 `[size, size, channels]`, interpolated bilinearly.

  Raises:
    ConfigError: an option out of its range.

  References:
    Szegedy et al., arXiv:1409.4842, section 6.
  """
  if not 0 < smallest <= 1:
    raise checks.ConfigError(
        'sizes.random_resized_crop: smallest must be above 0 and at most 1; got'
        f' smallest={smallest}.')
  if not ratio >= 1:
    raise checks.ConfigError('sizes.random_resized_crop: ratio must be at least'
                             f' 1; got ratio={ratio}.')
  height, width = image.shape[:2]
  for _ in range(_TRIES):
    area = rng.uniform(smallest, 1.0) * height * width
    shape = ratio**rng.uniform(-1, 1)
    rows, columns = round((area / shape)**0.5), round((area * shape)**0.5)
    if 0 < rows <= height and 0 < columns <= width:
      top = rng.integers(height - rows, endpoint=True)
      left = rng.integers(width - columns, endpoint=True)
      return _resize(image, top, left, rows, columns, size)
  rows, columns = min(height, width * ratio), min(width, height * ratio)
  return _resize(image, (height - rows) / 2, (width - columns) / 2, rows,
                 columns, size)


def resize_and_crop(image: np.ndarray, *, size: int) -> np.ndarray:
  """Brings the square at the centre of an image to one size.

  Its side is `CENTRE` times the image's shorter one, as if that were resized
  to 256 pixels and 224 cut out.

  Args:
    image: uint8 `[height, width, channels]`.
    size: height and width of what is returned.

  Returns:
    uint8 `[size, size, channels]`, interpolated bilinearly.
  """
  height, width = image.shape[:2]
  side = CENTRE * min(height, width)
  return _resize(image, (height - side) / 2, (width - side) / 2, side, side,
                 size)


def _resize(image, top, left, rows, columns, size):
  """Returns a window of an image at another size; averages where it shrinks."""
  from PIL import Image
  if image.ndim != 3 or image.dtype != np.uint8:
    raise checks.DataError(
        'sizes.resize: image must be uint8 [height, width, channels]; got '
        f'{image.dtype}{list(image.shape)}. Set config.data.image_size=None.')
  box = (left, top, left + columns, top + rows)
  channels = [
      Image.fromarray(channel).resize((size, size), Image.Resampling.BILINEAR,
                                      box=box)
      for channel in np.moveaxis(image, -1, 0)
  ]
  return np.stack([np.asarray(channel) for channel in channels], axis=-1)
