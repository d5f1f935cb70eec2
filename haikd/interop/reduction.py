"""Which smaller networks can take their weights from a larger one.

`trained` are the options of the network that the weights were trained for.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.interop import addresses

Options = Mapping[str, Any]
Reductions = set[tuple[int, int]]  # (size in the weights, smaller size).


def of_blocks(model: str, options: Options,
              layers: Optional[Sequence[int]]) -> dict[str, Any]:
  """Returns the options of a network that takes some blocks of another.

  Options that hold numbers of blocks are cut: of windows in the blocks 2 and 3,
  a network of the blocks 0 and 3 has one in its block 1.

  Args:
    model: the registered model.
    options: of the network with all blocks.
    layers: the blocks that are taken, in their new order; None for all.
  """
  if layers is None:
    return dict(options)
  cut = {
      name: tuple(new for new, old in enumerate(layers) if old in options[name])
      for name in registry.models[model].block_options
      if options.get(name) is not None
  }
  return {**options, **cut, 'depth': len(layers)}


def choose_blocks(field: str, init: str, trained: Options,
                  expected: base.ArrayTree,
                  layers: Optional[Sequence[int]]) -> list[int]:
  """Returns the block of the weights that each block of a network takes.

  Args:
    field: of the config that names the weights, for messages.
    init: the value of that field.
    trained: see above.
    expected: the parameters of the network, as ShapeDtypeStructs.
    layers: the blocks to take; None for all.

  Raises:
    ConfigError: the weights do not have these blocks, or the network needs
      another number of them.
  """
  depth, trained_depth = addresses.depth(expected), trained.get('depth', 0)
  layers_field = f'{field}_layers'
  if layers is None:
    if depth != trained_depth:
      raise checks.ConfigError(
          f'{sibling(field, "options.depth")} must be {trained_depth}, the '
          f'depth of {init}, where {layers_field} is None; got {depth}. Set '
          f'{layers_field} to the {depth} layers to take.')
    return list(range(depth))
  are_legal = all(
      isinstance(i, (int, np.integer)) and 0 <= i < trained_depth
      for i in layers)
  if len(layers) != depth or not are_legal:
    raise checks.ConfigError(
        f'{layers_field} must be {depth} numbers, one for each block, from 0 '
        f'to {trained_depth - 1}; got {tuple(layers)}.')
  return list(layers)


def sibling(field: str, name: str) -> str:
  """Returns what messages call another field of the same network."""
  return ''.join(field.rpartition('.')[:2]) + name


def check_heads(field: str, init: str, trained: Options,
                options: Options) -> None:
  """Refuses a network whose heads differ in more than their number.

  Args:
    field: of the config that names the weights, for messages.
    init: the value of that field.
    trained: see above.
    options: of the network.

  Raises:
    ConfigError: the heads have another size, or another number of them share a
      key head.
  """
  if 'heads' not in trained:
    return
  head_size, ratio = _head_sizes(options)
  trained_size, trained_ratio = _head_sizes(trained)
  if (head_size, ratio) != (trained_size, trained_ratio):
    raise checks.ConfigError(
        f'{sibling(field, "options")} must give the heads of {init}, with '
        f'head_size={trained_size} and {trained_ratio} heads to each of '
        f'key_value_heads; got head_size={head_size} and {ratio}. Take fewer '
        'heads, but leave their size.')


def check_ids(init: str, vocabulary: Optional[int],
              kept_ids: Optional[np.ndarray]) -> None:
  """Refuses ids that are no tokens of the weights.

  Args:
    init: the weights, for messages.
    vocabulary: their number of tokens; None for weights without tokens.
    kept_ids: the ids; None for all.

  Raises:
    ConfigError: there are such ids, or no ids at all.
  """
  if kept_ids is not None and not (
      vocabulary and len(kept_ids) and 0 <= np.min(kept_ids) and
      np.max(kept_ids) < vocabulary):
    raise checks.ConfigError(
        f'kept_ids must be ids of the {vocabulary or 0} tokens of {init}; got '
        f'{len(kept_ids)} ids from {np.min(kept_ids, initial=0)} to '
        f'{np.max(kept_ids, initial=0)}. Prepare the data with its tokenizer.')


def reductions(trained: Options, options: Options) -> Reductions:
  """Returns the sizes of axes that a network cuts, and to what.

  Args:
    trained: see above.
    options: of the network.
  """
  pairs = set()
  for name in ('width', 'hidden', 'positions'):
    if trained.get(name) and options.get(name):
      pairs.add((trained[name], options[name]))
  if 'heads' in trained:
    head_size, _ = _head_sizes(trained)
    if trained.get('relative_buckets'):  # A table has a column for each head.
      pairs.add((trained['heads'], options['heads']))
    for name in ('heads', 'key_value_heads'):
      large, small = (sizes.get(name) or sizes['heads']
                      for sizes in (trained, options))
      pairs.add((large * head_size, small * head_size))
  return {(large, small) for large, small in pairs if small < large}


def _head_sizes(options) -> tuple[int, int]:
  """Returns the sizes of attention that must be equal: K and H/G."""
  heads = options['heads']
  head_size = options.get('head_size') or options['width'] // heads
  return head_size, heads // (options.get('key_value_heads') or heads)
