"""Sums losses over positions without materialising their logits.

Positions are processed in chunks, those that count first, so no chunk of
padding alone is visited. Logits of student and teacher exist for one chunk.
The objective is linear in these sums, so the gradient is known up to a scalar
and is computed in the forward pass, while the chunk's logits exist. The
backward pass multiplies by the scalar and recomputes nothing.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple, Optional

import jax
from jax import lax
import jax.numpy as jnp

from haikd.core import base
from haikd.core import mesh_context
from haikd.core import scopes
from haikd.core import transposed
from haikd.core import weighting
from haikd.losses import cutting

# The largest value that a float16 gradient of the products is scaled to.
_MAX_FLOAT16_GRADIENT = 2.0**12
_ABSENT: Any = None  # Stands in a tail for hidden states and kernel.


def add_up(function: Callable[..., Any],
           student: base.LinearLogits,
           teacher: Optional[base.TeacherLogits],
           *,
           mask: jax.Array,
           labels: Optional[jax.Array] = None,
           weight: Optional[jax.Array] = None,
           sizes: cutting.ChunkSizes = cutting.ChunkSizes()) -> Any:
  """Sums a function of logits over all positions.

  Args:
    function: `(student, teacher, *, mask, labels) -> sums`. It takes logits
      `[R, V]` float32, and a mask and labels whose one axis R replaces all axes
      before that of classes; it returns a pytree of sums over R.
    student: LinearLogits `[..., V]`.
    teacher: LinearLogits, or logits, of the same shape; one of
      `recorded.TARGETS`; or None.
    mask: bool, leading axes of the logits, true where a position counts.
    labels: `[...]` or `[..., V]`, or None.
    weight: `[B]`, of the first axis, what its sums are multiplied by; or None.
    sizes: of the chunks.

  Returns:
    The sums.

  Raises:
    ValueError: shapes do not fit.
  """
  cut = cutting.Cut(student, mask, sizes)
  sides = cut.flatten('student', student), cut.flatten('teacher', teacher)
  labels, weight = cut.flatten('labels', labels), cut.spread(weight)

  def call(number):
    chunk = cut.chunk(number)
    logits = (
        x.materialise() if isinstance(x, base.LinearLogits) else x
        for x in map(chunk.of, sides))
    rows = *logits, chunk.keep, *map(chunk.of, (labels, weight))
    sums, _ = cutting.in_groups(
        lambda rows: (_call(function, *rows), ()), rows,
        sizes.groups(len(chunk.keep), student.shape[-1]))
    return sums

  shapes = jax.eval_shape(call, jnp.int32(0))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return cut.loop(
      lambda number, sums: jax.tree.map(jnp.add, sums, call(number)),
      mesh_context.vary_like(zeros, sides, mask, labels, weight))


def _call(function, student, teacher, mask, labels, weight):
  """Calls a function of a chunk's rows; sums it up by rows with weights."""
  call = lambda student, teacher, mask, labels: function(
      student, teacher, mask=mask, labels=labels)
  rows = student, teacher, mask, labels
  return call(*rows) if weight is None else weighting.add_up(
      call, weight, *rows)


