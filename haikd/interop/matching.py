"""Which tensor each parameter of a network is read from."""

from collections.abc import Iterator, Mapping, Sequence
import re
from typing import Any, NamedTuple, Optional

import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.interop import addresses
from haikd.interop import placing
from haikd.interop import pretrained_source as pretrained_source_lib
from haikd.interop import reduction
from haikd.interop import rules as rules_lib
from haikd.interop import tensors
from haikd.interop import unused as unused_lib

# The options that may be smaller in a network than in its weights.
_SIZES = ('width', 'depth', 'heads', 'key_value_heads', 'head_size', 'hidden',
          'positions', 'vocabulary')
_FLOATING = (np.float64, np.float32, np.float16, jnp.bfloat16)

_QUANTISED = ', which is quantised or not floating point'
_NUMBER = re.compile(r'\.\d+\.')


class Match(NamedTuple):
  """The tensors that one parameter is read from.

  Attributes:
    address: of the parameter.
    rule: that applies to it.
    tensors: the names of its tensors: one, or one for each block of a stack.
  """

  address: addresses.Address
  rule: rules_lib.Rule
  tensors: tuple[str, ...]


class Matching(NamedTuple):
  """The tensors of all parameters of a network; returned by `match`.

  Attributes:
    matches: by module and name of the parameter.
    reader: of the tensors.
    kept_ids: the tokens of the weights that the network has; None for all.
  """

  matches: Mapping[tuple[str, str], Match]
  reader: tensors.TensorReader
  kept_ids: Optional[np.ndarray]

  def open_part(self, match: Match, number: int,
                dtype: np.dtype) -> placing.MappedPart:
    """Returns one part of a parameter, mapped from its tensor.

    Args:
      match: of the parameter.
      number: of the block in a stack; 0 if the parameter is not stacked.
      dtype: to decode to.
    """
    rule = match.rule
    array = rule.load(self.reader.read(match.tensors[number], dtype))
    if rule.vocabulary is None or self.kept_ids is None:
      return placing.MappedPart(array)
    return placing.MappedPart(
        array, self.kept_ids, rule.vocabulary % array.ndim)


def match(field: str, init: str,
          source: pretrained_source_lib.PretrainedSource,
          expected: base.ArrayTree, *, options: Mapping[str, Any],
          layers: Optional[Sequence[int]],
          kept_ids: Optional[np.ndarray]) -> Matching:
  """Returns the tensors that a network is read from, all of them checked.

  Args:
    field: of the config that names the weights, for messages.
    init: the value of that field.
    source: the weights.
    expected: the parameters as ShapeDtypeStructs.
    options: of the network.
    layers: the block of the weights that each block takes; None for the block
      of the same number.
    kept_ids: the tokens of the weights that the network has; None for all.

  Raises:
    ConfigError: the weights do not have these layers, heads or tokens.
    DataError: tensors are missing, unused or of another shape.
  """
  trained = source.pretrained.options
  options = {**trained, **options}
  blocks = reduction.choose_blocks(field, init, trained, expected, layers)
  reduction.check_heads(field, init, trained, options)
  vocabulary = source.pretrained.vocabulary
  reduction.check_ids(init, vocabulary, kept_ids)
  # The network's options decide which parameters exist; the source's sizes
  # decide their layout in the file.
  sizes = {name: trained[name] for name in _SIZES if name in trained}
  all_rules = source.tensors({**options, **sizes})
  rules, shapes = all_rules.by_parameter, source.reader.shapes
  _check_vocabulary(field, init, vocabulary, kept_ids, rules, expected)
  reductions = reduction.reductions(trained, options)
  reductions |= _hidden_reduction(rules, shapes, expected)
  matches: dict[tuple[str, str], Match] = {}
  problems: list[str] = []
  for module, name, leaf in _leaves(expected):
    address = addresses.of(module, name)
    rule = rules.get((address.module, name))
    if rule is None:
      problems.append(
          f'nothing for {address.title} {tensors.dtype_and_shape(leaf)}')
      continue
    names = _tensor_names(address, rule, blocks, leaf)
    matches[module, name] = Match(address, rule, names)
    shape = leaf.shape[address.stacked:]
    for tensor in names:
      if problem := _problem(
          rule, tensor, shapes.get(tensor), shape, reductions, kept_ids):
        problems.append(problem)
  used = _used_tensors(
      matches.values(), set(range(trained.get('depth', 0))) - set(blocks))
  unused = set(shapes) - used
  surplus = unused_lib.surplus(unused, all_rules, source.ignore)
  problems += [f'a surplus {name}' for name in surplus]
  if problems:
    raise checks.DataError(
        f'{field} must hold the tensors of this network; got {init} with '
        f'{checks.abbreviate(problems)}. Nothing was loaded. '
        f'{_remedy(field, problems, surplus, source, options)}')
  unused_lib.check(init, source.reader, unused, all_rules, options,
                   ignore=source.ignore,
                   options_field=reduction.sibling(field, 'options'))
  source.ignore.check_needed()
  return Matching(matches, source.reader, kept_ids)


