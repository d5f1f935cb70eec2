"""Which part of which tensor each parameter of a network is read from."""

from collections.abc import Iterator, Mapping, Sequence
import fnmatch
from typing import Any, NamedTuple, Optional

import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.interop import addresses
from haikd.interop import placing
from haikd.interop import pretrained_source as pretrained
from haikd.interop import rules

# What slices of a network have in common, whatever the model calls it.
_SIZES = ('width', 'depth', 'heads', 'key_value_heads', 'head_size', 'hidden',
          'positions', 'vocabulary')
_REAL = (np.float64, np.float32, np.float16, jnp.bfloat16)

Shape = tuple[int, ...]


class Match(NamedTuple):
  """Where one parameter is found.

  Attributes:
    address: of the parameter.
    rule: for it.
    tensors: names: one, or one for each block of a stack.
  """

  address: addresses.Address
  rule: rules.Rule
  tensors: tuple[str, ...]


class Matching:
  """What a network takes from pretrained weights, checked as a whole.

  Attributes:
    matches: by module and name of the parameter.

  Args:
    field: of the config that names the weights, for messages.
    init: the weights, likewise.
    source: the weights.
    expected: parameters as ShapeDtypeStructs.
    options: of the network that is to have them.
    layers: which block of the source each block takes; None for its own.
    kept_ids: which tokens of the source the network has; None for all.

  Raises:
    ConfigError: `layers`, heads or tokens that cannot be taken.
    DataError: tensors are missing, left over or of another shape.
  """

  def __init__(self, field: str, init: str, source: pretrained.Source,
               expected: base.ArrayTree, *, options: Mapping[str, Any],
               layers: Optional[Sequence[int]],
               kept_ids: Optional[np.ndarray]):
    self._source, self._kept = source, kept_ids
    own = source.pretrained.options
    both = {**own, **options}
    self._blocks = _take_blocks(field, init, own, expected, layers)
    _check_heads(field, own, both)
    vocabulary = source.pretrained.vocabulary
    _check_ids(field, vocabulary, kept_ids)
    # Which parameters there are, the network's own options say; how they lie,
    # those of the source.
    found = source.tensors(
        {**both, **{name: own[name] for name in _SIZES if name in own}})
    self._rules = {(rule.module, rule.name): rule for rule in found.rules}
    self._check_vocabulary(field, init, vocabulary, expected)
    problems = []
    self.matches: dict[tuple[str, str], Match] = {}
    self._smaller = _smaller(own, both)
    self._learn_hidden(expected)
    for module, name, leaf in _leaves(expected):
      self._match(module, name, leaf, problems)
    problems += self._left_over(found.ignored, own.get('depth', 0))
    if problems:
      raise checks.DataError(
          f'interop.load: {field} must hold the tensors of this network; got '
          f'{init} with {checks.abbreviate(problems)}. Choose the options that '
          'the weights were made for; nothing was loaded.')

  def open_part(self, match: Match, number: int,
                dtype: np.dtype) -> placing.View:
    """Returns one part of a parameter as it lies in its tensor.

    Args:
      match: of the parameter.
      number: which block of a stack; 0 for what is not stacked.
      dtype: to decode to.
    """
    rule = match.rule
    tensor = self._source.reader.read(match.tensors[number], dtype)
    view = rule.layout.load(_part(tensor, rule.part))
    if rule.vocabulary is None or self._kept is None:
      return placing.View(view)
    return placing.View(view, self._kept, rule.vocabulary % view.ndim)

  def _check_vocabulary(self, field, init, vocabulary, expected):
    wanted = vocabulary if self._kept is None else len(self._kept)
    for module, name, leaf in _leaves(expected):
      rule = self._rules.get((addresses.of(module, name).module, name))
      if rule is None or rule.vocabulary is None:
        continue
      size = leaf.shape[rule.vocabulary]
      if size != wanted:
        kept = '' if self._kept is None else f', of which {wanted} are kept'
        raise checks.ConfigError(
            f'interop.load: the vocabulary of a network with {field} must be '
            f'that of {init}, {vocabulary} tokens{kept}; got {size}. Use its '
            'own tokenizer, with the option vocabulary of the data set where '
            'the network has room for more tokens, or prune both.')

  def _match(self, module, name, leaf, problems):
    address = addresses.of(module, name)
    rule = self._rules.get((address.module, name))
    if rule is None:
      problems.append(f'nothing for {address.title} {_form(leaf)}')
      return
    if address.stacked:
      blocks = self._blocks
    else:
      blocks = [None if address.block is None else self._blocks[address.block]]
    names = tuple(rule.tensor.replace('{layer}', str(i)) for i in blocks)
    shape = leaf.shape[address.stacked:]
    for tensor in names:
      if problem := self._problem(rule, tensor, shape):
        problems.append(problem)
    self.matches[module, name] = Match(address, rule, names)

  def _problem(self, rule, tensor, shape):
    """Returns what is wrong with a tensor for a parameter of a shape."""
    like = self._source.reader.shapes.get(tensor)
    if like is None:
      return f'no {tensor}'
    if like.dtype not in _REAL:
      return f'{tensor} {_form(like)}, which is quantised or no number'
    found = _loaded_shape(rule, like)
    fits = found is not None and len(found) == len(shape)
    for axis, size in enumerate(shape if fits else ()):
      if rule.vocabulary is not None and axis == rule.vocabulary % len(shape):
        kept = self._kept
        fits &= size == (found[axis] if kept is None else len(kept))
      else:
        fits &= size == found[axis] or (found[axis], size) in self._smaller
    if fits:
      return None
    return (f'{tensor} {_form(like)}, which as {list(found or ())} does not '
            f'give {rule.module}/{rule.name} {list(shape)}')

  def _learn_hidden(self, expected):
    """Adds what the units of an MLP are cut to: no model has to say them."""
    for module, name, leaf in _leaves(expected):
      address = addresses.of(module, name)
      rule = self._rules.get((address.module, name))
      if (address.module, name) == ('block/mlp/up', 'w') and rule:
        tensor = rule.tensor.replace('{layer}', '0')
        like = self._source.reader.shapes.get(tensor)
        found = like and _loaded_shape(rule, like)
        if found and leaf.shape[-1] < found[-1]:
          self._smaller.add((found[-1], leaf.shape[-1]))

  def _left_over(self, ignored, depth):
    """Yields a problem for each tensor that no parameter takes."""
    taken = {(match.address.module, match.address.name)
             for match in self.matches.values()}
    known = set()
    for (module, name), rule in self._rules.items():
      if (module, name) in taken:
        known |= {rule.tensor.replace('{layer}', str(i)) for i in range(depth)}
    for name in sorted(set(self._source.reader.shapes) - known):
      if not any(fnmatch.fnmatchcase(name, glob) for glob in ignored):
        yield f'a surplus {name}'