def weighted(losses: Sequence[Callable[..., base.LossSum]],
             coefficients: jax.Array,
             student: base.LinearLogits,
             teacher: Optional[base.TeacherLogits],
             *,
             mask: jax.Array,
             labels: Optional[jax.Array] = None,
             weight: Optional[jax.Array] = None,
             sizes: cutting.ChunkSizes = cutting.ChunkSizes()
             ) -> tuple[jax.Array, tuple[base.LossSum, ...]]:
  """Sums several additive losses over all positions, in one pass.

  Args:
    losses: like the function of `add_up`, but each returns a LossSum.
    coefficients: float32 `[K]`, the weight of each total; they have no
      gradient.
    student: LinearLogits `[..., V]`.
    teacher: LinearLogits, or logits, of the same shape; one of
      `recorded.TARGETS`; or None.
    mask: bool, leading axes of the logits, true where a position counts.
    labels: `[...]` or `[..., V]`, or None.
    weight: as for `add_up`.
    sizes: of the chunks.

  Returns:
    The weighted sum of the totals, a float32 scalar, differentiable with
    respect to student and teacher (only the gradients asked for are computed);
    and the LossSum of each loss, without a gradient.

  Raises:
    ValueError: shapes do not fit.
  """
  cut = cutting.Cut(student, mask, sizes)
  labels, weight = cut.flatten('labels', labels), cut.spread(weight)
  coefficients = lax.stop_gradient(coefficients)
  logits = jax.tree.map(
      jnp.asarray,
      (cut.flatten('student', student), cut.flatten('teacher', teacher)))

  def weigh(sums):
    return sum(c * x.total for c, x in zip(coefficients, sums))

  def call(*logits, rows):
    sums = tuple(_call(loss, *logits, *rows) for loss in losses)
    return weigh(sums), sums

  def run(logits, wanted):
    """Returns the sums, and the gradient of the wanted arrays of logits."""
    sides = tuple(map(_Side, logits, wanted))

    def body(number, carry):
      sums, totals = carry
      chunk = cut.chunk(number)
      more, gradients = _differentiate(
          call, [side.in_chunk(chunk) for side in sides],
          (chunk.keep, *map(chunk.of, (labels, weight))), sizes)
      totals = tuple(
          side.add(total, gradient, chunk.positions)
          for side, total, gradient in zip(sides, totals, gradients))
      return jax.tree.map(jnp.add, sums, more), totals

    zero = jnp.zeros((), jnp.float32)
    init = (tuple(base.LossSum(zero, zero) for _ in losses),
            tuple(side.zeros(sizes.split) for side in sides))
    return cut.loop(
        body, mesh_context.vary_like(init, logits, mask, labels, weight,
                                     coefficients))

  @jax.custom_vjp
  def summed(logits):
    sums, _ = run(logits, jax.tree.map(lambda _: False, logits))
    return weigh(sums), sums

  def forward(logits):
    sums, gradient = run(jax.tree.map(lambda x: x.value, logits),
                         jax.tree.map(lambda x: x.perturbed, logits))
    return (weigh(sums), sums), gradient

  def backward(gradient, cotangents):
    scaled = jax.tree.map(
        lambda x, part: None if part is None else
        (cotangents[0] * part).astype(x.dtype), logits, gradient)
    return (scaled,)

  summed.defvjp(forward, backward, symbolic_zeros=True)
  value, sums = summed(logits)
  return value, lax.stop_gradient(sums)


