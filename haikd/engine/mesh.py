"""The mesh, and which part of every array lies on which device of it.

A batch is split over `replica` and `fsdp`. Parameters, and what goes with them,
are split over `fsdp` along their largest axis that divides, and over `tensor`
along the axis that a rule of the model or of the config names; over `replica`
they are copied.
"""

from collections.abc import Iterable, Mapping, Sequence
import math
from typing import Any, NamedTuple, Optional

import jax
from jax.experimental import mesh_utils
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import globs

REPLICA, FSDP, TENSOR = AXES = ('replica', 'fsdp', 'tensor')
BATCH_AXES = (REPLICA, FSDP)  # The batch is split over these.

Mesh = jax.sharding.Mesh
PartitionSpec = jax.sharding.PartitionSpec
BATCH_SPEC = PartitionSpec(BATCH_AXES)

# {glob over '<module>/<parameter>': axis to split over `tensor`, or None}.
Rules = Mapping[str, Optional[int]]

_STACK = 'layer_stack'  # In the name of what Haiku stacks; see `_spec`.


class Share(NamedTuple):
  """Which part of every batch a process reads.

  Attributes:
    index: its place among the parts.
    count: how many parts there are; processes that differ in `tensor` alone
      read the same one.
  """

  index: int
  count: int


def build_mesh(shape: Mapping[str, int],
               devices: Optional[Sequence[Any]] = None) -> Mesh:
  """Returns the mesh of a run.

  Devices that are neighbours in the network become neighbours in `tensor`
  first and then in `fsdp`. If they are of several slices of TPUs, `replica`
  has to go over the slices, so that only gradients cross the network between
  them; over machines of GPUs it goes if it can.

  Args:
    shape: `config.mesh`: the sizes of `replica`, `fsdp` and `tensor`; one of
      them may be -1 and takes the rest.
    devices: the devices to use; all of them by default.

  Returns:
    A mesh with the axes `replica`, `fsdp` and `tensor`, automatic in type.

  Raises:
    ConfigError: the devices cannot be laid out like this.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = [shape[axis] for axis in AXES]
  known = math.prod(size for size in sizes if size != -1)
  if -1 in sizes and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
  written = ', '.join(f'{axis}={shape[axis]}' for axis in AXES)
  if math.prod(sizes) != len(devices):
    raise checks.ConfigError(
        f'placement.build_mesh: config.mesh must use all {len(devices)} devices'
        f'; got {written}. Let one of them be -1, which takes the rest.')
  return Mesh(
      grid_of(devices, sizes),
      AXES,
      axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def grid_of(devices: Sequence[Any], sizes: Sequence[int]) -> np.ndarray:
  """Lays devices out as `build_mesh` says.

  Args:
    devices: as many as the sizes multiply to.
    sizes: of `replica`, `fsdp` and `tensor`.

  Returns:
    An array of devices.

  Raises:
    ConfigError: `replica` cannot go over the slices.
  """
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  divides = sizes[0] % slices == 0
  if devices[0].platform == 'tpu' and not divides:
    raise checks.ConfigError(
        'placement.build_mesh: config.mesh.replica must be a multiple of the '
        f'{slices} slices; got replica={sizes[0]}. Parameters are not split '
        'over the network between slices.')
  if slices > 1 and divides:
    return mesh_utils.create_hybrid_device_mesh(
        (sizes[0] // slices, *sizes[1:]), (slices, 1, 1), devices)
  return mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True)


def batch_shards(mesh: Mesh) -> int:
  """Returns into how many shards the batch is split."""
  return mesh.shape[REPLICA] * mesh.shape[FSDP]


def check_batch_size(mesh: Mesh, batch_size: int, microbatches: int) -> None:
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
        'placement.check_batch_size: config.batch_size must be divisible by '
        'replica x fsdp x microbatches = '
        f'{mesh.shape[REPLICA]} x {mesh.shape[FSDP]} x {microbatches}; got '
        f'batch_size={batch_size}. The nearest: {nearest}.')


def batch_share(mesh: Mesh) -> Share:
  """Returns which part of every batch this process reads.

  Args:
    mesh: over the devices of all processes.

  Returns:
    Its share; see `collectives.shard_batch` for how it gets to the devices.

  Raises:
    ConfigError: two processes hold some shards in common and others not.
  """
  shards: dict[int, set[int]] = {}
  for number, group in enumerate(mesh.devices.reshape(batch_shards(mesh), -1)):
    for device in group:
      shards.setdefault(device.process_index, set()).add(number)
  parts = sorted({tuple(sorted(held)) for held in shards.values()})
  sizes = {len(part) for part in parts}
  if len(sizes) > 1 or sum(map(len, parts)) != batch_shards(mesh):
    raise checks.ConfigError(
        'placement.batch_share: config.mesh.tensor must divide the devices of '
        'a process, or be a multiple of them; got '
        f'tensor={mesh.shape[TENSOR]}. Choose another size.')
  mine = tuple(sorted(shards[jax.process_index()]))
  return Share(parts.index(mine), len(parts))


def place(mesh: Mesh, tree: base.ArrayTree, rules: Rules) -> base.ArrayTree:
  """Says where the arrays of a tree go.

  Args:
    mesh: the devices.
    tree: arrays, or what has their shapes, at `.../<module>/<parameter>`:
      parameters, their running mean, or an optimizer's state. A rule that
      cannot be kept, as of a moment that optimizers factor, is passed over.
    rules: what is split over `tensor`; the first glob that matches holds.

  Returns:
    A NamedSharding for each.
  """

  def sharding(path, leaf):
    keys = [jax.tree_util.keystr((key,), simple=True) for key in path[-2:]]
    spec = _spec(mesh, '/'.join(keys), leaf.shape, rules)
    return jax.sharding.NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(sharding, tree)


def check_rules(title: str, mesh: Mesh, params: base.ArrayTree, rules: Rules,
                written: Iterable[str] = ()) -> bool:
  """Refuses rules for `tensor` that the parameters of a network cannot keep.

  Args:
    title: 'student' or 'teacher', for messages.
    mesh: the devices.
    params: Haiku parameters, or their shapes.
    rules: as for `place`.
    written: those of them that stand in the config.

  Returns:
    Whether `tensor` splits anything.

  Raises:
    ConfigError: an axis that there is not or that does not divide, or a glob in
      the config that matches nothing.
  """
  found = {f'{module}/{name}': leaf for module, parameters in params.items()
           for name, leaf in parameters.items()}
  for glob in written:
    if not any(globs.matches(glob, globs.parts(name)) for name in found):
      known = {'/'.join(globs.parts(name)[-2:]) for name in found}
      raise checks.ConfigError(
          f'placement.check_rules: config.{title}.placement must match '
          f'parameters; got {glob!r}. {checks.suggest(glob, known)}')
  size, split = mesh.shape[TENSOR], False
  for name, leaf in found.items():
    axis, shape = _tensor_axis(name, rules), leaf.shape[_stacked(name, leaf):]
    if axis is None or size == 1:
      continue
    if not _divides(shape, axis, size):
      short = '/'.join(globs.parts(name)[-2:])
      raise checks.ConfigError(
          f'placement.check_rules: axis {axis} of {name} of the {title} must '
          f'be divisible by config.mesh.tensor={size}; got shape='
          f'{tuple(shape)}. Choose another size, or set '
          f"config.{title}.placement['{short}'] to another axis or None.")
    split = True
  return split


def manual_axes(mesh: Mesh) -> tuple[str, ...]:
  """Returns the axes that `shard_map` takes over; `tensor` is left to XLA.

  Where `tensor` is 1, XLA is left none, since on CPU it cannot compile a sum in
  bfloat16 beside an axis of its own; where it is not, XLA gets the other axes
  of one device too, over which it can compile no sum at all.

  Args:
    mesh: the devices.

  Returns:
    Some of AXES; none where all devices are along `tensor`.
  """
  if mesh.shape[TENSOR] == 1:
    return AXES
  return tuple(axis for axis in BATCH_AXES if mesh.shape[axis] > 1)


def whole(mesh: Mesh) -> jax.sharding.NamedSharding:
  """Returns the sharding of what every device has a whole copy of."""
  return jax.sharding.NamedSharding(mesh, PartitionSpec())


def abstract(tree: base.ArrayTree, shardings: base.ArrayTree) -> base.ArrayTree:
  """Returns ShapeDtypeStructs of a tree with their shardings."""
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree,
      shardings)


def shardings_of(tree: base.ArrayTree) -> base.ArrayTree:
  """Returns the shardings of arrays or ShapeDtypeStructs."""
  return jax.tree.map(lambda x: x.sharding, tree)


def _spec(mesh, name, shape, rules):
  # Haiku loops over the leading axis of what is inside a layer_stack, so that
  # a shard of it would be a layer, which no device could do without.
  first = _stacked(name, shape)
  spec = [None] * len(shape)
  axis = _tensor_axis(name, rules)
  if mesh.shape[TENSOR] > 1 and axis is not None and _divides(
      shape[first:], axis, mesh.shape[TENSOR]):
    spec[axis if axis < 0 else first + axis] = TENSOR
  free = [i for i in range(first, len(shape))
          if spec[i] is None and shape[i] and shape[i] % mesh.shape[FSDP] == 0]
  if mesh.shape[FSDP] > 1 and free:
    spec[max(free, key=lambda i: shape[i])] = FSDP
  return PartitionSpec(*spec)


def _stacked(name, array):
  """Returns how many leading axes are loops over layers."""
  rank = len(getattr(array, 'shape', array))
  return min(name.count(f'__{_STACK}'), rank)


def _tensor_axis(name, rules):
  for glob, axis in rules.items():
    if globs.matches(glob, globs.parts(name)):
      return axis
  return None


def _divides(shape, axis, size):
  return -len(shape) <= axis < len(shape) and shape[axis] % size == 0
