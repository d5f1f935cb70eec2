"""What tells one set of arrays from another, wherever they lie."""

import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.storage import leaves

_SEEDS = (0x9E3779B9, 0x7F4A7C15)  # Odd, and unlike one another.


def tree_hash(tree: base.ArrayTree) -> str:
  """Returns a hash of names, dtypes, shapes and values.

  Sums of integers do not depend on their order, so that neither the order of
  keys nor the number of devices matters, and an array that is spread over many
  is never brought to one place. It tells apart what differs by chance or by
  mistake; it does not withstand someone who looks for a collision.

  Args:
    tree: a pytree of arrays, of all processes alike.

  Returns:
    SHA-256, in hex, of 64 bits an array.
  """
  digest = hashlib.sha256()
  for name, leaf in sorted(leaves.flatten(tree).items()):
    # One after another: many sums at once, each over all devices, can wait for
    # each other for ever where there are fewer cores than devices.
    digest.update(f'{name} {_form(leaf)} {np.asarray(_sums(leaf))}\n'.encode())
  return digest.hexdigest()


def _form(leaf):
  leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
  return f'{leaf.dtype} {leaf.shape}'


def _sums(leaf):
  if not isinstance(leaf, jax.Array):
    leaf = np.ascontiguousarray(leaf)
    if leaf.dtype.itemsize > 4:
      leaf = leaf[..., None].view(np.uint32)  # JAX would round it to 32 bits.
  elif jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  return _mixed_sums(leaf)


@jax.jit
def _mixed_sums(leaf):
  """Returns two sums, modulo 2^32, of the bits mixed with their places."""
  words = _words(leaf)
  place = jnp.zeros(words.shape, jnp.uint32)
  for axis in range(words.ndim):
    stride = math.prod(words.shape[axis + 1:]) % 2**32
    place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * stride
  return jnp.stack([
      jnp.sum(_mix(words ^ _mix(place + np.uint32(seed))), dtype=jnp.uint32)
      for seed in _SEEDS
  ])


def _words(leaf):
  """Returns the bits of an array as 32-bit integers, in a new last axis."""
  if leaf.dtype == jnp.bool_:
    leaf = leaf.astype(jnp.uint8)
  size = leaf.dtype.itemsize
  if size > 4:  # Of 64 bits, two words.
    return jax.lax.bitcast_convert_type(leaf, jnp.uint32)
  unsigned = jnp.dtype(f'uint{8 * size}')
  return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)[...,
                                                                         None]


def _mix(x):
  """Scrambles 32-bit integers, one to one: the last steps of MurmurHash3."""
  x ^= x >> 16
  x *= np.uint32(0x85EBCA6B)
  x ^= x >> 13
  x *= np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