def _leaves(params) -> Iterator[tuple[str, str, Any]]:
  """Yields module, name and value of each parameter."""
  for module, parameters in params.items():
    for name, leaf in parameters.items():
      yield module, name, leaf


def _check_vocabulary(field, init, vocabulary, kept_ids, rules, expected):
  """Refuses a network with another number of tokens than are read."""
  count = vocabulary if kept_ids is None else len(kept_ids)
  for module, name, leaf in _leaves(expected):
    rule = rules.get((addresses.of(module, name).module, name))
    if rule is None or rule.vocabulary is None:
      continue
    size = leaf.shape[rule.vocabulary]
    if size != count:
      kept = '' if kept_ids is None else f', of which {count} are kept'
      raise checks.ConfigError(
          f'{field} must have the {size} tokens of the network; got {init} '
          f'with {vocabulary}{kept}. Leave tokenizer and vocabulary out of '
          'config.data.options, so that they are those of the weights.')


def _hidden_reduction(rules, shapes, expected) -> reduction.Reductions:
  """Returns the reduction of the MLP's hidden width.

  It is inferred from the parameter shapes because not every model has the
  option.
  """
  pairs = set()
  for module, name, leaf in _leaves(expected):
    address = addresses.of(module, name)
    rule = rules.get((address.module, name))
    if (address.module, name) == ('block/mlp/up', 'w') and rule:
      stored = shapes.get(rule.tensor_of(0))
      loaded = stored and rule.loaded_shape(stored)
      if loaded and leaf.shape[-1] < loaded[-1]:
        pairs.add((loaded[-1], leaf.shape[-1]))
  return pairs


def _tensor_names(address, rule, blocks, leaf) -> tuple[str, ...]:
  """Returns the tensors of a parameter: one, or one for each block."""
  if address.stacked:
    return tuple(rule.tensor_of(block) for block in blocks[-leaf.shape[0]:])
  block = None if address.block is None else blocks[address.block]
  return (rule.tensor_of(block),)


def _problem(rule, tensor, stored, shape, reductions, kept_ids):
  """Returns why a tensor cannot be read as a parameter; None if it can.

  Args:
    rule: of the parameter.
    tensor: its name.
    stored: its shape and dtype; None if the source does not have it.
    shape: of the parameter, or of one block of a stack.
    reductions: the sizes of axes that are cut.
    kept_ids: the tokens that are read; None for all.
  """
  if stored is None:
    return f'no {tensor}'
  title = f'{tensor} {tensors.dtype_and_shape(stored)}'
  if stored.dtype not in _FLOATING:
    return f'{title}{_QUANTISED}'
  loaded = rule.loaded_shape(stored)
  if loaded is not None and _fits(rule, loaded, shape, reductions, kept_ids):
    return None
  return (f'{title}, which as {list(loaded or ())} does not give '
          f'{rule.module}/{rule.name} {list(shape)}')


def _fits(rule, loaded, shape, reductions, kept_ids) -> bool:
  """Returns whether a parameter can be cut from what its tensor holds."""
  if len(loaded) != len(shape):
    return False
  for axis, (large, size) in enumerate(zip(loaded, shape)):
    if rule.vocabulary is not None and axis == rule.vocabulary % len(shape):
      fits = size == (large if kept_ids is None else len(kept_ids))
    else:
      fits = size == large or (large, size) in reductions
    if not fits:
      return False
  return True


def _used_tensors(matches, left_out) -> set[str]:
  """Returns the tensors of parameters, and those of blocks that are left out.

  A tensor of a block that is taken must be read: the first block of a network
  may have fewer parameters than the others.
  """
  used = set()
  for match in matches:
    used.update(match.tensors)
    used.update(map(match.rule.tensor_of, left_out))
  return used


def _remedy(field, problems, surplus, source, options) -> str:
  """Returns what to do about tensors that are not those of a network."""
  options_field = reduction.sibling(field, 'options')
  if any(_QUANTISED in problem for problem in problems):
    return 'Fetch the weights that were quantised.'
  if len(surplus) == len(problems):
    globs = dict.fromkeys(_NUMBER.sub('.*.', name) for name in surplus)
    return ('If the network works without them, set '
            f'{source.ignore.setting(globs)}.')
  trained = source.pretrained.options
  if any(options[name] != trained[name] for name in trained if name != 'depth'):
    return f'Choose the {options_field} that the weights were made for.'
  missing = [problem for problem in problems if problem.startswith('no ')]
  if options.get('tied') is False and missing == problems[:1] == problems:
    return (f'If its embeddings are tied, set {options_field}.tied=True; if '
            'not, fetch the model again.')
  return 'The config is not that of these tensors: fetch the model again.'
