"""The peak that MFU is a part of: published, or measured where it is not."""

from collections.abc import Sequence
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from haikd.engine import peaks

_SECONDS = 0.1  # For which products are repeated.
# The sides of square matrices: about 20 ms of a core, and 1 ms of a GPU.
_SIDE_ON_CPU, _SIDE = 1024, 8192


class Peak(NamedTuple):
  """The matrix products that a device can do.

  Attributes:
    flops: operations a second.
    dtype: of the factors.
    is_measured: whether that is what the fastest large product has done, rather
      than what is published.
  """

  flops: float
  dtype: str
  is_measured: bool

  def __str__(self) -> str:
    measured = 'a measured ' if self.is_measured else ''
    return f'{measured}{self.flops / 1e12:.3g} TFLOP/s in {self.dtype}'


def of_devices(devices: Sequence[Any], dtype: str) -> Peak:
  """Returns the peak of one device.

  Args:
    devices: those of this process. On CPU they share its cores.
    dtype: what products are computed in.
  """
  kind, dtype = devices[0].device_kind, str(jnp.dtype(dtype))
  published = peaks.of_products(kind, dtype)
  if published is not None:
    return Peak(published, dtype, False)
  share = len(devices) if devices[0].platform == 'cpu' else 1
  return Peak(_measured(devices[0], dtype) / share, dtype, True)


@functools.cache
def _measured(device, dtype):
  """Returns the operations a second of the fastest of several products."""
  side = _SIDE_ON_CPU if device.platform == 'cpu' else _SIDE
  factor = jax.device_put(jnp.ones((side, side), dtype), device)
  product = jax.jit(jnp.matmul)
  end, fastest = None, float('inf')
  while end is None or time.monotonic() < end:
    begin = time.monotonic()
    jax.block_until_ready(product(factor, factor))
    now = time.monotonic()
    if end is None:  # The first is compiled.
      end = now + _SECONDS
    else:
      fastest = min(fastest, now - begin)
  return 2 * side**3 / fastest
