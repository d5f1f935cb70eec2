"""The mesh, how arrays lie on it, and the collectives that the step needs."""

from typing import TypeVar

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from haikd import base
from haikd import checks

T = TypeVar('T')

REPLICA, FSDP, TENSOR = AXES = ('replica', 'fsdp', 'tensor')
BATCH_AXES = (REPLICA, FSDP)  # The batch is split over these.

PartitionSpec = jax.sharding.PartitionSpec
BATCH_SPEC = PartitionSpec(BATCH_AXES)
REPLICATED = PartitionSpec()


def build_mesh(devices=None) -> jax.sharding.Mesh:
  """Returns a mesh over all devices, every one a replica.

  Args:
    devices: the devices to use; all of them by default.

  Returns:
    A mesh with the axes `replica`, `fsdp` and `tensor`.
  """
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh((len(devices), 1, 1),
                       AXES,
                       axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
                       devices=devices)


def batch_shards(mesh: jax.sharding.Mesh) -> int:
  """Returns into how many shards the batch is split."""
  return mesh.shape[REPLICA] * mesh.shape[FSDP]


def check_batch_size(mesh: jax.sharding.Mesh, batch_size: int,
                     microbatches: int) -> None:
  """Raises ConfigError unless a batch splits evenly.

  Args:
    mesh: where it is split.
    batch_size: of the whole batch.
    microbatches: parts that each device makes of its shard.

  Raises:
    ConfigError: the batch size does not divide.
  """
  parts = batch_shards(mesh) * microbatches
  if batch_size % parts:
    below = batch_size // parts * parts
    nearest = f'{below} or {below + parts}' if below else f'{parts}'
    raise checks.ConfigError(
        'sharding.check_batch_size: config.batch_size must be divisible by '
        f'devices x microbatches = {batch_shards(mesh)} x {microbatches}; got '
        f'batch_size={batch_size}. The nearest: {nearest}.')


def replicate(mesh: jax.sharding.Mesh, tree: T) -> T:
  """Puts a whole copy of every array on every device."""
  return jax.device_put(tree, jax.sharding.NamedSharding(mesh, REPLICATED))


def shard_batch(mesh: jax.sharding.Mesh, batch: base.Batch) -> base.Batch:
  """Splits a batch over the devices.

  Args:
    mesh: where it goes.
    batch: NumPy arrays `[B, ...]`: this process's part of the batch.

  Returns:
    Global arrays, the leading axis split over the batch axes.
  """
  sharding = jax.sharding.NamedSharding(mesh, BATCH_SPEC)
  return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
      batch)


def vary(tree: T) -> T:
  """Marks arrays as different on each batch shard, inside `shard_map`.

  A gradient with respect to what varies stays on its device. Were it taken with
  respect to the replicated array, it would be reduced in every microbatch.

  Args:
    tree: arrays that may be the same everywhere.

  Returns:
    The same values.
  """

  def mark(x):
    varying = jax.typeof(x).manual_axis_type.varying
    axes = tuple(a for a in BATCH_AXES if a not in varying)
    return lax.pcast(x, axes, to='varying') if axes else x

  return jax.tree.map(mark, tree)


def sum_over_batch(tree: T) -> T:
  """Adds up over the batch shards, inside `shard_map`."""
  return lax.psum(tree, BATCH_AXES)


def agree_over_batch(tree: T) -> T:
  """Brings network state to one value, inside `shard_map`.

  Statistics that were computed per shard are averaged; of integers and PRNG
  keys, which are the same on all shards as a rule, the largest is taken.

  Args:
    tree: arrays that vary over the batch shards.

  Returns:
    Arrays that do not.
  """

  def agree(x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      data = lax.pmax(jax.random.key_data(x), BATCH_AXES)
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    if checks.is_real(x):
      return lax.pmean(x, BATCH_AXES)
    return lax.pmax(x, BATCH_AXES)

  return jax.tree.map(agree, tree)


def gather_over_batch(tree: T) -> T:
  """Concatenates the shards along the leading axis, inside `shard_map`."""
  return jax.tree.map(
      lambda x: lax.all_gather(x, BATCH_AXES, axis=0, tiled=True), tree)


def shard_index() -> jax.Array:
  """Returns the number of this batch shard, inside `shard_map`."""
  return lax.axis_index(BATCH_AXES)
