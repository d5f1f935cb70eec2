"""Where arrays lie: how on the mesh, and on devices of which platform."""

from typing import Any, TypeVar

import jax
from jax import lax

from haikd.core import jax_internals

T = TypeVar('T')


def alike(tree: T, *references: Any) -> T:
  """Marks arrays as different wherever some reference is.

  haikd's own `jax.shard_map` does not check this. Somebody else's may: it wants
  a loop's first carry of zeros, which are the same on all devices, to have the
  type of what the loop makes of them, which is not. Nothing is moved.

  Args:
    tree: arrays.
    *references: pytrees of arrays.

  Returns:
    The same values; outside of `jax.shard_map` the very same arrays.
  """
  axes = frozenset().union(
      *map(jax_internals.varying_axes, jax.tree.leaves(references)))

  def mark(x):
    missing = tuple(sorted(axes - jax_internals.varying_axes(x)))
    return lax.pcast(x, missing, to='varying') if missing else x

  return jax.tree.map(mark, tree)


def is_split_further() -> bool:
  """Returns whether what a device sees may yet lie on several of them.

  An operation on it may then be a collective: all have to come to it.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return any(size > 1 for axis, size in mesh.shape.items()
             if axis not in mesh.manual_axes)


def needs_uniform_control_flow() -> bool:
  """Returns whether devices that see other data compute together.

  Each such group then has to do what the others do: of a condition that only
  some fulfil, not all would come to the collectives.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return is_split_further() and any(
      mesh.shape[axis] > 1 for axis in mesh.manual_axes)


def platform() -> str:
  """Returns what the function being traced will run on, such as `cpu`.

  That is the platform of the mesh it is traced for, which may lie elsewhere.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()
