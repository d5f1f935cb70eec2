"""Sums over positions of logits that are never whole.

Positions are worked through in chunks, those that count first, so that no chunk
of padding is ever visited. Logits of student and teacher live for one chunk.
What is summed enters an objective linearly: its gradient is therefore known but
for a factor, and is computed beside it, while the chunk's logits are at hand.
The backward pass multiplies, and recomputes nothing.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, Optional, Union

import jax
from jax import lax
import jax.numpy as jnp

from haikd.core import base
from haikd.core import mesh_context
from haikd.losses import cutting

_LARGEST_PRODUCT = 2.0**12  # Of a chunk's gradient in float16.

Side = Optional[Union[base.LinearLogits, jax.Array]]


def add_up(function: Callable[..., Any],
           student: base.LinearLogits,
           teacher: Side,
           *,
           mask: jax.Array,
           labels: Optional[jax.Array] = None,
           sizes: cutting.ChunkSizes = cutting.ChunkSizes()) -> Any:
  """Adds a function of logits up over all positions.

  Args:
    function: `(student, teacher, *, mask, labels) -> sums`, of logits `[R, V]`
      float32 and of a mask and labels with the one axis R before that of
      classes; a pytree of sums over R.
    student: stands for logits `[..., V]`.
    teacher: LinearLogits, or logits, of the same shape; or None.
    mask: bool, leading axes of the logits, true where a position counts.
    labels: `[...]` or `[..., V]`, or None.
    sizes: of the chunks.

  Returns:
    The sums.

  Raises:
    ValueError: the shapes do not fit.
  """
  cut = cutting.Cut(student, mask, sizes)
  sides, labels = (cut.flat(student), cut.flat(teacher)), cut.flat(labels)

  def call(number):
    chunk = cut.chunk(number)
    logits = (
        x.materialise() if isinstance(x, base.LinearLogits) else x
        for x in map(chunk.of, sides))
    return function(*logits, mask=chunk.keep, labels=chunk.of(labels))

  like = jax.eval_shape(call, jnp.int32(0))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
  return cut.loop(
      lambda number, sums: jax.tree.map(jnp.add, sums, call(number)),
      mesh_context.alike(zeros, sides, mask, labels))


def weighted(losses: Sequence[Callable[..., base.LossSum]],
             coefficients: jax.Array,
             student: base.LinearLogits,
             teacher: Side,
             *,
             mask: jax.Array,
             labels: Optional[jax.Array] = None,
             sizes: cutting.ChunkSizes = cutting.ChunkSizes()
             ) -> tuple[jax.Array, tuple[base.LossSum, ...]]:
  """Sums several additive losses over all positions, in one pass.

  Args:
    losses: as the function of `add_up`, each giving a LossSum.
    coefficients: float32 `[K]`, what the total of each is multiplied by; they
      have no gradient.
    student: stands for logits `[..., V]`.
    teacher: LinearLogits, or logits, of the same shape; or None.
    mask: bool, leading axes of the logits, true where a position counts.
    labels: `[...]` or `[..., V]`, or None.
    sizes: of the chunks.

  Returns:
    The weighted sum of the totals, a float32 scalar, with a gradient for
    student and teacher, each only where it is asked for; and the LossSum of
    each loss, without one.

  Raises:
    ValueError: the shapes do not fit.
  """
  cut = cutting.Cut(student, mask, sizes)
  labels = cut.flat(labels)
  coefficients = lax.stop_gradient(coefficients)
  sides = cut.flat(student), cut.flat(teacher)
  leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, sides))
  lies_in_rows = jax.tree.leaves(tuple(map(_lies_in_rows, sides)))

  def call(*logits, rows):
    mask, labels = rows
    sums = tuple(loss(*logits, mask=mask, labels=labels) for loss in losses)
    return sum(c * x.total for c, x in zip(coefficients, sums)), sums

  def run(leaves, wanted):
    """Returns the sums, and the gradient of the leaves that are wanted."""
    sides = structure.unflatten(leaves)
    zero = jnp.zeros((), jnp.float32)
    zeros = [jnp.zeros(x.shape, jnp.float32) if want else None
             for x, want in zip(leaves, wanted)]

    def more(number, carry):
      sums, gradient = carry
      chunk = cut.chunk(number)

      new, parts = _differentiate(
          call, tuple(map(chunk.of, sides)), (chunk.keep, chunk.of(labels)),
          structure.unflatten(wanted), sizes)
      for i, part in enumerate(jax.tree.leaves(parts)):
        if wanted[i] and lies_in_rows[i]:
          gradient[i] = gradient[i].at[chunk.index].set(
              part, mode='drop', unique_indices=True)
        elif wanted[i]:
          gradient[i] += part
      return jax.tree.map(jnp.add, sums, new), gradient

    zeros = [x if x is None or x.ndim < 2 or in_rows else sizes.split(x)
             for x, in_rows in zip(zeros, lies_in_rows)]
    start = (tuple(base.LossSum(zero, zero) for _ in losses), zeros)
    return cut.loop(
        more, mesh_context.alike(start, leaves, mask, labels, coefficients))

  def result(sums):
    return sum(c * x.total for c, x in zip(coefficients, sums)), sums

  @jax.custom_vjp
  def summed(*leaves):
    return result(run(leaves, [False] * len(leaves))[0])

  def forward(*leaves):
    sums, gradient = run([x.value for x in leaves],
                         [x.perturbed for x in leaves])
    return result(sums), gradient

  def backward(gradient, cotangents):
    return tuple(
        None if part is None else (cotangents[0] * part).astype(x.dtype)
        for x, part in zip(leaves, gradient))

  summed.defvjp(forward, backward, symbolic_zeros=True)
  value, sums = summed(*leaves)
  return value, lax.stop_gradient(sums)


def _lies_in_rows(side: Side) -> Any:
  """Returns, leaf by leaf, whether a side has a row for each position."""
  if isinstance(side, base.LinearLogits):
    return jax.tree.map(lambda _: False, side)._replace(hidden=True)
  return jax.tree.map(lambda _: True, side)


def _differentiate(function: Callable, sides: tuple[Side, Side], rows: Any,
                   wanted: Any,
                   sizes: cutting.ChunkSizes) -> tuple[Any, tuple[Any, Any]]:
  """Calls `(student, teacher, rows) -> (value, sums)` on a chunk's logits.

  Returns:
    The sums, and what is like the sides: the gradient of the value where any
    of a side is wanted, and the side itself elsewhere.
  """
  products = tuple(_products(side, sizes.split) for side in sides)
  rests = tuple(_rest(side) for side in sides)
  moves = [any(jax.tree.leaves(want)) for want in wanted]
  pick = lambda values: tuple(x if move else None
                              for x, move in zip(values, moves))

  def group(part):
    """Differentiates with respect to the products and rests that move."""
    products, rows = part

    def of_moving(*moving):
      logits = (
          (rest if new is None else new[1]).finish(
              product if new is None else new[0])
          for product, rest, new in zip(products, rests, moving))
      return function(*logits, rows=rows)

    moving = pick(tuple(zip(products, rests)))
    value, pullback, sums = jax.vjp(of_moving, *moving, has_aux=True)
    changes = pullback(jnp.ones_like(value))
    of_products, of_rests = (
        tuple(None if x is None else x[i] for x in changes) for i in range(2))
    return (sums, of_rests), of_products

  (sums, of_rests), of_products = _in_groups(
      group, (products, rows), sizes.groups(*products[0].shape))
  return sums, tuple(
      _back(side, product, rest) if move else side
      for side, product, rest, move in zip(sides, of_products, of_rests, moves))


def _in_groups(function: Callable, parts: Any, number: int) -> tuple[Any, Any]:
  """Calls `rows -> (sums, results)` on groups of the rows of a chunk.

  Returns:
    What it returns of all rows.
  """
  if number == 1:
    return function(parts)
  parts = jax.tree.map(lambda x: x.reshape(number, -1, *x.shape[1:]), parts)

  def more(sums, part):
    new, results = function(part)
    return jax.tree.map(jnp.add, sums, new), results

  first = jax.tree.map(lambda x: x[0], parts)
  like, _ = jax.eval_shape(function, first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
  sums, results = lax.scan(more, mesh_context.alike(zeros, parts), parts)
  return sums, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)


def _products(side, split):
  """Returns what logits are made of, `[R, V]`: products, or themselves."""
  if isinstance(side, base.LinearLogits):
    return split(side.products())
  return side


def _rest(side):
  """Returns what makes logits of `_products`."""
  if isinstance(side, base.LinearLogits):
    return side._replace(hidden=None, kernel=None)
  return base.LinearLogits(None, None)


def _back(side, products, rest):
  """Returns the gradient of a side, float32, of those of its parts."""
  if not isinstance(side, base.LinearLogits):
    return products
  dtype, unit = jnp.result_type(side.hidden, side.kernel), 1.0
  if dtype == jnp.float16:
    # Its numbers begin at 6e-8 and end at 65504; the loss scale, which keeps
    # gradients in between, comes in later.
    unit = jnp.max(jnp.abs(products)) / _LARGEST_PRODUCT
    unit = jnp.where((unit > 0.0) & jnp.isfinite(unit), unit, 1.0)
  products = (products / unit).astype(dtype)
  times = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  return rest._replace(
      hidden=times('rv,dv->rd', products, side.kernel) * unit,
      kernel=times('rd,rv->dv', side.hidden, products) * unit)
