"""Which mesh axes an array differs along, where a device sees its own part."""

from typing import Any, TypeVar

import jax
from jax import lax

T = TypeVar('T')


def alike(tree: T, *references: Any) -> T:
  """Marks arrays as different wherever some reference is.

  A loop's first carry is made of zeros, which are the same on all devices,
  while what the loop makes of them is not; `jax.shard_map` wants both of one
  type. Nothing is moved.

  Args:
    tree: arrays.
    *references: pytrees of arrays.

  Returns:
    The same values; outside of `jax.shard_map` the very same arrays.
  """
  wanted = [
      axis for leaf in jax.tree.leaves(references) for axis in _axes(leaf)
  ]

  def mark(x):
    axes = tuple(dict.fromkeys(a for a in wanted if a not in _axes(x)))
    return lax.pcast(x, axes, to='varying') if axes else x

  return jax.tree.map(mark, tree)


def _axes(x):
  return jax.typeof(x).manual_axis_type.varying
