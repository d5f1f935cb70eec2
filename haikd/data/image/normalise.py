"""Standardises images by a mean and a standard deviation per channel."""

from typing import Any, NamedTuple, Union

import numpy as np

from haikd.core import checks

Numbers = Union[float, tuple[float, ...]]  # One for all channels, or one each.


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
      images: `[B, height, width, channels]`.

    Returns:
      The same shape.

    Raises:
      ConfigError: a mean or std per channel for another number of channels.
    """
    for name, value in (('mean', self.mean), ('std', self.std)):
      if value.ndim and images.shape[3:] != value.shape:
        raise checks.ConfigError(
            f'{self.field}.{name} must be a number, or one for each channel of '
            f'the images; got {len(value)} numbers, '
            f'image.shape={images.shape[1:]}.')
    if self.mean.any() or (self.std != 1).any():
      return (images - self.mean) / self.std
    return images


def build_scale(mean: Numbers, std: Numbers,
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
