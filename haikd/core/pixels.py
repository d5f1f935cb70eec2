"""Images as bytes, which become numbers where a network takes them.

A batch carries them as the data set has them, so that a quarter of the bytes go
to the devices. The compiled step divides and standardises them.
"""

import dataclasses
import functools
from typing import Any, Union

import jax
import numpy as np

Numbers = Union[float, tuple[float, ...]]  # One for all channels, or one each.


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=['values'],
    meta_fields=['mean', 'std'])
@dataclasses.dataclass(frozen=True)
class Pixels:
  """Images of uint8, and how they are standardised.

  NumPy takes them for the array that a network gets, which `shape` and `dtype`
  describe.

  Attributes:
    values: `[B, height, width, channels]` uint8.
    mean: subtracted after the division by 255.
    std: divides the difference.
  """

  values: Any
  mean: Numbers
  std: Numbers

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the images."""
    return self.values.shape

  @property
  def dtype(self) -> np.dtype:
    """That of what a network gets, float32."""
    return np.dtype(np.float32)

  def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
    del copy  # There is no such array yet.
    return np.asarray(self.scaled(), dtype)

  def scaled(self) -> Any:
    """Returns the images as a network gets them, float32."""
    if isinstance(self.values, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(self.values.shape, np.float32)
    images = self.values.astype(np.float32) / np.float32(255)
    return standardised(
        images, *(np.asarray(x, np.float32) for x in (self.mean, self.std)))


def standardised(images: Any, mean: np.ndarray, std: np.ndarray) -> Any:
  """Returns `(images - mean) / std`.

  Args:
    images: `[B, height, width, channels]` floating.
    mean: float32, a scalar or `[channels]`.
    std: likewise.
  """
  if mean.any() or (std != 1).any():
    return (images - mean) / std
  return images


def scaled(inputs: Any) -> Any:
  """Returns the inputs of a network, with its images as numbers.

  Args:
    inputs: an array, or a tree of arrays; some of them may be Pixels.
  """
  return jax.tree.map(lambda x: x.scaled() if _is_pixels(x) else x, inputs,
                      is_leaf=_is_pixels)


def _is_pixels(value):
  return isinstance(value, Pixels)
