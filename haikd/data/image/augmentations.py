"""Augmentations of images; `haikd.data.image.augment` defines augmentation."""

from typing import Optional

import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.data.image import augment


@augment.register_augmentation(raw=True)
def shift(examples: augment.Examples,
          rng: np.random.Generator,
          *,
          pixels: int = 1) -> augment.Examples:
  """Moves each image by up to `pixels` along both axes, filling with 0."""
  images = _images(examples, 'shift')
  _check_at_least_0('shift.pixels', pixels)
  size, height, width, _ = images.shape
  edge = (pixels, pixels)
  padded = np.pad(images, ((0, 0), edge, edge, (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(
      padded, (height, width), axis=(1, 2))
  rows, columns = rng.integers(2 * pixels + 1, size=(2, size))
  # [B, channels, height, width]: a window's axes come last.
  moved = windows[np.arange(size), rows, columns]
  return {**examples, 'image': np.moveaxis(moved, 1, -1)}


@augment.register_augmentation(raw=True)
def flip(examples: augment.Examples,
         rng: np.random.Generator,
         *,
         probability: float = 0.5) -> augment.Examples:
  """Mirrors each image, left to right, with a probability."""
  images = _images(examples, 'flip')
  _check_probability('flip.probability', probability)
  chosen = rng.random(len(images)) < probability
  flipped = images.copy()
  for channel in range(images.shape[-1]):  # Three times as fast as at once.
    flipped[chosen, ..., channel] = images[chosen, :, ::-1, channel]
  return {**examples, 'image': flipped}


@augment.register_augmentation()
def rotate(examples: augment.Examples,
           rng: np.random.Generator,
           *,
           degrees: float = 10.0) -> augment.Examples:
  """Rotates each image about its centre by up to `degrees` either way.

  Values are interpolated bilinearly and are 0 outside the image.
  """
  images = _images(examples, 'rotate')
  size, height, width, _ = images.shape
  angle = np.deg2rad(rng.uniform(-degrees, degrees, size))[:, None, None]
  y = np.arange(height)[None, :, None] - (height - 1) / 2
  x = np.arange(width)[None, None, :] - (width - 1) / 2
  rows = np.cos(angle) * y - np.sin(angle) * x + (height - 1) / 2
  columns = np.sin(angle) * y + np.cos(angle) * x + (width - 1) / 2
  return {**examples, 'image': _sample(images, rows, columns)}


@augment.register_augmentation()
def crop(examples: augment.Examples,
         rng: np.random.Generator,
         *,
         smallest: float = 0.7) -> augment.Examples:
  """Cuts a random window from each image and enlarges it to the full size.

  The window keeps the image's proportions; its area is between `smallest` and
  1 times the image's. Values are interpolated bilinearly.
  """
  images = _images(examples, 'crop')
  _check_probability('crop.smallest', smallest)
  size, height, width, _ = images.shape
  side = np.sqrt(rng.uniform(smallest, 1.0, size))[:, None, None]
  top, left = rng.random((2, size))[..., None, None] * (1 - side[None])
  rows = top * (height - 1) + side * np.arange(height)[None, :, None]
  columns = left * (width - 1) + side * np.arange(width)[None, None, :]
  rows, columns = np.broadcast_arrays(rows, columns)
  return {**examples, 'image': _sample(images, rows, columns)}


@augment.register_augmentation(stage='pixels', raw=True)
def erase(examples: augment.Examples,
          rng: np.random.Generator,
          *,
          pixels: int = 2,
          probability: float = 1.0) -> augment.Examples:
  """Sets a square of `pixels` x `pixels` to 0, anywhere inside the image."""
  images = _images(examples, 'erase')
  size, height, width, _ = images.shape
  _check_at_least_0('erase.pixels', pixels)
  _check_probability('erase.probability', probability)
  chosen = rng.random(size) < probability
  top = rng.integers(max(height - pixels, 0) + 1, size=size)[:, None]
  left = rng.integers(max(width - pixels, 0) + 1, size=size)[:, None]
  y, x = np.arange(height)[None], np.arange(width)[None]
  rows = (y >= top) & (y < top + pixels) & chosen[:, None]
  columns = (x >= left) & (x < left + pixels)
  hole = (rows[:, :, None] & columns[:, None, :])[..., None]
  return {**examples, 'image': np.where(hole, images.dtype.type(0), images)}


@augment.register_augmentation(stage='pixels')
def noise(examples: augment.Examples,
          rng: np.random.Generator,
          *,
          std: float = 0.1) -> augment.Examples:
  """Adds normal noise; `std` is 1 for the distance from black to white."""
  images = _images(examples, 'noise')
  _check_at_least_0('noise.std', std)
  grain = rng.standard_normal(images.shape, dtype=np.float32)
  return {**examples, 'image': images + np.float32(std) * grain}


@augment.register_augmentation(stage='mix')
def mixup(examples: augment.Examples,
          rng: np.random.Generator,
          *,
          num_classes: Optional[int],
          alpha: float = 0.2) -> augment.Examples:
  """Mixes each image with another of the batch, and their labels likewise.

  Labels become probabilities, `[B, V]`. Without labels only images are mixed,
  which is all that distillation needs.

  Args:
    examples: with `image`, and optionally `label`, `[B]` or `[B, V]`.
    rng: the source of randomness.
    num_classes: V.
    alpha: weights are drawn from Beta(alpha, alpha), one for each pair.

  Returns:
    The mixed examples.

  References:
    Zhang et al., arXiv:1710.09412; Beyer et al., arXiv:2106.05237, section 3.
  """
  images = _images(examples, 'mixup')
  if 'weight' in examples:
    raise checks.ConfigError(
        'config.data.augment.mixup must be left out where examples have '
        'weights, since a mixed example has none; got the key weight. Leave '
        'one of them out.')
  if not alpha > 0:
    raise checks.ConfigError(
        f'config.data.augment.mixup.alpha must be positive; got {alpha}.')
  size = len(images)
  weight = rng.beta(alpha, alpha, size).astype(np.float32)
  partner = rng.permutation(size)
  mixed = {**examples, 'image': _blend(images, weight, partner)}
  if 'label' in examples:
    label = examples['label']
    if label.dtype.kind in 'iu':
      label = _one_hot(label, num_classes)
    mixed['label'] = _blend(label.astype(np.float32), weight, partner)
  return mixed


def _one_hot(label, num_classes):
  if (label == base.IGNORED_LABEL).any():
    raise checks.DataError(
        'examples must all have a label for mixup, or none of them; got the '
        f'label {base.IGNORED_LABEL}. Leave the key label out, or turn mixup '
        'off.')
  return np.eye(num_classes, dtype=np.float32)[label]


def _blend(values, weight, partner):
  weight = weight.reshape(-1, *(1,) * (values.ndim - 1))
  return weight * values + (1 - weight) * values[partner]


def _sample(images, rows, columns):
  """Interpolates images bilinearly; they are 0 outside.

  Args:
    images: `[B, height, width, channels]`.
    rows: the row to take each pixel from, `[B, height, width]` floating.
    columns: its column, likewise.

  Returns:
    `[B, height, width, channels]`.
  """
  size, height, width, channels = images.shape
  padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  # In padded coordinates, clipped to the border of zeros on either side.
  rows = np.clip(rows + 1, 0, height + 1).astype(np.float32)
  columns = np.clip(columns + 1, 0, width + 1).astype(np.float32)
  top = np.minimum(np.floor(rows), height)
  left = np.minimum(np.floor(columns), width)
  down, right = (rows - top)[..., None], (columns - left)[..., None]
  # Indices into the flattened batch: NumPy gathers from one axis fastest.
  flat = padded.reshape(-1, channels)
  stride = width + 2
  first = np.arange(size)[:, None, None] * (height + 2) * stride
  index = first + top.astype(np.intp) * stride + left.astype(np.intp)
  upper = flat[index] + right * (flat[index + 1] - flat[index])
  index += stride
  lower = flat[index] + right * (flat[index + 1] - flat[index])
  return upper + down * (lower - upper)


def _images(examples, name):
  images = examples.get('image')
  if images is None or images.ndim != 4 or 'mask' in examples:
    shapes = {key: value.shape for key, value in examples.items()}
    raise checks.DataError(
        f'examples must hold image [B, height, width, channels] and no mask for'
        f' {name}; got {shapes}. Take {name} out of the augmentations.')
  return images


def _check_at_least_0(option, value):
  if not value >= 0:
    raise checks.ConfigError(
        f'config.data.augment.{option} must be at least 0; got {value}.')


def _check_probability(option, value):
  if not 0 <= value <= 1:
    raise checks.ConfigError(
        f'config.data.augment.{option} must lie between 0 and 1; got {value}.')
