"""Offering an intermediate by name, from inside a network."""

from typing import TypeVar

import haiku as hk

Tree = TypeVar('Tree')


class Tap(hk.Module):
  """Returns what it is given; its call is what capture sees."""

  def __call__(self, value: Tree) -> Tree:
    """Returns `value`."""
    return value


def tap(name: str, value: Tree) -> Tree:
  """Offers an intermediate of a Haiku network under a name.

  Capture records the outputs of modules. This makes a module of a value that is
  no module's output, at the path of the module that calls it: `tap('maps', x)`
  inside `block_0/attn` is `block_0/attn/maps`. It has no parameters, and where
  nobody captures it, it leaves nothing behind in the compiled computation.
  Haiku numbers a name used again in one module: `maps`, `maps_1`.

  Args:
    name: a Python identifier.
    value: an array or a pytree of arrays, such as `base.QueryKey`.

  Returns:
    `value`, to be used or not.

  Raises:
    ValueError: `name` is no identifier, or no Haiku transform is active.
  """
  return Tap(name=name)(value)
