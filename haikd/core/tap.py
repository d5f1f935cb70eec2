"""`tap`: offers an intermediate of a network for capture, under a name."""

from typing import TypeVar

import haiku as hk

Tree = TypeVar('Tree')


class Tap(hk.Module):
  """A module that returns its input, so that capture sees a call."""

  def __call__(self, value: Tree) -> Tree:
    """Returns `value`."""
    return value


def tap(name: str, value: Tree) -> Tree:
  """Offers an intermediate of a Haiku network for capture, under a name.

  Capture records the outputs of modules. A tap makes any other value the output
  of a module, below the module that calls `tap`: `tap('maps', x)` inside
  `block_0/attn` is `block_0/attn/maps`. A tap has no parameters, and if it is
  not captured it adds nothing to the compiled computation. Haiku numbers a name
  that is used again in one module: `maps`, `maps_1`.

  Args:
    name: a Python identifier.
    value: an array or a pytree of arrays, such as `base.QueryKey`.

  Returns:
    `value`; the caller need not use it.

  Raises:
    ValueError: `name` is not an identifier, or no Haiku transform is active.
  """
  return Tap(name=name)(value)
