"""Loops over the blocks of attention maps."""

from collections.abc import Callable
import functools
from typing import Any, Optional

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from haikd.attention import blocks as blocks_lib
from haikd.core import masking
from haikd.core import mesh_context


def run(blocks: blocks_lib.Blocks, function: Callable, rows: Any,
        keys: list[tuple[jax.Array, Optional[jax.Array]]], per_example: Any,
        init: Any, results: Any,
        real: Optional[jax.Array]) -> tuple[Any, Any]:
  """Calls a function on every block.

  Args:
    blocks: how the maps are cut.
    function: `(sums, rows, keys, per_example, place) -> (sums, results)` of one
      block; the results are `[examples, rows, ...]`.
    rows: pytree of arrays `[B, N, ...]`; a block gets its part of them.
    keys: list of (keys, mask): `[B, M, G, ...]`, and bool `[B, M]`, behind
      which keys are taken as 0, or None. A block gets its part of the keys, as
      `[examples, G, keys, ...]`.
    per_example: pytree of arrays `[B, ...]`; a block gets those of its
      examples.
    init: pytree of arrays that the sums of each group of examples begin with.
    results: pytree of jax.ShapeDtypeStruct, what the results of one row are.
    real: bool, `[B, N]`, whether a query is real, or None if all are. A block
      without real queries is skipped and its results are 0, unless it is alone
      in its loop, or devices with other queries must run the same loop.

  Returns:
    The final sums, `[groups, ...]`, where group g holds the examples g,
    g + groups and so on; and the results, `[B, N, ...]`.
  """
  batch, length = jax.tree.leaves(rows)[0].shape[:2]
  groups = batch // blocks.examples

  def split_rows(x):
    padding = blocks.padded_rows - length
    x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(blocks.examples, groups, blocks.num_blocks, blocks.rows,
                     *x.shape[2:])

  rows, structure = jax.tree.flatten(jax.tree.map(split_rows, rows))
  clean_keys = [
      jnp.swapaxes(split_groups(_clean(*x), groups), 2, 3) for x in keys]
  per_example = jax.tree.map(lambda x: split_groups(x, groups), per_example)
  if mesh_context.needs_uniform_control_flow():
    real = None
  elif real is not None:
    real = jnp.any(split_rows(real), axis=(0, 3))
  vary = lambda tree: mesh_context.vary_like(
      tree, init, rows, clean_keys, per_example)
  sums = vary(jax.tree.map(
      lambda x: jnp.broadcast_to(x, (groups, *x.shape)), init))
  compute = functools.partial(
      _compute, blocks, function, vary, clean_keys, per_example, structure)
  rows, slots = _make_room(rows, results, real)
  for span in blocks.spans:
    sums, rows = _run_span(
        functools.partial(compute, span), span, slots, vary, sums, rows,
        None if real is None else real[:, span.first:][:, :span.num_blocks])
  written = [rows[i].reshape(batch, -1, *rows[i].shape[4:])[:, :length]
             for i in slots]
  return sums, jax.tree.unflatten(jax.tree.structure(results), written)


def _make_room(rows, results, real):
  """Returns arrays for results as well as rows.

  A block reads its rows before it writes its results. So results take the place
  of rows where they have the same shape: XLA would make the zeros for all
  layers at the beginning of a step, and keep them until they are used.

  Args:
    rows: list of `[examples, groups, blocks, rows, ...]`.
    results: as in `run`.
    real: as in `_run_span`, of all spans.

  Returns:
    The rows, 0 where a result will stand and no block writes one, and more
    arrays behind them; and which of these arrays each result goes to.
  """
  slots = []
  split = rows[0].shape[:4]
  for x in jax.tree.leaves(results):
    fits = [i for i, y in enumerate(rows) if i not in slots and (
        y.shape, y.dtype) == ((*split, *x.shape), x.dtype)]
    if not fits:
      fits, rows = [len(rows)], [*rows, jnp.zeros((*split, *x.shape), x.dtype)]
    elif real is not None:
      written = real.reshape(1, *real.shape, 1, *(1 for _ in x.shape))
      rows = [jnp.where(written, y, 0) if i == fits[0] else y
              for i, y in enumerate(rows)]
    slots.append(fits[0])
  return rows, slots


