"""How images are normalised for a network: `preprocessor_config.json`."""

from collections.abc import Mapping
import math
import pathlib
from typing import Any, Optional

from haikd.core import checks
from haikd.interop import fields as fields_lib

FILE = 'preprocessor_config.json'

# The mean and the standard deviation of each channel of images in [0, 1].
ChannelStatistics = tuple[tuple[float, ...], tuple[float, ...]]

_FACTOR = 1 / 255


def read_scale(folder: pathlib.Path,
               channels: int) -> Optional[ChannelStatistics]:
  """Returns the mean and standard deviation that images are normalised by.

  Args:
    folder: of the network.
    channels: the number of channels that it takes.

  Returns:
    The mean, which is subtracted, and the standard deviation, which divides
    then: 0 and 1 if images are not normalised. None without the file.

  Raises:
    DataError: the network takes images of another range than [0, 1], or the
      file is broken.
  """
  path = folder / FILE
  if not path.exists():
    return None
  fields = fields_lib.Fields(str(path), fields_lib.read_object(path))
  fields.expect('do_rescale', True)
  factor = fields.take('rescale_factor', _FACTOR, kind=float)
  if not math.isclose(factor, _FACTOR, rel_tol=1e-5):
    raise checks.DataError(
        f'{fields.title("rescale_factor")} must be 1/255; got {factor!r}, '
        'which haikd does not support.')
  if not fields.take('do_normalize', True, kind=bool):
    return (0.0,) * channels, (1.0,) * channels
  mean, deviation = (
      _per_channel(fields, name, channels)
      for name in ('image_mean', 'image_std'))
  if min(deviation) <= 0:
    raise checks.DataError(
        f'{fields.title("image_std")} must be above 0; got {deviation}. Fetch '
        'the model again.')
  return mean, deviation


def write_scale(scale: ChannelStatistics,
                options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the content of the file.

  Args:
    scale: the mean and the standard deviation of each channel.
    options: of the model. With `image_size` images are resized.
  """
  size = options.get('image_size')
  values = dict(image_processor_type='ViTImageProcessor', do_resize=bool(size))
  if size:
    values['size'] = dict(height=size, width=size)
  mean, deviation = scale
  return dict(
      values,
      do_rescale=True,
      rescale_factor=_FACTOR,
      do_normalize=True,
      image_mean=list(mean),
      image_std=list(deviation))


def _per_channel(fields, name, channels):
  """Takes a field of one number a channel, or of one number for all."""
  value = fields.take(name)
  values = value if isinstance(value, list) else [value] * channels
  if len(values) != channels or not all(map(checks.is_number, values)):
    raise checks.DataError(
        f'{fields.title(name)} must be a number for each of {channels} '
        f'channels; got {value!r}. Fetch the model again.')
  return tuple(map(float, values))
