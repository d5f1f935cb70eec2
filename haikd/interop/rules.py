"""Which tensor of a file, in which layout, holds each parameter."""

from collections.abc import Callable, Iterable, Mapping
import types
from typing import Any, NamedTuple, Optional

import jax
import numpy as np

Rearrange = Callable[[np.ndarray], np.ndarray]


class Layout(NamedTuple):
  """How the axes of a parameter follow from those of its tensor.

  Both functions take and return NumPy arrays, return views where they can, and
  are inverse to each other.

  Attributes:
    load: from the tensor to the parameter.
    store: from the parameter to the tensor.
  """

  load: Rearrange
  store: Rearrange


AS_IS = Layout(lambda x: x, lambda x: x)
TRANSPOSED = Layout(lambda x: x.T, lambda x: x.T)


class TensorPart(NamedTuple):
  """Some of the equal parts that a tensor consists of, one after the other.

  Attributes:
    axis: of the tensor, along which the parts lie.
    number: of the first part, from 0.
    parts: the number of parts of the tensor.
    extent: the number of these parts.
  """

  axis: int
  number: int
  parts: int
  extent: int = 1

  def divides(self, shape: tuple[int, ...]) -> bool:
    """Returns whether a tensor of this shape has such parts."""
    return self.axis < len(shape) and shape[self.axis] % self.parts == 0

  def of(self, tensor: Any) -> Any:
    """Returns these parts of a tensor, as a view."""
    size = tensor.shape[self.axis] // self.parts
    index = [slice(None)] * tensor.ndim
    end = self.number + self.extent
    index[self.axis] = slice(self.number * size, end * size)
    return tensor[tuple(index)]


class Rule(NamedTuple):
  """Which tensor holds one parameter.

  Attributes:
    module: the Haiku module, such as 'block/attn/query'. The first part 'block'
      means each of `block_0`, `block_1`, … and the stack of all of them.
    name: of the parameter in its module, such as 'w'.
    tensor: the name of the tensor, with '{layer}' for the number of the block.
    layout: from the axes of the tensor, or of its part, to the parameter's.
    part: the part of the tensor that holds the parameter; None for all of it.
    vocabulary: the axis of the parameter that counts tokens; pruning a
      vocabulary takes rows or columns along it.
  """

  module: str
  name: str
  tensor: str
  layout: Layout = AS_IS
  part: Optional[TensorPart] = None
  vocabulary: Optional[int] = None

  def tensor_of(self, block: Optional[int]) -> str:
    """Returns the name of the tensor for a block; None outside of blocks."""
    return self.tensor.replace('{layer}', str(block))

  def load(self, tensor: Any) -> np.ndarray:
    """Returns the parameter that a tensor holds, as a view where possible."""
    return self.layout.load(self.part.of(tensor) if self.part else tensor)

  def loaded_shape(
      self, tensor: jax.ShapeDtypeStruct) -> Optional[tuple[int, ...]]:
    """Returns the shape of the parameter; None if the tensor cannot hold it."""
    if self.part and not self.part.divides(tensor.shape):
      return None
    try:
      return self.load(_dummy(tensor)).shape
    except (ValueError, IndexError, ZeroDivisionError):
      return None

  def stored_shape(self, parameter: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """Returns the shape of the tensor, or of its part, for a parameter."""
    return self.layout.store(_dummy(parameter)).shape


class Tensors(NamedTuple):
  """All rules of a network.

  Attributes:
    rules: one for each parameter.
    ignored: globs over tensors that a file may have and no parameter needs,
      such as buffers or a head that is not used.
    copies: `{tensor: the used tensor that it repeats}`, for tensors that a file
      may hold twice.
  """

  rules: tuple[Rule, ...]
  ignored: tuple[str, ...] = ()
  copies: Mapping[str, str] = types.MappingProxyType({})

  @property
  def by_parameter(self) -> dict[tuple[str, str], Rule]:
    """The rules by module and name of their parameters."""
    return {(rule.module, rule.name): rule for rule in self.rules}


def decoder(rules: Iterable[Rule], *, tied: bool,
            ignored: Iterable[str]) -> Tensors:
  """Returns the rules of a language model, including those of its logits.

  Args:
    rules: of all other parameters.
    tied: whether the embedding table makes the logits too, in which case a file
      may hold it twice.
    ignored: globs over other tensors that no parameter needs.
  """
  tensor, rules = 'lm_head.weight', tuple(rules)
  if tied:
    table = next(rule.tensor for rule in rules if rule.vocabulary is not None)
    return Tensors(rules, tuple(ignored), {tensor: table})
  logits = Rule('logits', 'w', tensor, TRANSPOSED, vocabulary=1)
  return Tensors((*rules, logits), tuple(ignored))


def linear(module: str, tensor: str, *, bias: bool = True,
           part: Optional[TensorPart] = None) -> tuple[Rule, ...]:
  """Returns the rules of a linear map that PyTorch stores as `[out, in]`.

  Args:
    module: the Haiku module.
    tensor: the common name of its tensors, without '.weight'.
    bias: whether the map has a bias.
    part: the part of its tensors that holds the map; None for all of them.
  """
  weight = Rule(module, 'w', f'{tensor}.weight', TRANSPOSED, part)
  if not bias:
    return (weight,)
  return weight, Rule(module, 'b', f'{tensor}.bias', part=part)


def norm(module: str, tensor: str, *, offset: bool = True) -> tuple[Rule, ...]:
  """Returns the rules of a norm; without `offset` it has a scale only."""
  scale = Rule(module, 'scale', f'{tensor}.weight')
  return (scale, Rule(module, 'offset', f'{tensor}.bias')) if offset else (
      scale,)


def _dummy(spec: jax.ShapeDtypeStruct) -> np.ndarray:
  """Returns an array of a shape that takes no memory: one number, repeated."""
  return np.broadcast_to(np.zeros((), spec.dtype), spec.shape)
