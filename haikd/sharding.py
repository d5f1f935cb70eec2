"""Bringing arrays onto the mesh, and the collectives that the step needs."""

from collections.abc import Callable, Sequence
import functools
from typing import Any, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from haikd import base
from haikd import checks
from haikd import placement

T = TypeVar('T')

_FSDP = placement.FSDP


def replicate(mesh: jax.sharding.Mesh, tree: T) -> T:
  """Puts a whole copy of every array on every device."""
  return jax.device_put(
      tree, jax.sharding.NamedSharding(mesh, placement.REPLICATED))


def put_like(tree: T, abstract: base.ArrayTree) -> T:
  """Puts arrays where others of the same structure lie, or will lie."""
  return jax.device_put(tree, placement.shardings_of(abstract))


def shard_batch(mesh: jax.sharding.Mesh, batch: base.Batch) -> base.Batch:
  """Splits a batch over the devices.

  Which row comes to lie on which device does not matter to a sum over the
  batch; what matters is that each lies on one. A process deals its rows out to
  its own devices, in whatever order they stand in the mesh.

  Args:
    mesh: where it goes.
    batch: NumPy arrays `[B, ...]`: this process's share of the batch, see
      `placement.batch_share`.

  Returns:
    Global arrays, the leading axis split over the batch axes.
  """
  sharding = jax.sharding.NamedSharding(mesh, placement.BATCH_SPEC)
  if sharding.is_fully_addressable:
    return jax.device_put(batch, sharding)
  count = placement.batch_share(mesh).count

  def put(x):
    x = np.asarray(x)
    shape = (x.shape[0] * count, *x.shape[1:])
    rows = {device: index[0].indices(shape[0])[0] for device, index in
            sharding.addressable_devices_indices_map(shape).items()}
    starts = sorted(set(rows.values()))
    parts = dict(zip(starts, np.split(x, len(starts))))
    pieces = [jax.device_put(parts[start], device)
              for device, start in rows.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, pieces)

  return jax.tree.map(put, batch)


def over_shards(function: Callable, mesh: jax.sharding.Mesh, in_specs: Any,
                out_specs: Any) -> Callable:
  """Returns a function that runs on every device, on its part of the arrays.

  Args:
    function: of the device's own arrays; `tensor` is left to XLA.
    mesh: the devices.
    in_specs: PartitionSpecs of the arguments, save for `tensor`.
    out_specs: likewise of the results.

  Returns:
    A function of global arrays.
  """
  axes = placement.manual_axes(mesh)
  if not axes:
    return function
  trim = lambda spec: jax.sharding.PartitionSpec(*(
      tuple(a for a in entry if a in axes) if isinstance(entry, tuple) else
      entry for entry in spec))
  return jax.shard_map(
      function,
      mesh=mesh,
      axis_names=set(axes),
      in_specs=jax.tree.map(trim, in_specs),
      out_specs=jax.tree.map(trim, out_specs))


def batch_axes() -> tuple[str, ...]:
  """Returns the axes that the batch is split over, inside `over_shards`."""
  manual = jax.sharding.get_abstract_mesh().manual_axes
  return tuple(axis for axis in placement.BATCH_AXES if axis in manual)


def gather_parameter(value: jax.Array, shape: Sequence[int],
                     dtype: Any) -> jax.Array:
  """Makes a parameter whole where it is used, inside `over_shards`.

  It travels in the dtype that it is used in, which halves the traffic of
  bfloat16; its gradient is summed on the way back and travels in float32, for
  what a sum over 256 devices loses in bfloat16 is not noise any more.

  Args:
    value: the device's part of the parameter.
    shape: of the whole one. An axis that differs is gathered over `fsdp`.
    dtype: what to return it in.

  Returns:
    The whole parameter, save for what `tensor` splits.
  """
  axes = [i for i, whole in enumerate(shape) if value.shape[i] != whole]
  if not axes:
    return value.astype(dtype)
  return _gather(value, axes[0], dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(value, axis, dtype):
  return lax.all_gather(value.astype(dtype), _FSDP, axis=axis, tiled=True)


def _gather_forward(value, axis, dtype):
  return _gather(value, axis, dtype), jnp.zeros((), value.dtype)


def _gather_backward(axis, dtype, like, gradient):
  gradient = lax.psum_scatter(
      gradient.astype(jnp.float32), _FSDP, scatter_dimension=axis, tiled=True)
  return (gradient.astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def vary(tree: T) -> T:
  """Marks arrays as different on each batch shard, inside `over_shards`.

  A gradient with respect to what varies stays on its device. Were it taken with
  respect to the replicated array, it would be reduced in every microbatch.

  Args:
    tree: arrays that may be the same everywhere.

  Returns:
    The same values.
  """

  def mark(x):
    varying = jax.typeof(x).manual_axis_type.varying
    axes = tuple(a for a in batch_axes() if a not in varying)
    return lax.pcast(x, axes, to='varying') if axes else x

  return jax.tree.map(mark, tree)


def sum_over_batch(tree: T) -> T:
  """Adds up over the batch shards, inside `over_shards`."""
  axes = batch_axes()
  return lax.psum(tree, axes) if axes else tree


def sum_gradient(gradient: T, specs: base.ArrayTree) -> T:
  """Adds a gradient up over the batch shards, inside `over_shards`.

  Args:
    gradient: of parameters that `vary`.
    specs: a PartitionSpec for each: over the axes that one is split over, the
      sum has been taken where its gradient was scattered.

  Returns:
    The gradient, split as the parameters are.
  """

  def add(x, spec):
    axes = tuple(a for a in batch_axes() if a not in spec)
    return lax.psum(x, axes) if axes else x

  return jax.tree.map(add, gradient, specs)


def agree_over_batch(tree: T) -> T:
  """Brings network state to one value, inside `over_shards`.

  Statistics that were computed per shard are averaged; of integers and PRNG
  keys, which are the same on all shards as a rule, the largest is taken.

  Args:
    tree: arrays that vary over the batch shards.

  Returns:
    Arrays that do not.
  """
  axes = batch_axes()

  def agree(x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      data = lax.pmax(jax.random.key_data(x), axes)
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    if checks.is_real(x):
      return lax.pmean(x, axes)
    return lax.pmax(x, axes)

  return jax.tree.map(agree, tree) if axes else tree


def gather_over_batch(tree: T) -> T:
  """Concatenates the shards along the leading axis, inside `over_shards`."""
  axes = batch_axes()
  if not axes:
    return tree
  return jax.tree.map(
      lambda x: lax.all_gather(x, axes, axis=0, tiled=True), tree)


def shard_index() -> jax.Array:
  """Returns the number of this batch shard, inside `over_shards`."""
  axes = batch_axes()
  return lax.axis_index(axes) if axes else jnp.int32(0)
