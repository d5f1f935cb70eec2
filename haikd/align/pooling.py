"""Average pooling to a given shape, for arrays of any rank."""

from collections.abc import Sequence
import enum
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import area_weights


class PaddingMode(enum.Enum):
  """Where windows lie when an axis of size `in` shrinks to `out`.

  If `out` divides `in`, all three are the same: adjacent windows.

  Attributes:
    VALID: stride in // out, window in - (out - 1) * stride; no padding, but
      windows overlap, so inner inputs weigh more.
    SAME: stride and window ceil(in / out), zeros around the array; some sizes
      cannot be reached.
    ADAPTIVE: adjacent windows of in / out inputs; an input on a border is
      shared by area. Every input weighs the same, and any size is reached.
  """

  VALID = 'VALID'
  SAME = 'SAME'
  ADAPTIVE = 'ADAPTIVE'


def avg_pool_array_to_target_shape(
    input_array: jax.Array,
    target_shape: Sequence[int],
    padding_mode: PaddingMode = PaddingMode.VALID,
    count_include_pad_for_same_padding: bool = False) -> jax.Array:
  """Averages an array down to a shape, axis by axis.

  It brings the wider of two networks to the width of the narrower one without
  parameters. Axes of equal size are left alone.

  Pooling is linear; it is additive over `B` unless `B` is pooled.

  Args:
    input_array: any shape; floating, or integer or bool, which are converted to
      float32.
    target_shape: the target size of each axis, from 1 to the axis's size.
    padding_mode: a PaddingMode, or its name.
    count_include_pad_for_same_padding: whether averages of SAME include the
      zeros around the array.

  Returns:
    An array of `target_shape`, with the dtype of `input_array` if that is
    floating and float32 otherwise. Sums are computed in float32 or wider.

  Raises:
    TypeError: a size is not an integer.
    ValueError: `target_shape` has another rank, a size out of range or, with
      SAME, one that cannot be reached; or the mode is unknown.
  """
  array = jnp.asarray(input_array)
  mode = _to_mode(padding_mode)
  target = _to_sizes(target_shape)
  if len(target) != array.ndim:
    raise ValueError('target_shape must have a size for each axis of '
                     f'input_array; got target_shape={target}, '
                     f'input_array.shape={array.shape}. Reshape first.')
  for axis, sizes in enumerate(zip(array.shape, target)):
    _check_size(axis, *sizes, mode)
  floating = jnp.issubdtype(array.dtype, jnp.floating)
  dtype = array.dtype if floating else jnp.float32
  pooled = array.astype(jnp.promote_types(dtype, jnp.float32))
  for axis, (size, out) in enumerate(zip(array.shape, target)):
    if size == out:
      continue
    if size % out == 0:
      pooled = jnp.mean(_split(pooled, axis, out), axis + 1)
    elif mode is PaddingMode.VALID:
      pooled = _pool_valid(pooled, axis, out)
    elif mode is PaddingMode.SAME:
      pooled = _pool_same(pooled, axis, out, count_include_pad_for_same_padding)
    else:
      pooled = _pool_adaptive(pooled, axis, out)
  return pooled.astype(dtype)


def _split(array: jax.Array, axis: int, parts: int) -> jax.Array:
  """Splits an axis in two: `parts`, and the rest."""
  shape = array.shape
  return array.reshape(*shape[:axis], parts, shape[axis] // parts,
                       *shape[axis + 1:])


def _pool_valid(array, axis, out):
  stride = array.shape[axis] // out
  window = array.shape[axis] - (out - 1) * stride
  windows, strides = [1] * array.ndim, [1] * array.ndim
  windows[axis], strides[axis] = window, stride
  sums = jax.lax.reduce_window(array, np.zeros((), array.dtype), jax.lax.add,
                               windows, strides, 'VALID')
  return sums / window


def _pool_same(array, axis, out, count_pad):
  size = array.shape[axis]
  window = -(-size // out)
  low = (out * window - size) // 2
  high = out * window - size - low
  padding = [(0, 0)] * array.ndim
  padding[axis] = (low, high)
  sums = jnp.sum(_split(jnp.pad(array, padding), axis, out), axis + 1)
  if count_pad:
    return sums / window
  starts = np.arange(out) * window - low
  counts = np.minimum(starts + window, size) - np.maximum(starts, 0)
  return sums / counts.reshape(-1, *(1,) * (array.ndim - axis - 1)).astype(
      array.dtype)


def _pool_adaptive(array, axis, out):
  # The windows repeat after in / gcd inputs, so the matrix is small: 4096 to
  # 1536 takes one of 8 by 3.
  repeats = math.gcd(array.shape[axis], out)
  size, out = array.shape[axis] // repeats, out // repeats
  weights = area_weights.weights(size, out)
  pooled = jnp.tensordot(
      _split(array, axis, repeats),
      weights.astype(array.dtype),
      axes=(axis + 1, 0),
      precision=jax.lax.Precision.HIGHEST)
  pooled = jnp.moveaxis(pooled, -1, axis + 1)
  return pooled.reshape(*array.shape[:axis], repeats * out,
                        *array.shape[axis + 1:])


def _to_mode(mode):
  try:
    return PaddingMode(mode)
  except ValueError as err:
    names = ', '.join(known.name for known in PaddingMode)
    raise ValueError('padding_mode must be a PaddingMode; got '
                     f'{mode!r}. Known: {names}.') from err


def _to_sizes(target_shape):
  try:
    return tuple(operator.index(size) for size in target_shape)
  except TypeError as err:
    raise TypeError('target_shape must be a tuple of integers; got '
                    f'{target_shape!r}.') from err


def _check_size(axis, size, out, mode):
  got = f'got target_shape[{axis}]={out}, input_array.shape[{axis}]={size}'
  if out != size and not 1 <= out <= size:
    raise ValueError(f'target_shape[{axis}] must be from 1 to the size of its '
                     f'axis; {got}. Legal: 1 to {size}.')
  if mode is PaddingMode.SAME and out != size and not _reaches(size, out):
    below, above = out - 1, out + 1
    while not _reaches(size, below):
      below -= 1
    while not _reaches(size, above):
      above += 1
    raise ValueError(
        f'target_shape[{axis}] must be a size that SAME can reach; {got}. The '
        f'closest in 1 to {size} are {below} and {above}; ADAPTIVE reaches all '
        'of them.')


def _reaches(size, out):
  window = -(-size // out)
  return -(-size // window) == out
