"""Random bits that XLA compiles once, whatever the shapes they are drawn in.

On CPU XLA takes 0.2 to 0.6 s to compile `jax.random` for each new shape; the
parameters of a network have several. Here all shapes are drawn in parts of one
size, which XLA compiles once.
"""

import functools
import math
from typing import Any

import jax
from jax import lax
from jax.extend import random
import jax.numpy as jnp
import numpy as np

_NAME = 'threefry2x32'
_AT_ONCE = 4096  # Bits of so many numbers are drawn at once.


def in_parts(key: jax.Array, max_bytes: int) -> jax.Array:
  """Returns a key that gives the same numbers, drawn in parts of one size.

  Keys that are split off it do so too.

  Args:
    key: typed PRNG key. One of another kind than JAX's default comes back as
      it is.
    max_bytes: larger draws are made as usual.
  """
  if (str(jax.random.key_impl(key)) != _NAME or
      not jax.config.values['jax_threefry_partitionable']):
    return key
  return jax.random.wrap_key_data(
      jax.random.key_data(key), impl=_implementation(max_bytes))


def as_usual(tree: Any) -> Any:
  """Returns a pytree of arrays, its keys as they are without `in_parts`."""

  def usual(x):
    is_ours = jnp.issubdtype(x.dtype, jax.dtypes.prng_key) and str(
        jax.random.key_impl(x)).startswith('haikd')
    return (jax.random.wrap_key_data(jax.random.key_data(x), impl=_NAME)
            if is_ours else x)

  return jax.tree.map(usual, tree)


@functools.cache
def _implementation(max_bytes):
  """Returns Threefry whose draws of 32 bits are made in parts."""
  usual = random.threefry_prng_impl

  def random_bits(key, bit_width, shape):
    size = math.prod(shape)
    # A single number may be one of many, each with a key of its own.
    if bit_width != 32 or not 4 < 4 * size <= max_bytes:
      return usual.random_bits(key, bit_width, shape)

    def part(first, _):
      low = first + lax.iota(np.uint32, _AT_ONCE)
      return first + np.uint32(_AT_ONCE), lax.bitwise_xor(
          *random.threefry2x32_p.bind(*key, jnp.zeros_like(low), low))

    _, parts = lax.scan(part, np.uint32(0), length=-(-size // _AT_ONCE))
    return parts.reshape(-1)[:size].reshape(shape)

  return random.define_prng_impl(
      key_shape=usual.key_shape, seed=usual.seed, split=usual.split,
      random_bits=random_bits, fold_in=usual.fold_in,
      name=f'haikd_threefry_{max_bytes}', tag='haikd')