class _Side(NamedTuple):
  """The logits of one network, and which of their arrays need a gradient.

  Logits are made of products `[R, V]` and a tail: bias, scale and cap. For
  materialised logits the products are the logits, and the tail is empty.

  Attributes:
    logits: LinearLogits, an array or records, with one axis of positions; or
      None.
    wanted: like `logits`, whether each array needs a gradient.
  """

  logits: Optional[base.TeacherLogits]
  wanted: Any

  def needs_gradient(self) -> bool:
    """Returns whether any array needs a gradient."""
    return any(jax.tree.leaves(self.wanted))

  def in_chunk(self, chunk: cutting.Chunk) -> '_Side':
    """Returns the side's part in a chunk."""
    return self._replace(logits=chunk.of(self.logits))

  def zeros(self, split: Callable[[jax.Array], jax.Array]) -> Any:
    """Returns zeros for the sum of the gradient; None where it has none."""
    zeros = jax.tree.map(
        lambda x, want: jnp.zeros(x.shape, jnp.float32) if want else None,
        self.logits, self.wanted)
    if isinstance(zeros, base.LinearLogits) and jax.tree.leaves(zeros.kernel):
      return zeros._replace(
          kernel=transposed.over_kernel(split, zeros.kernel))
    return zeros

  def add(self, total: Any, gradient: Any, positions: jax.Array) -> Any:
    """Adds a chunk's gradient to the total, each row at its position."""

    def set_rows(total, rows):
      return None if total is None else total.at[positions].set(
          rows, mode='drop', unique_indices=True)

    if not self.needs_gradient():  # Records are several arrays, without one.
      return total
    if not isinstance(self.logits, base.LinearLogits):
      return set_rows(total, gradient)
    shared = jax.tree.map(jnp.add, total._replace(hidden=None),
                          gradient._replace(hidden=None))
    return shared._replace(hidden=set_rows(total.hidden, gradient.hidden))

  def products(self, split: Callable[[jax.Array], jax.Array]) -> Any:
    """Returns the products, `[R, V]`; None where there are no logits."""
    if isinstance(self.logits, base.LinearLogits):
      return split(self.logits.products())
    return self.logits

  def tail(self) -> base.LinearLogits:
    """Returns the tail: `tail.finish(products)` are the logits."""
    if isinstance(self.logits, base.LinearLogits):
      return self.logits._replace(hidden=_ABSENT, kernel=_ABSENT)
    return base.LinearLogits(_ABSENT, _ABSENT)

  def gradient(self, products: jax.Array, tail: base.LinearLogits) -> Any:
    """Returns the gradient of the wanted arrays, given that of their parts."""
    if not self.needs_gradient():
      return jax.tree.map(lambda _: None, self.wanted)
    if not isinstance(self.logits, base.LinearLogits):
      return products
    hidden, kernel = self.logits.hidden, self.logits.kernel
    dtype = jnp.result_type(hidden.dtype, kernel.dtype)
    unit: jax.typing.ArrayLike = 1.0
    if dtype == jnp.float16:
      # float16 ranges from 6e-8 to 65504. The loss scale, which keeps gradients
      # in this range, is applied later.
      unit = jnp.max(jnp.abs(products)) / _MAX_FLOAT16_GRADIENT
      unit = jnp.where((unit > 0.0) & jnp.isfinite(unit), unit, 1.0)
    products = (products / unit).astype(dtype)
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    gradient = tail._replace(
        hidden=einsum('rv,dv->rd', products, jnp.asarray(kernel)) * unit,
        kernel=transposed.scaled_sum(hidden, products, unit, like=kernel))
    return jax.tree.map(
        lambda x, want: x if want else None, gradient, self.wanted)


def _differentiate(function: Callable, sides: Sequence[_Side], rows: Any,
                   sizes: cutting.ChunkSizes) -> tuple[Any, tuple[Any, ...]]:
  """Calls `(student, teacher, *, rows) -> (value, sums)` on a chunk's logits.

  Returns:
    The sums, and for each side the gradient of the value; see `_Side.gradient`.
  """
  student, teacher = sides
  products: tuple = (student.products(sizes.split),)
  with scopes.teacher():
    products += (teacher.products(sizes.split),)
  tails = tuple(side.tail() for side in sides)

  def group(part):
    """Differentiates with respect to the products and tails of some rows."""
    products, rows = part
    inputs = tuple(zip(products, tails))

    def value_of(*variables):
      logits = (
          tail.finish(product) for product, tail in (
              variable or constant
              for variable, constant in zip(variables, inputs)))
      return function(*logits, rows=rows)

    variables = (
        x if side.needs_gradient() else None for x, side in zip(inputs, sides))
    value, pullback, sums = jax.vjp(value_of, *variables, has_aux=True)
    gradients = pullback(jnp.ones_like(value))
    of_products, of_tails = zip(*(x or (None, None) for x in gradients))
    return (sums, of_tails), of_products

  (sums, of_tails), of_products = cutting.in_groups(
      group, (products, rows), sizes.groups(*products[0].shape))
  return sums, tuple(
      side.gradient(*parts) for side, *parts in zip(
          sides, of_products, of_tails))