def _run_span(compute, span, slots, vary, sums, rows, real):
  """Calls a function on every block of a span, of all groups of examples.

  One loop is faster than two nested ones, and compiles faster.

  Args:
    compute: `(group, row, sums, rows) -> (sums, results)`.
    span: the blocks.
    slots: for each result, the index of an array among the rows.
    vary: marks arrays as varying like all arguments, see `vary_like`.
    sums: of all groups, `[groups, ...]`.
    rows: list of `[examples, groups, blocks, rows, ...]`, of all spans.
    real: bool `[groups, blocks]`, whether a block of the span has a real query;
      None if none is to be skipped.

  Returns:
    The sums; and the rows with the results in their places.
  """
  number = rows[0].shape[1] * span.num_blocks

  def fill(written):
    filled = list(rows)
    for slot, x in zip(slots, written):
      filled[slot] = x
    return filled

  def step(group, row, carry):
    sums, written = carry
    sums, results = compute(group, row, sums, fill(written))
    return sums, [_write(x, y[:, None, None], (0, group, row))
                  for x, y in zip(written, jax.tree.leaves(results))]

  carry = vary((sums, [rows[i] for i in slots]))
  if number == 1:
    sums, written = step(0, span.first, carry)
    return sums, fill(written)
  order, end = np.arange(number, dtype=np.int32), number
  if real is not None:  # Those with a real query first, in their order.
    order = jnp.argsort(~real.reshape(-1), stable=True).astype(jnp.int32)
    end = lax.min(jnp.sum(real, dtype=jnp.int32), np.int32(number))
  # Outside of the loop, since all layers share these.
  places = order // span.num_blocks, span.first + order % span.num_blocks

  def body(i, carry):
    group, row = (_part(jnp.asarray(x), (i,), (1,))[0] for x in places)
    return step(group, row, carry)

  sums, written = lax.fori_loop(0, end, body, carry)
  return sums, fill(written)


def _compute(blocks, function, vary, keys, per_example, structure, span, group,
             row, sums, rows):
  """Computes a block of a group, and adds to the group's sums."""
  of_group = lambda x: _part(x, (group,), (1,))[0]
  rows = [_part(x, (0, group, row), (x.shape[0], 1, 1))[:, 0, 0]
          for x in rows[:structure.num_leaves]]
  place = blocks.place(span, row)
  first, number = place.keys
  keys = [_part(x, (group, 0, 0, first), (1, *x.shape[1:3], number))[0]
          for x in keys]
  more, results = vary(function(
      jax.tree.map(of_group, sums), jax.tree.unflatten(structure, rows), keys,
      jax.tree.map(of_group, per_example), place))
  return jax.tree.map(lambda x, y: _write(x, y[None], (group,)),
                      sums, more), results


def _part(array, starts, sizes):
  """Returns a part of an array, which is whole in the axes not named."""
  whole = array.shape[len(starts):]
  return lax.dynamic_slice(
      array, (*starts, *(0 for _ in whole)), (*sizes, *whole),
      allow_negative_indices=False)


def _write(array, part, starts):
  """Returns an array with a part of it replaced; see `_part`."""
  return lax.dynamic_update_slice(
      array, part, (*starts, *(0 for _ in array.shape[len(starts):])),
      allow_negative_indices=False)


def _clean(array, mask):
  """Returns keys, with zeros behind the mask."""
  return array if mask is None else masking.clean(array, mask)


def split_groups(array: jax.Array, groups: int) -> jax.Array:
  """Reshapes `[B, ...]` to `[groups, B / groups, ...]`.

  Group g holds the examples g, g + groups and so on, so that an axis B that is
  split over devices stays split.
  """
  array = array.reshape(-1, groups, *array.shape[1:])
  return jnp.swapaxes(array, 0, 1)


def join_groups(array: jax.Array) -> jax.Array:
  """Undoes `split_groups`."""
  array = jnp.swapaxes(array, 0, 1)
  return array.reshape(-1, *array.shape[2:])
