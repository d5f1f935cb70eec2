"""Loops over the blocks of attention maps."""

from collections.abc import Callable
import dataclasses
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
        init: Any, real: Optional[jax.Array]) -> tuple[Any, Any]:
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
    x = x.reshape(blocks.examples, groups, blocks.num_blocks, blocks.rows,
                  *x.shape[2:])
    return jnp.moveaxis(x, 0, 2)

  def join_rows(x):
    x = jnp.moveaxis(x, 2, 0)
    return x.reshape(batch, -1, *x.shape[4:])[:, :length]

  rows = jax.tree.map(split_rows, rows)
  clean_keys = [
      jnp.swapaxes(split_groups(_clean(*x), groups), 2, 3) for x in keys]
  per_example = jax.tree.map(lambda x: split_groups(x, groups), per_example)
  if mesh_context.needs_uniform_control_flow():
    real = None
  elif real is not None:
    real = jnp.any(split_rows(real), axis=(2, 3))
  vary = lambda tree: mesh_context.vary_like(
      tree, init, rows, clean_keys, per_example)
  sums = vary(jax.tree.map(
      lambda x: jnp.broadcast_to(x, (groups, *x.shape)), init))
  results = []
  for span in blocks.spans:
    in_span = slice(span.first, span.first + span.num_blocks)
    loop = _Loop(blocks, span, function, vary,
                 jax.tree.map(lambda x: x[:, in_span], rows), clean_keys,
                 per_example)
    sums, of_span = loop.run(sums, None if real is None else real[:, in_span])
    results.append(of_span)
  return sums, jax.tree.map(
      lambda *x: join_rows(jnp.concatenate(x, axis=1)), *results)


@dataclasses.dataclass(frozen=True)
class _Loop:
  """A loop over the blocks of a span, of all groups of examples.

  One loop is faster than two nested ones, and compiles faster.

  Attributes:
    blocks: how the maps are cut.
    span: the blocks.
    function: of one block; see `run`.
    vary: marks arrays as varying like all arguments, see `vary_like`.
    rows: of the span, `[groups, blocks, examples, rows, ...]`.
    keys: of the groups, `[groups, examples, G, M, ...]`, clean.
    per_example: of the groups, `[groups, examples, ...]`.
  """

  blocks: blocks_lib.Blocks
  span: blocks_lib.Span
  function: Callable
  vary: Callable
  rows: Any
  keys: list[jax.Array]
  per_example: Any

  def run(self, sums: Any, real: Optional[jax.Array]) -> tuple[Any, Any]:
    """Returns the sums and the results, which are like the rows.

    Args:
      sums: of all groups, `[groups, ...]`.
      real: bool `[groups, blocks]`, whether a block has a real query; None if
        none is to be skipped.
    """
    compute = functools.partial(self._compute, 0, 0)
    shape = jax.tree.leaves(self.rows)[0].shape[:2]
    if shape == (1, 1):
      sums, results = compute(sums)
      return sums, jax.tree.map(lambda x: x[None, None], results)
    _, results = jax.eval_shape(compute, sums)
    results = jax.tree.map(
        lambda x: jnp.zeros(shape + x.shape, x.dtype), results)
    number = shape[0] * shape[1]
    order, end = jnp.arange(number, dtype=jnp.int32), number
    if real is not None:  # Those with a real query first, in their order.
      order = jnp.argsort(~real.reshape(-1), stable=True).astype(jnp.int32)
      end = lax.min(jnp.sum(real, dtype=jnp.int32), np.int32(number))

    def body(i, carry):
      sums, results = carry
      group, row = order[i] // shape[1], order[i] % shape[1]
      sums, more = self._compute(group, row, sums)
      return sums, jax.tree.map(
          lambda x, y: lax.dynamic_update_slice(
              x, y[None, None], (group, row) + (0,) * y.ndim), results, more)

    return lax.fori_loop(0, end, body, self.vary((sums, results)))

  def _compute(self, group, row, sums):
    """Computes a block of a group, and adds to the group's sums."""
    of_group = functools.partial(
        lax.dynamic_index_in_dim, index=group, keepdims=False)
    rows = jax.tree.map(
        lambda x: lax.dynamic_slice(
            x, (group, row) + (0,) * (x.ndim - 2), (1, 1, *x.shape[2:]))[0, 0],
        self.rows)
    place = self.blocks.place(self.span, self.span.first + row)
    keys = [lax.dynamic_slice_in_dim(of_group(x), *place.keys, axis=2)
            for x in self.keys]
    more, results = self.vary(self.function(
        jax.tree.map(of_group, sums), rows, keys,
        jax.tree.map(of_group, self.per_example), place))
    return jax.tree.map(
        lambda x, y: lax.dynamic_update_index_in_dim(x, y, group, 0),
        sums, more), results


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
