"""What the contract of a loss is tried on: inputs, masks, calls."""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple, Optional

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import entries

BATCH = 4  # Examples; the example of a registration has any number.


class Inputs(NamedTuple):
  """What a loss compares.

  Attributes:
    student: `[B, …]` float32, or `{tap: array}` for a loss on several taps.
    teacher: likewise.
    labels: integers below V, or rows that sum to 1 if they have the student's
      shape; None if the loss takes none.
  """

  student: Any
  teacher: Any
  labels: Optional[jax.Array]

  def map(self, function) -> 'Inputs':
    """Returns what a function makes of each array."""
    return jax.tree.map(function, self)


class Measured(NamedTuple):
  """What a loss gives.

  Attributes:
    total: float32 scalar.
    count: float32 scalar.
    gradients: of the total, by student and teacher.
  """

  total: Any
  count: Any  # type: ignore[assignment]  # It hides tuple.count.
  gradients: tuple[Any, ...]


class Case:
  """A registered loss, and what it is called with.

  Attributes:
    name: the loss's.
    entry: its registration.
  """

  def __init__(self, name: str, entry: entries.LossEntry,
               options: Mapping[str, Any]):
    self.name = name
    self.entry = entry
    self._options = dict(options)

  @property
  def on_maps(self) -> bool:
    """Whether it compares attention maps, `[B, H, N, N]`."""
    return self.entry.on == 'attention'

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape of an argument, for `BATCH` examples."""
    example = self.entry.example
    assert example is not None, 'the rule `example` comes first'
    return (BATCH, *example.get(name, example['student'])[1:])

  def inputs(self, seed: int = 0) -> Inputs:
    """Returns random inputs without padding."""
    rng = np.random.default_rng(seed)
    sides: list[Any] = []
    for name in ('student', 'teacher'):
      arrays = {}
      for kind in self.entry.kinds:
        array = rng.normal(size=self.shape(name))
        if kind == 'attention':
          array = np.exp(array) / np.exp(array).sum(-1, keepdims=True)
        arrays[kind] = jnp.asarray(array, jnp.float32)
      sides.append(
          arrays[self.entry.on] if isinstance(self.entry.on, str) else arrays)
    labels = None
    if 'labels' in (self.entry.example or {}):
      shape = self.shape('labels')
      labels = (
          jax.nn.softmax(jnp.asarray(rng.normal(size=shape), jnp.float32))
          if shape == sides[0].shape else
          jnp.asarray(rng.integers(0, sides[0].shape[-1], shape)))
    return Inputs(sides[0], sides[1], labels)

  def full_mask(self) -> jax.Array:
    """Returns a mask that is true everywhere."""
    return jnp.ones(self.shape('mask'), bool)

  def masks(self) -> list[jax.Array]:
    """Returns masks with right, left and scattered padding, and empty rows."""
    shape = self.shape('mask')
    if len(shape) == 1:
      rows = np.arange(BATCH)
      return [jnp.asarray(rows < 3), jnp.asarray(rows > 1),
              jnp.asarray(rows % 2 == 0)]
    places = np.broadcast_to(np.arange(shape[-1]), shape)
    lengths = np.resize([shape[-1], 1, 2, 0], shape[:-1])[..., None]
    scattered = np.random.default_rng(3).random(shape) < 0.5
    return [jnp.asarray(places < lengths),
            jnp.asarray(places >= shape[-1] - lengths), jnp.asarray(scattered)]

  def is_padding(self, mask: jax.Array, rank: int) -> jax.Array:
    """Returns where an array of a rank is padding."""
    if self.on_maps and mask.ndim == 2:
      return ~(mask[:, None, :, None] & mask[:, None, None, :])
    return ~mask.reshape(mask.shape + (1,) * (rank - mask.ndim))

  def filled(self, inputs: Inputs, mask: jax.Array, content: float) -> Inputs:
    """Replaces all padding with `content`, in labels too."""
    student, teacher = jax.tree.map(
        lambda x: jnp.where(self.is_padding(mask, x.ndim), content, x),
        inputs[:2])
    labels = inputs.labels
    if labels is not None:
      behind = ~mask.reshape(mask.shape + (1,) * (labels.ndim - mask.ndim))
      number = content
      if jnp.issubdtype(labels.dtype, jnp.integer):
        number = 10**6 if content else 0
      labels = jnp.where(behind, number, labels).astype(labels.dtype)
    return Inputs(student, teacher, labels)

  def measure(self, inputs: Inputs, mask: jax.Array, *,
              jit: bool = True) -> Measured:
    """Returns what the loss gives, compiled once for each shape."""
    gradient = self._jitted if jit else self._eager
    (_, result), gradients = gradient(*inputs, mask)
    return Measured(result.total, result.count, gradients)

  def sums(self, inputs: Inputs, mask: jax.Array) -> Measured:
    """Returns what the loss gives op by op, without gradients."""
    return Measured(*self.call(inputs, mask), ())

  def call(self, inputs: Inputs, mask: jax.Array) -> base.LossSum:
    """Calls the loss as the step does."""
    return self._transformed(
        self.entry.function, inputs, mask).apply(self.params, None)

  def call_unguarded(self, inputs: Inputs, mask: jax.Array,
                     params: Optional[base.ArrayTree] = None) -> Any:
    """Calls the author's function itself, on what the guard would give it."""
    transformed = self._transformed(self._unguarded, inputs, mask)
    return transformed.apply(self.params if params is None else params, None)

  @functools.cached_property
  def params(self) -> base.ArrayTree:
    """The loss's own parameters; most have none."""
    return self._transformed(
        self._unguarded, self.inputs(), self.full_mask()).init(
            jax.random.key(0))

  @property
  def _unguarded(self):
    return getattr(self.entry.function, '__wrapped__')  # By functools.wraps.

  def _transformed(self, function, inputs, mask):
    labels = {} if inputs.labels is None else dict(labels=inputs.labels)
    return hk.transform(lambda: function(
        inputs.student, inputs.teacher, mask=mask, **labels, **self._options))

  @functools.cached_property
  def _eager(self):

    def total(student, teacher, labels, mask):
      result = self.call(Inputs(student, teacher, labels), mask)
      return result.total, result

    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)

  @functools.cached_property
  def _jitted(self):
    return jax.jit(self._eager)
