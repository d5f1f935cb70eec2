"""Brings arrays onto the mesh, and has the collectives that the step needs."""

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
Groups = tuple[tuple[int, ...], ...]  # Of indices along an axis.

_FSDP = mesh_lib.FSDP
_LANES, _TILE = 128, 1024  # Numbers in a row and in a tile of a TPU.


def shard_batch(mesh: jax.sharding.Mesh, batch: T) -> T:
  """Splits a batch over the devices.

  Sums over the batch need each row on exactly one device, no matter which. A
  process deals its rows out to its devices, whatever their order in the mesh.

  Args:
    mesh: the devices.
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
    first_rows = {
        device: index[0].indices(shape[0])[0] for device, index in
        sharding.addressable_devices_indices_map(shape).items()}
    distinct = sorted(set(first_rows.values()))
    parts = dict(zip(distinct, np.split(x, len(distinct))))
    pieces = [jax.device_put(parts[row], device)
              for device, row in first_rows.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, pieces)

  return jax.tree.map(put, batch)


def over_shards(function: Callable, mesh: jax.sharding.Mesh, in_specs: Any,
                out_specs: Any) -> Callable:
  """Returns a function that runs on every device, on its part of the arrays.

  JAX does not track which arrays differ between devices (`check_vma=False`):
  the check would refuse users' networks whose loops start from constants. A
  gradient therefore stays on its device, even that of replicated parameters,
  and every reduction must be written out.

  Args:
    function: of the device's parts of the arrays; XLA splits them further over
      `tensor`.
    mesh: the devices.
    in_specs: PartitionSpecs of the arguments.
    out_specs: PartitionSpecs of the results.

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
  """Returns the function that gathers a parameter where it is used.

  A parameter is sent in the dtype that it is used in, which halves the traffic
  of bfloat16. Its gradient is summed on the way back and sent in float32: the
  error of a sum over 256 devices in bfloat16 is more than noise.

  Args:
    mesh: the devices.

  Returns:
    A function of `(value, shape, dtype)` for use inside `over_shards`: the
    device's part of a parameter, the shape of the complete one (except for what
    `tensor` splits), and the dtype to return it in. The axis whose size differs
    is gathered over `fsdp`. None if every device has complete parameters.
  """
  if mesh.shape[_FSDP] == 1:
    return None
  turns = turns_of(mesh)

  def gather(value, shape, dtype):
    axes = [i for i, size in enumerate(shape) if value.shape[i] != size]
    if not axes:
      return value.astype(dtype)
    return _gather(value, axes[0], dtype, turns)

  return gather


def turns_of(mesh: jax.sharding.Mesh) -> tuple[Optional[Groups], ...]:
  """Returns the groups of devices that gradients are scattered over, in turn.

  If `fsdp` spans a TPU slice, the TPU compiler turns every reduce-scatter and
  small all-gathers into all-reduces, which send twice as much; with replicas it
  turns some of them. It keeps two reduce-scatters in turn, over rows and over
  columns, which send as much as one.

  Args:
    mesh: the devices.

  Returns:
    The groups of each scatter, as indices along `fsdp`; None for one group of
    all devices. Gathers use the same groups in reverse order.
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


def _gather_backward(axis, dtype, turns, template, gradient):
  del dtype
  # Along the first axis and in full tiles: the TPU compiler turns any other
  # scatter into an all-reduce again.
  gradient = jnp.moveaxis(gradient.astype(jnp.float32), axis, 0)
  rest = gradient.shape[1:]
  size = math.prod(rest)
  if size > _TILE and size % _TILE and size % _LANES == 0:
    gradient = gradient.reshape(gradient.shape[0], -1, _LANES)
  for groups in turns:
    gradient = lax.psum_scatter(
        gradient, _FSDP, scatter_dimension=0, tiled=True,
        axis_index_groups=groups)
  gradient = gradient.reshape(gradient.shape[0], *rest)
  return (jnp.moveaxis(gradient, 0, axis).astype(template.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def sum_over_batch(tree: T) -> T:
  """Adds arrays up over the batch shards, inside `over_shards`."""
  axes = batch_axes()
  return lax.psum(tree, axes) if axes else tree


def sum_gradient(gradient: T, specs: base.ArrayTree) -> T:
  """Adds a gradient up over the batch shards, inside `over_shards`.

  Args:
    gradient: of the parameters, as computed by each shard.
    specs: a PartitionSpec for each parameter. Over the axes that a parameter is
      split over, its gradient has been added up when it was scattered.

  Returns:
    The gradient, split as the parameters are.
  """

  def add(x, spec):
    axes = tuple(a for a in batch_axes() if a not in spec)
    return lax.psum(x, axes) if axes else x

  return jax.tree.map(add, gradient, specs)


def agree_over_batch(tree: T) -> T:
  """Makes arrays equal on all shards, inside `over_shards`.

  Floats, such as statistics of each shard, are averaged. Integers and PRNG
  keys are usually equal on all shards; their maximum is taken.

  Args:
    tree: arrays that differ between the batch shards.

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

  If `tensor` splits them, each chunk contains collectives, so all devices must
  run the same number of chunks.

  Args:
    mesh: the devices.
    chunk_bytes: of a device's logits in a chunk; None for what suits it.
  """
  tensor = mesh.shape[mesh_lib.TENSOR]
  if tensor == 1:
    return cutting.ChunkSizes(chunk_bytes)

  def split(array):
    if array.shape[-1] % tensor:
      return array
    free = jax.sharding.PartitionSpec.UNCONSTRAINED
    spec = (*(free,) * (array.ndim - 1), mesh_lib.TENSOR)
    return lax.with_sharding_constraint(
        array, jax.sharding.PartitionSpec(*spec))

  # A device holds 1/tensor of a chunk's logits.
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
