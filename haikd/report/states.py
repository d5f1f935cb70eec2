"""Reduces what taps capture to what a report keeps, on the device."""

import jax
import jax.numpy as jnp

from haikd.core import masking
from haikd.network import network as network_lib
from haikd.objective import pairs as pairs_lib

FEATURES, ATTENTION = 'features', 'attention'


def pooled(output: network_lib.NetworkOutput,
           mask: jax.Array) -> tuple[jax.Array, ...]:
  """Returns the mean over positions of each layer's features.

  Args:
    output: of the network.
    mask: of the network's view of the batch.

  Returns:
    `[B, D]` float32 a layer; of the first text where an example has several.
  """
  return tuple(
      _pool(value, pairs_lib.tap_mask(mask, value, FEATURES), len(mask))
      for value in output.taps[FEATURES])


def mean_map(output: network_lib.NetworkOutput, mask: jax.Array) -> jax.Array:
  """Returns the mean over heads of the last layer's attention maps.

  Args:
    output: of the network.
    mask: of the network's view of the batch.

  Returns:
    `[B, N, M]` float32; of the first text where an example has several.
  """
  value = output.taps[ATTENTION][-1]
  maps = masking.materialise(value, pairs_lib.tap_mask(mask, value, ATTENTION))
  maps = jnp.mean(maps.astype(jnp.float32), axis=1)
  return maps.reshape(len(mask), -1, *maps.shape[1:])[:, 0]


def unit(vectors: jax.Array) -> jax.Array:
  """Returns vectors scaled to length 1, `[B, D]` float32.

  Args:
    vectors: `[B, D]`, or `[B, S, D]` for S texts an example; the first counts.
  """
  vectors = vectors.reshape(len(vectors), -1, vectors.shape[-1])[:, 0]
  vectors = vectors.astype(jnp.float32)
  length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / jnp.maximum(length, 1e-12)


def _pool(value, mask, examples):
  """Returns the mean of `[B, ..., D]` over its positions, `[B, D]` float32."""
  value = masking.materialise(value, mask).astype(jnp.float32)
  axes = tuple(range(1, value.ndim - 1))
  count = jnp.sum(jnp.broadcast_to(
      masking.expand(mask, value.ndim - 1), value.shape[:-1]), axis=axes)
  total = jnp.sum(masking.clean(value, mask), axis=axes)
  mean = total / jnp.maximum(count, 1)[:, None]
  return mean.reshape(examples, -1, mean.shape[-1])[:, 0]
