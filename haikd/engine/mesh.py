"""The mesh, and which part of every array lies on which of its devices.

A batch is split over `replica` and `fsdp`. Parameters, their running mean and
the optimizer's state are split over `fsdp` along their largest axis that
divides, and over `tensor` along the axis that a rule of the model or of the
config names; they are replicated over `replica`.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any, Optional

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


@dataclasses.dataclass(frozen=True)
class Share:
  """Which part of every batch a process reads.

  Attributes:
    index: the number of the part, from 0.
    count: how many parts there are; processes that differ only along `tensor`
      read the same one.
  """

  index: int
  count: int


def build_mesh(shape: Mapping[str, int],
               devices: Optional[Sequence[Any]] = None) -> Mesh:
  """Returns the mesh of a run.

  Devices that are neighbours in the network become neighbours along `tensor`
  first and then along `fsdp`. With several TPU slices, `replica` must span the
  slices, so that only gradients cross the network between them. With several
  GPU machines it spans them if its size allows.

  Args:
    shape: `config.mesh`: the sizes of `replica`, `fsdp` and `tensor`. One of
      them may be -1: it takes the remaining devices.
    devices: the devices to use; all of them by default.

  Returns:
    A mesh with the axes `replica`, `fsdp` and `tensor`, of type Auto.

  Raises:
    ConfigError: the devices cannot be laid out like this.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = [shape[axis] for axis in AXES]
  known = math.prod(size for size in sizes if size != -1)
  if -1 in sizes and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
  requested = ', '.join(f'{axis}={shape[axis]}' for axis in AXES)
  if math.prod(sizes) != len(devices):
    raise checks.ConfigError(
        f'config.mesh must use all {len(devices)} devices; got {requested}. '
        'Set one of them to -1, which takes the remaining devices.')
  return Mesh(
      grid_of(devices, sizes),
      AXES,
      axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def grid_of(devices: Sequence[Any], sizes: Sequence[int]) -> np.ndarray:
  """Lays devices out as described at `build_mesh`.

  Args:
    devices: as many as the product of the sizes.
    sizes: of `replica`, `fsdp` and `tensor`.

  Returns:
    An array of devices, of the shape `sizes`.

  Raises:
    ConfigError: `replica` cannot span the slices.
  """
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  divides = sizes[0] % slices == 0
  if devices[0].platform == 'tpu' and not divides:
    raise checks.ConfigError(
        f'config.mesh.replica must be a multiple of the {slices} slices; got '
        f'{sizes[0]}. Parameters cannot be split over several slices.')
  if slices > 1 and divides:
    return mesh_utils.create_hybrid_device_mesh(
        (sizes[0] // slices, *sizes[1:]), (slices, 1, 1), devices)
  return mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True)


def batch_shards(mesh: Mesh) -> int:
  """Returns the number of shards that the batch is split into."""
  return mesh.shape[REPLICA] * mesh.shape[FSDP]


def check_batch_size(mesh: Mesh, batch_size: int, microbatches: int) -> None:
  """Raises ConfigError unless a batch splits evenly.

  Args:
    mesh: the devices.
    batch_size: of the global batch.
    microbatches: how many each device makes of its shard.

  Raises:
    ConfigError: the batch size does not divide.
  """
  parts = batch_shards(mesh) * microbatches
  if batch_size % parts:
    below = batch_size // parts * parts
    nearest = f'{below} or {below + parts}' if below else f'{parts}'
    raise checks.ConfigError(
        'config.batch_size must be divisible by replica x fsdp x microbatches '
        f'= {mesh.shape[REPLICA]} x {mesh.shape[FSDP]} x {microbatches}; got '
        f'{batch_size}. The nearest: {nearest}.')


def batch_share(mesh: Mesh) -> Share:
  """Returns which part of every batch this process reads.

  Args:
    mesh: over the devices of all processes.

  Returns:
    Its share; `collectives.shard_batch` brings it to the devices.

  Raises:
    ConfigError: two processes have some of their shards in common, but not all.
  """
  shards: dict[int, set[int]] = {}
  for number, group in enumerate(mesh.devices.reshape(batch_shards(mesh), -1)):
    for device in group:
      shards.setdefault(device.process_index, set()).add(number)
  parts = sorted({tuple(sorted(numbers)) for numbers in shards.values()})
  sizes = {len(part) for part in parts}
  if len(sizes) > 1 or sum(map(len, parts)) != batch_shards(mesh):
    raise checks.ConfigError(
        'config.mesh.tensor must divide the number of devices of a process, or '
        f'be a multiple of it; got {mesh.shape[TENSOR]}. Choose another size.')
  mine = tuple(sorted(shards[jax.process_index()]))
  return Share(parts.index(mine), len(parts))


def place(mesh: Mesh, tree: base.ArrayTree, rules: Rules) -> base.ArrayTree:
  """Returns the shardings of the arrays of a tree.

  Args:
    mesh: the devices.
    tree: arrays or ShapeDtypeStructs at `.../<module>/<parameter>`: parameters,
      their running mean, or an optimizer's state. A rule is ignored for an
      array that it cannot split, such as a factored moment.
    rules: what is split over `tensor`; the first glob that matches decides.

  Returns:
    A NamedSharding for each array.
  """

  def sharding(path, leaf):
    keys = [jax.tree_util.keystr((key,), simple=True) for key in path[-2:]]
    spec = _spec(mesh, '/'.join(keys), leaf.shape, rules)
    return jax.sharding.NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(sharding, tree)


def check_rules(title: str, mesh: Mesh, params: base.ArrayTree, rules: Rules,
                written: Iterable[str] = ()) -> bool:
  """Refuses rules for `tensor` that the parameters of a network cannot follow.

  Args:
    title: 'student' or 'teacher', for messages.
    mesh: the devices.
    params: Haiku parameters, or their shapes.
    rules: as for `place`.
    written: the globs of the rules that the config contains.

  Returns:
    Whether `tensor` splits anything.

  Raises:
    ConfigError: an axis that does not exist or does not divide, a glob in the
      config that matches nothing, or two that disagree.
  """
  leaves = {f'{module}/{name}': leaf for module, parameters in params.items()
            for name, leaf in parameters.items()}
  for glob in written:
    if not any(globs.matches(glob, globs.parts(name)) for name in leaves):
      known = {'/'.join(globs.parts(name)[-2:]) for name in leaves}
      raise checks.ConfigError(
          f'config.{title}.placement must match parameters; got {glob!r}. '
          f'{checks.suggest(glob, known)}')
  for name, leaf in leaves.items():
    found = {glob: rules[glob] for glob in written
             if globs.matches(glob, globs.parts(name))}
    if len(set(found.values())) > 1:
      raise checks.ConfigError(
          f'config.{title}.placement must give {name} one axis; got {found}. A '
          'config keeps no order of its keys: narrow the globs.')
    shape = leaf.shape[_stacked(name, leaf):]
    if not all(x is None or _divides(shape, x, 1) for x in found.values()):
      raise checks.ConfigError(
          f'config.{title}.placement must give {name} an axis that it has; '
          f'got {found}, shape={tuple(shape)}. Write -1 for the last.')
  size, split = mesh.shape[TENSOR], False
  for name, leaf in leaves.items():
    axis, shape = _tensor_axis(name, rules), leaf.shape[_stacked(name, leaf):]
    if axis is None or size == 1:
      continue
    if not _divides(shape, axis, size):
      short = '/'.join(globs.parts(name)[-2:])
      raise checks.ConfigError(
          f'config.mesh.tensor must divide axis {axis} of {name} of the '
          f'{title}; got {size}, shape={tuple(shape)}. Choose another size, or '
          f"set config.{title}.placement['{short}'] to another axis or None.")
    split = True
  return split


def manual_axes(mesh: Mesh) -> tuple[str, ...]:
  """Returns the axes that are manual in `shard_map`; XLA has the others.

  `tensor` is automatic if it has several devices. If it has one, all axes are
  manual, since on CPU XLA cannot compile a sum in bfloat16 beside an automatic
  axis. Beside an automatic `tensor`, axes of one device are automatic too,
  since XLA cannot compile any sum over a manual axis of one device there.

  Args:
    mesh: the devices.

  Returns:
    Some of AXES; none if all devices are along `tensor`.
  """
  if mesh.shape[TENSOR] == 1:
    return AXES
  return tuple(axis for axis in BATCH_AXES if mesh.shape[axis] > 1)


def replicated(mesh: Mesh) -> jax.sharding.NamedSharding:
  """Returns the sharding of an array that is replicated on every device."""
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
  # Haiku scans over the leading axis of parameters inside a layer_stack. A
  # shard along it would be a layer, and every device needs all layers.
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
  """Returns how many leading axes of an array, or a shape, are of layers."""
  rank = len(getattr(array, 'shape', array))
  return min(name.count(globs.LAYER_STACK), rank)


def _tensor_axis(name, rules):
  return next((axis for glob, axis in rules.items()
               if globs.matches(glob, globs.parts(name))), None)


def _divides(shape, axis, size):
  return -len(shape) <= axis < len(shape) and shape[axis] % size == 0
