"""Where each parameter of a network is found among another's tensors."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Optional

import numpy as np

View = Callable[[np.ndarray], np.ndarray]


class Layout(NamedTuple):
  """How the axes of a parameter follow from those of its tensor.

  Both functions take and return NumPy arrays, copy nothing if they can help it,
  and are inverse to each other.

  Attributes:
    load: from the tensor to the parameter.
    store: from the parameter to the tensor.
  """

  load: View
  store: View


AS_IS = Layout(lambda x: x, lambda x: x)
TRANSPOSED = Layout(lambda x: x.T, lambda x: x.T)


class Part(NamedTuple):
  """One of several equal parts that a tensor is made of.

  Attributes:
    axis: of the tensor that they lie along.
    index: which part.
    count: how many there are.
  """

  axis: int
  index: int
  count: int


class Rule(NamedTuple):
  """Where one parameter is found.

  Attributes:
    module: the Haiku module, such as 'block/attn/query'. The first part 'block'
      stands for `block_0`, `block_1`, … and for the stack of all of them.
    name: of the parameter in its module, such as 'w'.
    tensor: the name of the tensor, with '{layer}' for the number of the block.
    layout: from the axes of the tensor, or of its part, to the parameter's.
    part: which part of the tensor it is, if not the whole.
    vocabulary: the axis of the parameter that counts tokens; pruning a
      vocabulary takes rows or columns along it.
  """

  module: str
  name: str
  tensor: str
  layout: Layout = AS_IS
  part: Optional[Part] = None
  vocabulary: Optional[int] = None


class Tensors(NamedTuple):
  """All rules of a network.

  Attributes:
    rules: one for each parameter.
    ignored: globs over tensors that may be there and hold nothing needed, such
      as buffers or a head that is not used.
  """

  rules: tuple[Rule, ...]
  ignored: tuple[str, ...] = ()


def decoder(rules: Iterable[Rule], *, tied: bool,
            ignored: Iterable[str]) -> Tensors:
  """Returns the rules of a language model, those of its logits included.

  Args:
    rules: of all other parameters.
    tied: whether the table that embeds makes the logits too, in which case they
      may be saved a second time.
    ignored: globs over other tensors that hold nothing needed.
  """
  tensor = 'lm_head.weight'
  if tied:
    return Tensors(tuple(rules), (*ignored, tensor))
  logits = Rule('logits', 'w', tensor, TRANSPOSED, vocabulary=1)
  return Tensors((*rules, logits), tuple(ignored))


def linear(module: str, tensor: str, *, bias: bool = True) -> tuple[Rule, ...]:
  """Returns the rules of a linear map that PyTorch keeps as `[out, in]`.

  Args:
    module: the Haiku module.
    tensor: the tensors' common name, without '.weight'.
    bias: whether it has one.
  """
  weight = Rule(module, 'w', f'{tensor}.weight', TRANSPOSED)
  return (weight, Rule(module, 'b', f'{tensor}.bias')) if bias else (weight,)


def norm(module: str, tensor: str, *, offset: bool = True) -> tuple[Rule, ...]:
  """Returns the rules of a norm; without `offset` it has a scale only."""
  scale = Rule(module, 'scale', f'{tensor}.weight')
  return (scale, Rule(module, 'offset', f'{tensor}.bias')) if offset else (
      scale,)
