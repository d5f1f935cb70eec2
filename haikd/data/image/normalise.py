"""Standardises images by a mean and a standard deviation per channel."""

from typing import Any, NamedTuple

import numpy as np

from haikd.core import checks
from haikd.core import pixels


class Scale(NamedTuple):
  """Standardises images in [0, 1]; made by `build_scale`.

  Attributes:
    mean: subtracted; float32, a scalar or `[channels]`.
    std: divides the difference; likewise.
    field: the config field that holds both, for messages.
  """

  mean: np.ndarray
  std: np.ndarray
  field: str

  def __call__(self, images: np.ndarray) -> np.ndarray:
    """Returns `(images - mean) / std`.

    Args:
      images: `[B, height, width, channels]` floating.

    Returns:
      The same shape.

    Raises:
      ConfigError: a mean or std per channel for another number of channels.
    """
    self._check(images)
    return pixels.standardised(images, self.mean, self.std)

  def inputs(self, images: np.ndarray) -> Any:
    """Returns what a batch carries: images, those of uint8 as Pixels.

    Args:
      images: `[B, height, width, channels]`, uint8, or floating in [0, 1].

    Raises:
      ConfigError: as a call.
    """
    if images.dtype != np.uint8:
      return self(images)
    self._check(images)
    mean, std = (x.tolist() for x in (self.mean, self.std))
    return pixels.Pixels(np.ascontiguousarray(images), *(
        tuple(x) if isinstance(x, list) else x for x in (mean, std)))

  def _check(self, images):
    for name, value in (('mean', self.mean), ('std', self.std)):
      if value.ndim and images.shape[3:] != value.shape:
        raise checks.ConfigError(
            f'{self.field}.{name} must be a number, or one for each channel of '
            f'the images; got {len(value)} numbers, '
            f'image.shape={images.shape[1:]}.')


def build_scale(mean: pixels.Numbers, std: pixels.Numbers,
                field: str = 'config.data') -> Scale:
  """Returns the Scale that a config describes.

  Args:
    mean: of images in [0, 1]; a number, or one for each channel.
    std: their standard deviation, likewise.
    field: the config field that holds both, for messages.

  Returns:
    A Scale.

  Raises:
    ConfigError: a number that is not finite, or a standard deviation that is
      not positive.
  """
  scale = Scale(_numbers(f'{field}.mean', mean), _numbers(f'{field}.std', std),
                field)
  if not (scale.std > 0).all():
    raise checks.ConfigError(
        f'{field}.std must be positive; got {std}. Write 1.0 to leave '
        'images as they are.')
  return scale


def to_float(images: np.ndarray) -> np.ndarray:
  """Returns images; those of uint8 as float32 in [0, 1]."""
  if images.dtype != np.uint8:
    return images
  return np.divide(images, 255, dtype=np.float32)


def _numbers(field: str, value: Any) -> np.ndarray:
  try:
    numbers = np.asarray(value)
  except ValueError:  # The value is ragged.
    numbers = np.asarray(None)
  if (numbers.dtype.kind not in 'iuf' or numbers.ndim > 1 or
      not numbers.size or not np.isfinite(numbers).all()):
    raise checks.ConfigError(
        f'{field} must be a finite number, or one for each channel; got '
        f' {value!r}.')
  return numbers.astype(np.float32)
