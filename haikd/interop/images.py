"""How images are scaled for a network: `preprocessor_config.json`."""

from collections.abc import Mapping
import math
import pathlib
from typing import Any, Optional

from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.storage import files

FILE = 'preprocessor_config.json'

# The mean and the standard deviation of each channel.
Scale = tuple[tuple[float, ...], tuple[float, ...]]

_FACTOR = 1 / 255


def read_scale(folder: pathlib.Path, channels: int) -> Optional[Scale]:
  """Returns by what images from 0 to 1 are scaled.

  Args:
    folder: of the network.
    channels: how many it takes.

  Returns:
    The mean, which is subtracted, and the standard deviation, which is divided
    by: 0 and 1 where images are not normalised. None without the file.

  Raises:
    DataError: images are to be brought to another range than from 0 to 1, or
      the file is broken.
  """
  path = folder / FILE
  if not path.exists():
    return None
  content = files.read_json(path)
  if not isinstance(content, dict):
    raise checks.DataError(
        f'interop.read: {path} must hold a JSON object; got '
        f'{type(content).__name__}. Fetch the model again.')
  fields = fields_lib.Fields(str(path), content)
  fields.expect('do_rescale', True)
  factor = fields.take('rescale_factor', _FACTOR, kind=float)
  if not math.isclose(factor, _FACTOR, rel_tol=1e-5):
    raise checks.DataError(
        f'interop.read: rescale_factor of {path} must be 1/255; got '
        f'rescale_factor={factor!r}, which is not supported.')
  if not fields.take('do_normalize', True, kind=bool):
    return (0.0,) * channels, (1.0,) * channels
  mean, deviation = (
      _channels(path, name, fields.take(name), channels)
      for name in ('image_mean', 'image_std'))
  if min(deviation) <= 0:
    raise checks.DataError(
        f'interop.read: image_std of {path} must be above 0; got '
        f'image_std={deviation}. Fetch the model again.')
  return mean, deviation


def write_scale(scale: Scale, options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the content of the file.

  Args:
    scale: the mean and the standard deviation of each channel.
    options: of the model; `image_size` among them for images to be resized.
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


def _channels(path, name, value, channels):
  """Returns a number for each channel; one may stand for all."""
  values = value if isinstance(value, list) else [value] * channels
  if len(values) != channels or not all(map(checks.is_number, values)):
    raise checks.DataError(
        f'interop.read: {name} of {path} must be a number for each of '
        f'{channels} channels; got {name}={value!r}. Fetch the model again.')
  return tuple(map(float, values))
