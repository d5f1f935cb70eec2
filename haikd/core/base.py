"""The types that the rooms exchange, and nothing else.

Shapes in this package are written with the letters `B` batch, `N` positions,
`V` classes or vocabulary, `D` features, `H` heads, `K` size of one head.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Optional, Union

import jax
import jax.numpy as jnp

from haikd.core import lazy
from haikd.core import pixels
from haikd.core import recorded

Array = jax.Array
ArrayTree = Any  # A pytree of arrays.
AnyArray = Any  # An array of JAX or NumPy, or a jax.ShapeDtypeStruct.

LinearLogits = lazy.LinearLogits
QueryKey = lazy.QueryKey

# The label of what has none: losses and metrics leave it out.
IGNORED_LABEL = -100


class LossSum(NamedTuple):
  """A sum and the number of values in it: a mean before its division.

  Sums add up over microbatches and devices, means do not. The division is done
  once, after everything has been added.

  Attributes:
    total: float32 scalar, the sum of the values that count.
    count: float32 scalar, the number of these values.
  """

  total: Array
  count: Array  # type: ignore[assignment]  # It hides tuple.count, as it must.

  # A LossSum adds up; a tuple would be concatenated.
  def __add__(self, other: 'LossSum') -> 'LossSum':  # type: ignore[override]
    return LossSum(self.total + other.total, self.count + other.count)

  def mean(self) -> Array:
    """Returns total / count as a float32 scalar, 0 if nothing counts."""
    return self.total / jnp.maximum(self.count, jnp.finfo(jnp.float32).tiny)


class Embedding(NamedTuple):
  """What an encoder returns instead of logits: a vector for each text.

  Attributes:
    vectors: `[B, D]`, or `[B, S, D]` for S texts an example, floating.
  """

  vectors: Array


class TokenEmbedding(Embedding):
  """Likewise a vector for each token: `[B, N, D]` or `[B, S, N, D]`."""


Logits = Union[Array, LinearLogits]
# What a loss on logits may get of a teacher.
TeacherLogits = Union[Logits, recorded.Sampled, recorded.TopK]
Output = Union[Logits, Embedding]
Taps = Mapping[str, tuple[Any, ...]]  # {kind: captured values in call order}.


class View(NamedTuple):
  """What a network gets of a batch.

  Attributes:
    inputs: as in Batch.
    mask: as in Batch.
  """

  inputs: ArrayTree
  mask: AnyArray


class Batch(NamedTuple):
  """One batch, or one shard of it.

  Attributes:
    inputs: the networks' inputs: an array or a pytree of arrays, `[B, ...]`;
      images of uint8 are `pixels.Pixels`.
    mask: bool, `[B]` or `[B, N]`, true where an example or position is real
      and not padding.
    labels: integer `[B]` or `[B, N]`, or probabilities with a trailing axis V,
      or floating `[B]`: scores, which are not classes. None for no labels.
      Already aligned to the logits; -100 marks what has no label.
    target_mask: bool, shaped like `mask`, true where a position's logits count
      in a loss on logits; None means wherever `mask` is true.
    weight: float32 `[B]`, how much an example counts: its values and its part
      of every count are multiplied by it. None for 1.
    student: what the student gets in place of `inputs` and `mask`: the same
      texts in its own tokens, or the same images in its own size and scaling;
      None if both networks get the same. An example is real for both or for
      neither.
    teacher: what was recorded of the teacher for these examples, a tuple of
      `core.recorded`; None where the teacher itself runs.
  """

  inputs: ArrayTree
  mask: AnyArray
  labels: Optional[AnyArray] = None
  target_mask: Optional[AnyArray] = None
  weight: Optional[AnyArray] = None
  student: Optional[View] = None
  teacher: Any = None

  def view(self, role: str) -> View:
    """Returns what the 'teacher' or 'student' gets; images are scaled."""
    view = View(self.inputs, self.mask)
    if role == 'student' and self.student is not None:
      view = self.student
    return view._replace(inputs=pixels.scaled(view.inputs))


class Pair(NamedTuple):
  """What a loss compares: aligned values, and the mask of where they count.

  Attributes:
    student: the student's value: an array, LinearLogits or QueryKey.
    teacher: the teacher's value, of the same shape.
    mask: bool, true where a position counts.
  """

  student: Any
  teacher: Any
  mask: Array


class Params(NamedTuple):
  """Everything that is trained.

  Attributes:
    student: the student's Haiku parameters.
    align: `{term: {layer: Haiku parameters}}` of learned alignments. They are
      trained and saved with the student, and left out of exports.
  """

  student: ArrayTree
  align: ArrayTree


class Seen(NamedTuple):
  """What a guard has seen of steps that are not finite.

  On the device these are int32 scalars, on the host ints.

  Attributes:
    number: how many such steps there were.
    step: the number of the last of them, from 1; 0 for none.
    what: a bit for each number that was not finite.
    part: the array of the gradient that was the first not to be finite, or the
      largest, by its place in the tree.
  """

  number: Any
  step: Any
  what: Any
  part: Any


class TrainState(NamedTuple):
  """Everything a training step changes.

  Attributes:
    step: int32 scalar, the number of steps taken.
    params: `Params`, float32.
    net_state: the student's Haiku state (such as BatchNorm's statistics).
    opt_state: optax state.
    loss_scale: a jmp loss scale.
    ema: running mean of the student's parameters, or None if there is none.
    balance: what the weights of losses follow from.
    seen: a `Seen` of its guard.
  """

  step: Array
  params: Params
  net_state: ArrayTree
  opt_state: ArrayTree
  loss_scale: ArrayTree
  ema: Optional[ArrayTree]
  balance: ArrayTree = ()
  seen: ArrayTree = ()


class Variables(NamedTuple):
  """The variables of a network that runs but is not trained: the teacher.

  Attributes:
    params: Haiku parameters, in the dtype that the network computes in.
    state: Haiku state.
  """

  params: ArrayTree
  state: ArrayTree
