"""Relative positions in buckets, which add a bias to attention scores."""

import math

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import checks
from haikd.models import layers


class RelativeBias(hk.Module):
  """A number for each head and bucket of distances, `[buckets, H]`."""

  def __init__(self, heads: int, buckets: int, max_distance: int):
    super().__init__(name='relative')
    self.heads = heads
    self.buckets = buckets
    self.max_distance = max_distance

  def __call__(self, length: int) -> jax.Array:
    """Returns the bias of rows of N = length, as in `base.QueryKey`."""
    table = hk.get_parameter('embeddings', (self.buckets, self.heads),
                             init=hk.initializers.TruncatedNormal(0.02))
    farthest = self.max_distance  # Keys beyond it are in its bucket.
    rows = jnp.asarray(bucket(np.arange(-farthest, farthest + 1), self.buckets,
                              farthest))
    distances = jnp.arange(2 * length - 1) + (1 - length)
    return table[rows[jnp.clip(distances, -farthest, farthest) + farthest]].T


def bucket(distances: np.ndarray, buckets: int,
           max_distance: int) -> np.ndarray:
  """Returns the bucket of each distance from a query to a key.

  Half of the buckets are for keys behind the query. Of each half, one half has
  a distance each, and the other has ranges that grow exponentially, up to
  `max_distance`; the last takes all that are farther.

  Args:
    distances: integers, negative for keys before the query.
    buckets: how many there are; a multiple of 4.
    max_distance: see above.

  References:
    Raffel et al., arXiv:1910.10683, section 2.1. In float32, as by the code
    that the networks were trained with, since rounding decides at bounds.
  """
  half = buckets // 2
  exact = half // 2
  away = np.abs(distances)
  ratio = np.maximum(away, 1).astype(np.float32) / np.float32(exact)
  far = exact + (np.log(ratio) / np.float32(math.log(max_distance / exact)) *
                 np.float32(half - exact)).astype(np.int32)
  within = np.where(away < exact, away, np.minimum(far, half - 1))
  return within + half * (distances > 0)


def check(*, relative_buckets: int, max_distance: int) -> None:
  """Raises ConfigError unless the options of a bias are valid."""
  layers.check_positive(
      relative_buckets=relative_buckets, max_distance=max_distance)
  if relative_buckets % 4:
    raise checks.ConfigError(
        'relative_buckets must be a multiple of 4; got '
        f'{relative_buckets}.')
  if max_distance <= relative_buckets // 4:
    raise checks.ConfigError(
        f'max_distance must be above relative_buckets / 4; got {max_distance}, '
        f'relative_buckets={relative_buckets}.')