def _leaves(params) -> Iterator[tuple[str, str, Any]]:
  for module, parameters in params.items():
    for name, leaf in parameters.items():
      yield module, name, leaf


def _take_blocks(field, init, own, expected, layers):
  """Returns which block of the source each block takes."""
  depth, there = addresses.depth(expected), own.get('depth', 0)
  layers_field = f'{field}_layers'
  if layers is None:
    if depth != there:
      raise checks.ConfigError(
          f'interop.load: depth must be that of {init} where {layers_field} is '
          f'None; got depth={depth}, and it has {there}. Set {layers_field} to '
          f'the {depth} layers to take.')
    return list(range(depth))
  right = all(isinstance(i, (int, np.integer)) and 0 <= i < there
              for i in layers)
  if len(layers) != depth or not right:
    raise checks.ConfigError(
        f'interop.load: {layers_field} must be {depth} numbers, one for each '
        f'block, from 0 to {there - 1}; got {tuple(layers)}.')
  return list(layers)


def _head_sizes(options):
  """Returns the sizes of attention that must be kept: K and H/G."""
  heads = options['heads']
  size = options.get('head_size') or options['width'] // heads
  return dict(head_size=size,
              ratio=heads // (options.get('key_value_heads') or heads))


def _check_heads(field, own, options):
  """Refuses heads that are not the source's own."""
  if 'heads' not in own:
    return
  there, here = _head_sizes(own), _head_sizes(options)
  if there != here:
    raise checks.ConfigError(
        f'interop.load: heads must be as those of {field}, of head_size='
        f'{there["head_size"]} and {there["ratio"]} to each of key_value_heads;'
        f' got head_size={here["head_size"]} and {here["ratio"]}. Take fewer '
        'heads, but whole ones.')


def _check_ids(field, vocabulary, kept_ids):
  if kept_ids is not None and not (
      vocabulary and len(kept_ids) and 0 <= np.min(kept_ids) and
      np.max(kept_ids) < vocabulary):
    raise checks.ConfigError(
        f'interop.load: kept_ids must be tokens of {field}, which has '
        f'{vocabulary}; got {len(kept_ids)} from '
        f'{np.min(kept_ids, initial=0)} to {np.max(kept_ids, initial=0)}.')


def _smaller(own, options):
  """Returns `{(size in the source, smaller size)}` of what may be cut."""
  pairs = set()
  for name in ('width', 'hidden', 'positions'):
    if own.get(name) and options.get(name):
      pairs.add((own[name], options[name]))
  if 'heads' in own:
    size = _head_sizes(own)['head_size']
    for name in ('heads', 'key_value_heads'):
      pair = (o.get(name) or o['heads'] for o in (own, options))
      pairs.add(tuple(count * size for count in pair))
  return {(large, small) for large, small in pairs if small < large}


def _part(tensor, part):
  """Returns a part of a tensor, as a view."""
  if part is None:
    return tensor
  size = tensor.shape[part.axis] // part.count
  index = [slice(None)] * tensor.ndim
  index[part.axis] = slice(part.index * size, (part.index + 1) * size)
  return tensor[tuple(index)]


def _loaded_shape(rule, like) -> Optional[Shape]:
  """Returns the shape that a tensor has as a parameter; None if it cannot."""
  part = rule.part
  if part and (len(like.shape) <= part.axis or
               like.shape[part.axis] % part.count):
    return None
  # Takes no memory: all numbers are the same one.
  tensor = np.broadcast_to(np.zeros((), like.dtype), like.shape)
  try:
    return rule.layout.load(_part(tensor, part)).shape
  except (ValueError, IndexError, ZeroDivisionError):
    return None


def _form(leaf):
  return f'{leaf.dtype}{list(leaf.shape)}'
