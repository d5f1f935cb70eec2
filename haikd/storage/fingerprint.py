"""A hash of arrays that is the same on any number of devices."""

import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.storage import leaves

_SMALL = 2**20  # Numbers that NumPy hashes sooner than a program is compiled.
_SEEDS = (0x9E3779B9, 0x7F4A7C15)  # Odd, with unrelated bits.


def tree_hash(tree: base.ArrayTree) -> str:
  """Returns a hash of names, dtypes, shapes and values.

  The hash is built from sums of integers, which do not depend on their order.
  Hence neither the order of keys nor the number of devices matters, and a
  sharded array is never gathered. The hash distinguishes arrays that differ by
  chance or by mistake; it is not secure against a deliberate collision.

  Args:
    tree: a pytree of arrays, the same on all processes.

  Returns:
    The SHA-256, in hex, of 64 bits an array.
  """
  digest = hashlib.sha256()
  for name, leaf in sorted(leaves.flatten(tree).items()):
    # `np.asarray` waits for each array's sums before the next begin. Many sums
    # over all devices at once can deadlock if there are fewer cores than
    # devices.
    leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    sums = np.asarray(_sums(leaf))
    digest.update(f'{name} {leaf.dtype} {leaf.shape} {sums}\n'.encode())
  return digest.hexdigest()


def _sums(leaf):
  """Returns two sums, modulo 2^32, of words hashed with their positions."""
  is_jax = isinstance(leaf, jax.Array)
  if is_jax and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  if leaf.size <= _SMALL and (not is_jax or _is_plain(leaf)):
    return _sums_on_host(np.asarray(leaf))
  if not is_jax and leaf.dtype.itemsize > 4:
    # JAX would round it to 32 bits.
    leaf = np.ascontiguousarray(leaf)[..., None].view(np.uint32)
  return _sums_on_devices(leaf)


def _is_plain(array):
  """Returns whether an array of JAX is at hand, in words that NumPy has."""
  dtype = array.dtype
  is_packed = jnp.finfo(dtype).bits < 8 if jnp.issubdtype(
      dtype, jnp.floating) else (
          jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits < 8)
  return (array.is_fully_addressable and array.is_fully_replicated and
          dtype.kind != 'c' and not is_packed)


def _sums_on_host(leaf):
  """Returns `_sums` of an array of NumPy."""
  leaf = np.ascontiguousarray(leaf).reshape(-1)
  word = np.dtype(f'uint{8 * min(leaf.dtype.itemsize, 4)}')
  words = leaf.view(word).astype(np.uint32)
  position = np.arange(words.size, dtype=np.uint32)
  return np.array([
      np.sum(_mix(words ^ _mix(position + np.uint32(seed))), dtype=np.uint32)
      for seed in _SEEDS
  ])


@jax.jit
def _sums_on_devices(leaf):
  """Returns `_sums` of an array of JAX, which stays where it is."""
  words = _words(leaf)
  position = jnp.zeros(words.shape, jnp.uint32)
  for axis in range(words.ndim):
    stride = math.prod(words.shape[axis + 1:]) % 2**32
    position += jax.lax.broadcasted_iota(
        jnp.uint32, words.shape, axis) * stride
  return jnp.stack([
      jnp.sum(_mix(words ^ _mix(position + np.uint32(seed))), dtype=jnp.uint32)
      for seed in _SEEDS
  ])


def _words(leaf):
  """Returns the bits of an array as 32-bit words, along a new last axis."""
  if leaf.dtype == jnp.bool_:
    leaf = leaf.astype(jnp.uint8)
  size = leaf.dtype.itemsize
  if size > 4:  # 64 bits become two words.
    return jax.lax.bitcast_convert_type(leaf, jnp.uint32)
  bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f'uint{8 * size}'))
  return bits.astype(jnp.uint32)[..., None]


def _mix(x):
  """Scrambles 32-bit integers bijectively: the last steps of MurmurHash3."""
  x ^= x >> 16
  x *= np.uint32(0x85EBCA6B)
  x ^= x >> 13
  x *= np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
