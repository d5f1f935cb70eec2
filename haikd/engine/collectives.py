"""Bringing arrays onto the mesh, and the collectives that the step needs."""

from collections.abc import Callable
import functools
import math
from typing import Any, Optional, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.engine import mesh as mesh_lib
from haikd.losses import cutting

T = TypeVar('T')
Groups = tuple[tuple[int, ...], ...]  # Of places along an axis.

_FSDP = mesh_lib.FSDP
_LANES, _TILE = 128, 1024  # Of a TPU: numbers in a row, and in a tile.


def shard_batch(mesh: jax.sharding.Mesh, batch: base.Batch) -> base.Batch:
  """Splits a batch over the devices.

  Which row comes to lie on which device does not matter to a sum over the
  batch; what matters is that each lies on one. A process deals its rows out to
  its own devices, in whatever order they stand in the mesh.

  Args:
    mesh: where it goes.
    batch: NumPy arrays `[B, ...]`: this process's share of the batch, see
      `mesh_lib.batch_share`.

  Returns:
    Global arrays, the leading axis split over the batch axes.
  """
  sharding = jax.sharding.NamedSharding(mesh, mesh_lib.BATCH_SPEC)
  if sharding.is_fully_addressable:
    return jax.device_put(batch, sharding)
  count = mesh_lib.batch_share(mesh).count

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

  JAX does not check what differs from device to device (`check_vma`): it would
  refuse users' networks whose loops start from constants. A gradient therefore
  stays on its device, also that of replicated parameters, and every reduction
  stands by hand.

  Args:
    function: of the device's own arrays; `tensor` is left to XLA.
    mesh: the devices.
    in_specs: PartitionSpecs of the arguments.
    out_specs: likewise of the results.

  Returns:
    A function of global arrays.
  """
  axes = mesh_lib.manual_axes(mesh)
  if not axes:

    def in_mesh(*args):
      with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return function(*args)

    return in_mesh

  def manual(spec):
    entries = (x if isinstance(x, tuple) else (x,) for x in spec)
    return jax.sharding.PartitionSpec(*(
        tuple(axis for axis in entry if axis in axes) for entry in entries))

  return jax.shard_map(
      function,
      mesh=mesh,
      axis_names=set(axes),
      in_specs=jax.tree.map(manual, in_specs),
      out_specs=jax.tree.map(manual, out_specs),
      check_vma=False)


def batch_axes() -> tuple[str, ...]:
  """Returns the axes that the batch is split over, inside `over_shards`."""
  manual = jax.sharding.get_abstract_mesh().manual_axes
  return tuple(axis for axis in mesh_lib.BATCH_AXES if axis in manual)


def build_gather(mesh: jax.sharding.Mesh) -> Optional[Callable]:
  """Returns what makes a parameter whole where it is used.

  A parameter travels in the dtype that it is used in, which halves the traffic
  of bfloat16. Its gradient is summed on the way back and travels in float32:
  what a sum over 256 devices loses in bfloat16 is not noise any more.

  Args:
    mesh: the devices.

  Returns:
    A function of `(value, shape, dtype)` for use inside `over_shards`: the
    device's part of a parameter, the shape of the whole one (save for what
    `tensor` splits), of which an axis that differs is gathered over `fsdp`, and
    the dtype to return it in. None where every device has whole parameters.
  """
  if mesh.shape[_FSDP] == 1:
    return None
  turns = turns_of(mesh)

  def gather(value, shape, dtype):
    axes = [i for i, whole in enumerate(shape) if value.shape[i] != whole]
    if not axes:
      return value.astype(dtype)
    return _gather(value, axes[0], dtype, turns)

  return gather


def turns_of(mesh: jax.sharding.Mesh) -> tuple[Optional[Groups], ...]:
  """Returns over which groups of devices a gradient is scattered, in turn.

  Where `fsdp` takes all chips of a TPU slice, its compiler makes an all-reduce
  of every reduce-scatter, and of small all-gathers too, which sends twice as
  much; where there are replicas, of some. Two in turn, over rows and over
  columns, it leaves as they are; they send as much as one.

  Args:
    mesh: the devices.

  Returns:
    The groups of each scatter, by their places on `fsdp`; None for all of them.
    Gathers go over the same, the last one first.
  """
  size = mesh.shape[_FSDP]
  rows = max(n for n in range(1, int(size**0.5) + 1) if size % n == 0)
  on_tpu = mesh.devices.flat[0].platform == 'tpu'
  if not on_tpu or rows == 1 or mesh.shape[mesh_lib.TENSOR] > 1:
    return (None,)
  return two_turns(size, rows)


def two_turns(size: int, rows: int) -> tuple[Groups, ...]:
  """Returns the groups of a scatter over columns, then over rows of a grid."""
  grid = np.arange(size).reshape(rows, -1)
  return tuple(
      tuple(map(tuple, lines.tolist())) for lines in (grid.T, grid))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(value, axis, dtype, turns):
  value = value.astype(dtype)
  for groups in reversed(turns):
    value = lax.all_gather(
        value, _FSDP, axis=axis, tiled=True, axis_index_groups=groups)
  return value


def _gather_forward(value, axis, dtype, turns):
  return _gather(value, axis, dtype, turns), jnp.zeros((), value.dtype)


def _gather_backward(axis, dtype, turns, like, gradient):
  del dtype
  # Along the first axis, and in tiles that are full: of any other scatter, a
  # TPU's compiler makes an all-reduce again.
  gradient = jnp.moveaxis(gradient.astype(jnp.float32), axis, 0)
  rest = gradient.shape[1:]
  odd = math.prod(rest) % _TILE and math.prod(rest) % _LANES == 0
  if odd and math.prod(rest) > _TILE:
    gradient = gradient.reshape(gradient.shape[0], -1, _LANES)
  for groups in turns:
    gradient = lax.psum_scatter(
        gradient, _FSDP, scatter_dimension=0, tiled=True,
        axis_index_groups=groups)
  gradient = gradient.reshape(gradient.shape[0], *rest)
  return (jnp.moveaxis(gradient, 0, axis).astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def sum_over_batch(tree: T) -> T:
  """Adds up over the batch shards, inside `over_shards`."""
  axes = batch_axes()
  return lax.psum(tree, axes) if axes else tree


def sum_gradient(gradient: T, specs: base.ArrayTree) -> T:
  """Adds a gradient up over the batch shards, inside `over_shards`.

  Args:
    gradient: of the parameters, each shard's own.
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
  """Brings arrays to one value on all shards, inside `over_shards`.

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


def chunk_sizes(mesh: jax.sharding.Mesh,
                chunk_bytes: Optional[int]) -> cutting.ChunkSizes:
  """Returns how logits are cut into chunks, inside `over_shards`.

  Where `tensor` splits them, there are collectives in each chunk, and a device
  must not be through before the others.

  Args:
    mesh: the devices.
    chunk_bytes: of a device's logits in a chunk; None for what suits it.
  """

  def split(array):
    if array.shape[-1] % tensor:
      return array
    free = jax.sharding.PartitionSpec.UNCONSTRAINED
    spec = (*(free,) * (array.ndim - 1), mesh_lib.TENSOR)
    return lax.with_sharding_constraint(
        array, jax.sharding.PartitionSpec(*spec))

  tensor = mesh.shape[mesh_lib.TENSOR]
  if tensor == 1:
    return cutting.ChunkSizes(chunk_bytes)
  # Of each chunk a device holds but a part.
  return cutting.ChunkSizes(chunk_bytes and chunk_bytes * tensor,
                            agree_over_batch, split)


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
