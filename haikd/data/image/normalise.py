"""Images brought to a mean and a standard deviation, channel by channel."""

from typing import Any, NamedTuple, Union

import numpy as np

from haikd.core import checks

Numbers = Union[float, tuple[float, ...]]  # For all channels, or for each.


class Scale(NamedTuple):
  """What is done to images in [0, 1]; made by `build_scale`.

  Attributes:
    mean: subtracted; float32, a scalar or `[channels]`.
    std: divides then; likewise.
  """

  mean: np.ndarray
  std: np.ndarray

  def __call__(self, images: np.ndarray) -> np.ndarray:
    """Returns `(images - mean) / std`.

    Args:
      images: `[B, height, width, channels]`.

    Returns:
      The same shape.

    Raises:
      ConfigError: numbers for other channels than the images have.
    """
    for name, value in self._asdict().items():
      if value.ndim and images.shape[3:] != value.shape:
        raise checks.ConfigError(
            f'scale.Scale: config.data.{name} must be a number, or one for each'
            f' channel of the images; got {len(value)} of them, '
            f'image.shape={images.shape[1:]}.')
    if self.mean.any() or (self.std != 1).any():
      return (images - self.mean) / self.std
    return images


def build_scale(mean: Numbers, std: Numbers) -> Scale:
  """Returns the scaling of a config.

  Args:
    mean: of images in [0, 1]; a number, or one for each channel.
    std: their standard deviation, likewise.

  Returns:
    A Scale.

  Raises:
    ConfigError: what is not finite, or a standard deviation that is not
      positive.
  """
  scale = Scale(_numbers('mean', mean), _numbers('std', std))
  if not (scale.std > 0).all():
    raise checks.ConfigError(
        f'scale.build_scale: config.data.std must be positive; got std={std}. '
        'Write 1.0 to leave images as they are.')
  return scale


def _numbers(name: str, value: Any) -> np.ndarray:
  try:
    numbers = np.asarray(value)
  except ValueError:  # It is ragged.
    numbers = np.asarray(None)
  if (numbers.dtype.kind not in 'iuf' or numbers.ndim > 1 or
      not numbers.size or not np.isfinite(numbers).all()):
    raise checks.ConfigError(
        f'scale.build_scale: config.data.{name} must be a finite number, or one'
        f' for each channel; got {name}={value!r}.')
  return numbers.astype(np.float32)
