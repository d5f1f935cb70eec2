"""The block and module that a parameter belongs to, by its Haiku name."""

import re
from typing import NamedTuple, Optional

from haikd.core import base
from haikd.core import globs

_BLOCK = re.compile(r'block_(\d+)')


class Address(NamedTuple):
  """The place of a parameter in its network, in the terms of `rules.Rule`.

  Attributes:
    module: such as 'block/attn/query', without the number of the block.
    name: of the parameter in its module, such as 'w'.
    block: the number of its block; None outside of blocks and in a stack.
    stacked: whether its leading axis runs over all blocks that have no module
      of their own; those that have one come first.
  """

  module: str
  name: str
  block: Optional[int] = None
  stacked: bool = False

  @property
  def title(self) -> str:
    """What messages call the parameter."""
    module = self.module if self.block is None else self.module.replace(
        'block', f'block_{self.block}', 1)
    return f'{module}/{self.name}'


def of(module: str, name: str) -> Address:
  """Returns the address of a Haiku parameter.

  Args:
    module: the name of its module, such as 'block_3/attn/query' or
      '__layer_stack_no_per_layer/block/attn/query'.
    name: of the parameter.
  """
  first, *others = globs.parts(module)
  if first.startswith(globs.LAYER_STACK):
    return Address('/'.join(others), name, stacked=True)
  if match := _BLOCK.fullmatch(first):
    return Address('/'.join(('block', *others)), name, int(match[1]))
  return Address('/'.join((first, *others)), name)


def depth(params: base.ArrayTree) -> int:
  """Returns the number of blocks of a network.

  Args:
    params: Haiku parameters, or their shapes.
  """
  stacked = numbered = 0
  for module, parameters in params.items():
    for name, leaf in parameters.items():
      address = of(module, name)
      if address.stacked:
        stacked = max(stacked, leaf.shape[0])
      elif address.block is not None:
        numbered = max(numbered, address.block + 1)
  return numbered + stacked
