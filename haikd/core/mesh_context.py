"""The mesh and the platform that a function is traced for."""

from typing import Any, TypeVar

import jax
from jax import lax

from haikd.core import jax_internals

T = TypeVar('T')


def vary_like(tree: T, *references: Any) -> T:
  """Marks arrays as varying over the mesh axes that the references vary over.

  haikd's own `jax.shard_map` has `check_vma=False` and does not need this. A
  user's may keep that check on. Then the carry of a loop must start with the
  type that it ends with: zeros, which are the same on all devices, must be
  marked as varying like the sums that replace them. No data is moved.

  Args:
    tree: arrays.
    *references: pytrees of arrays.

  Returns:
    The same values; outside of `jax.shard_map` the same arrays.
  """
  axes = frozenset().union(
      *map(jax_internals.varying_axes, jax.tree.leaves(references)))

  def mark(x):
    missing = tuple(sorted(axes - jax_internals.varying_axes(x)))
    return lax.pcast(x, missing, to='varying') if missing else x

  return jax.tree.map(mark, tree)


def is_split_further() -> bool:
  """Returns whether a device's arrays may be split over several devices.

  Inside `jax.shard_map` they may be, over an automatic mesh axis. An operation
  on them may then be a collective, which all these devices must reach.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return any(size > 1 for axis, size in mesh.shape.items()
             if axis not in mesh.manual_axes)


def needs_uniform_control_flow() -> bool:
  """Returns whether devices must take the same branch of a `lax.cond`.

  They must if devices with different data share collectives over an automatic
  mesh axis: a device that took the other branch would not reach the collective,
  and the rest would deadlock.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return is_split_further() and any(
      mesh.shape[axis] > 1 for axis in mesh.manual_axes)


def platform() -> str:
  """Returns the platform that the traced function will run on, such as `cpu`.

  It is that of the mesh that the function is traced for, which need not be the
  platform of this machine.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()
