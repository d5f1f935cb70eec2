"""Cuts attention maps into blocks, and loops over the blocks.

A block holds some examples with all their heads, some query rows, and every key
that one of these rows may attend to. It always holds complete rows, so the
ordinary softmax applies (no running maximum), and a loss may compare one row
with another.

Nothing above a causal diagonal is computed. All blocks of one loop have the
same size, so a causal map takes a few loops, each over rows whose keys end at
about the same place. With a window, one loop is enough.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple, Optional, Union

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from haikd.core import attention_mask
from haikd.core import masking
from haikd.core import mesh_context

Mask = Optional[Union[jax.Array, attention_mask.AttentionMask]]

# Bytes of a block in float32, by platform. On CPU a block should stay in a
# core's cache, elsewhere it should be large enough to keep the device busy. A
# block shrinks to `_MIN_ROWS` rows before it exceeds `_MAX_BYTES`. A causal
# block takes only as many examples as reach `_CAUSAL_BYTES`, so that blocks of
# padding alone can be skipped.
_CAUSAL_BYTES, _MAX_BYTES = dict(cpu=2**17), dict(cpu=2**22)
_ACCELERATOR_BYTES = 2**27
_MIN_ROWS = 64  # Rows of a block are a multiple of it, or all rows.
_MIN_LOOPS, _MAX_LOOPS = 2, 8  # Over the rows of a causal map.


class Span(NamedTuple):
  """Consecutive blocks of one size, one below the other.

  Attributes:
    first: the number of the first block.
    num_blocks: how many blocks there are.
    keys: how many keys each block has.
    slides: whether a block's keys end where its rows do; else they begin at 0.
  """

  first: int
  num_blocks: int
  keys: int
  slides: bool


class Place(NamedTuple):
  """Where a block lies: its rows and its keys, as (first, number)."""

  queries: attention_mask.Range
  keys: attention_mask.Range


class Blocks(NamedTuple):
  """How maps are cut into blocks.

  Attributes:
    examples: how many examples a block has; divides B.
    rows: how many rows a block has.
    num_blocks: how many blocks lie one below the other.
    keys: M.
    spans: the loops over these blocks.
  """

  examples: int
  rows: int
  num_blocks: int
  keys: int
  spans: tuple[Span, ...]

  @property
  def padded_rows(self) -> int:
    """N, rounded up to full blocks."""
    return self.num_blocks * self.rows

  def place(self, span: Span, number: jax.Array) -> Place:
    """Returns where the block of a number lies; the span holds it."""
    first = number * self.rows
    if not span.slides:
      return Place((first, self.rows), (0, span.keys))
    # All blocks of a span have equally many keys, so those at either end of the
    # map include keys that no row attends to.
    key = jnp.clip(first + self.rows - span.keys, 0, self.keys - span.keys)
    return Place((first, self.rows), (key, span.keys))


def cut(batch: int, heads: int, queries: int, keys: int, *, causal: bool,
        window: Optional[int], rows_of_loop: int) -> Blocks:
  """Returns how to cut maps `[B, H, N, M]`.

  Args:
    batch: B.
    heads: H; the largest, if a block has several maps at once.
    queries: N.
    keys: M.
    causal: whether a query attends to no key after itself.
    window: how many keys a query attends to at most, if that is known.
    rows_of_loop: about how many rows of a causal map one loop has. With n
      loops, (n + 1) / 2n of the map is computed, and n bodies are compiled.
  """
  platform = mesh_context.platform()
  max_bytes = _MAX_BYTES.get(platform, _ACCELERATOR_BYTES)
  enough_bytes = max_bytes
  row_bytes = 4 * heads * keys
  rows, num_loops = queries, 1
  if causal and queries > 2 * _MIN_ROWS:
    enough_bytes = _CAUSAL_BYTES.get(platform, _ACCELERATOR_BYTES)
    num_loops = min(max(queries // rows_of_loop, _MIN_LOOPS), _MAX_LOOPS)
    # The fewer rows a block has, the fewer keys outside their windows it has.
    max_blocks = _MAX_LOOPS if window is None else 2 * _MAX_LOOPS
    rows = _round_up(-(-queries // max_blocks))
  elif batch * queries * row_bytes <= 2 * max_bytes:
    # Cutting costs more than it saves.
    enough_bytes = max_bytes = 2 * max_bytes
  if rows * row_bytes > max_bytes:
    rows = min(rows, max(max_bytes // row_bytes // _MIN_ROWS, 1) * _MIN_ROWS)
  max_examples = max(enough_bytes // (rows * row_bytes), 1)
  examples = max(n for n in range(1, batch + 1)
                 if batch % n == 0 and n <= max_examples)
  num_blocks = -(-queries // rows)
  spans = _spans(rows, num_blocks, keys, num_loops, window)
  return Blocks(examples, rows, num_blocks, keys, spans)


def _spans(rows, num_blocks, keys, num_loops, window):
  num_loops = min(num_loops, num_blocks)
  if num_loops == 1:
    return (Span(0, num_blocks, keys, False),)
  width = keys if window is None else _round_up(window - 1) + rows
  if 2 * width <= keys:
    return (Span(0, num_blocks, width, True),)
  ends = [num_blocks * (i + 1) // num_loops for i in range(num_loops)]
  return tuple(
      Span(first, end - first, min(end * rows, keys), False)
      for first, end in zip([0, *ends], ends))


def _round_up(size):
  return -(-size // _MIN_ROWS) * _MIN_ROWS


def run(blocks: Blocks, function: Callable, rows: Any,
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
      without real queries is skipped and its results are 0, unless devices
      with other queries must take the same branch.

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

  blocks: Blocks
  span: Span
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
    if real is not None:  # Those that count first, in their order.
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
