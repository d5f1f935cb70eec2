"""How attention maps are cut into blocks, and the loops over these.

A block holds some examples with all their heads, some query rows, and every key
that one of these rows may look at. A row is therefore seen at once: its softmax
is computed as ever, and a loss may compare it with another.

Above a causal diagonal nothing is computed. A loop has blocks of one size, so
that there are a few loops, each over rows whose keys end alike; with a window
one loop does for all.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple, Optional, Union

import jax
from jax import lax
import jax.numpy as jnp

from haikd.core import attention_mask
from haikd.core import masking
from haikd.core import mesh_context

Mask = Optional[Union[jax.Array, attention_mask.AttentionMask]]

# Bytes of a block in float32. It has fewer rows, down to 64, rather than more
# than most; and a causal one, of which blocks of padding are left out, no more
# examples than give it enough. On CPU it should stay in the cache of a core,
# elsewhere it should be large enough to keep the device busy.
_ENOUGH, _MOST = dict(cpu=2**17), dict(cpu=2**22)
_ELSEWHERE = 2**27
_ROWS = 64  # At least, and the number of rows is a multiple of it.
_LOOPS = (2, 8)  # Over the rows of a causal map, at least and at most.


class Span(NamedTuple):
  """Blocks of one size, one below the other.

  Attributes:
    first: the number of the first one.
    count: how many there are.
    keys: how many keys each sees.
    slides: whether the keys end where the rows do; else they begin at 0.
  """

  first: int
  count: int
  keys: int
  slides: bool


class Blocks(NamedTuple):
  """How maps are cut.

  Attributes:
    examples: in a block; divides B.
    rows: in a block.
    count: how many blocks lie one below the other.
    keys: M.
    spans: the loops over them.
  """

  examples: int
  rows: int
  count: int
  keys: int
  spans: tuple[Span, ...]


class Place(NamedTuple):
  """Where a block lies: its rows and its keys, as (first, number)."""

  queries: attention_mask.Range
  keys: attention_mask.Range


def cut(batch: int, heads: int, queries: int, keys: int, *, causal: bool,
        window: Optional[int], rows_of_loop: int) -> Blocks:
  """Returns how to cut maps `[B, H, N, M]`.

  Args:
    batch: B.
    heads: H; of several maps that a block has at once, the most.
    queries: N.
    keys: M.
    causal: whether a query looks at no key after itself.
    window: how many keys it sees at most, if that is known.
    rows_of_loop: how many rows of a causal map one loop has, about. With n
      loops (n + 1) / 2n of the map is computed, and n bodies are compiled.
  """
  most = _MOST.get(mesh_context.platform(), _ELSEWHERE)
  enough = most
  row = 4 * heads * keys
  rows, loops = queries, 1
  if causal and queries > 2 * _ROWS:
    enough = _ENOUGH.get(mesh_context.platform(), _ELSEWHERE)
    loops = min(max(queries // rows_of_loop, _LOOPS[0]), _LOOPS[1])
    # The fewer rows, the less a block reaches beyond their windows.
    finest = _LOOPS[1] if window is None else 2 * _LOOPS[1]
    rows = _round_up(-(-queries // finest))
  elif batch * queries * row <= 2 * most:
    # Cutting costs more than it saves.
    enough = most = 2 * most
  if rows * row > most:
    rows = min(rows, max(most // row // _ROWS, 1) * _ROWS)
  wanted = max(enough // (rows * row), 1)
  examples = max(n for n in range(1, batch + 1)
                 if batch % n == 0 and n <= wanted)
  count = -(-queries // rows)
  spans = _spans(rows, count, keys, loops, window)
  return Blocks(examples, rows, count, keys, spans)


def _spans(rows, count, keys, loops, window):
  loops = min(loops, count)
  if loops == 1:
    return (Span(0, count, keys, False),)
  width = keys if window is None else _round_up(window - 1) + rows
  if 2 * width <= keys:
    return (Span(0, count, width, True),)
  ends = [count * (i + 1) // loops for i in range(loops)]
  return tuple(
      Span(first, end - first, min(end * rows, keys), False)
      for first, end in zip([0, *ends], ends))


def _round_up(size):
  return -(-size // _ROWS) * _ROWS


def run(blocks: Blocks, function: Callable, rows: Any,
        keys: list[tuple[jax.Array, Optional[jax.Array]]], whole: Any,
        init: Any, real: Optional[jax.Array]) -> tuple[Any, Any]:
  """Calls a function on every block.

  Args:
    blocks: how the maps are cut.
    function: `(sums, rows, keys, whole, place) -> (sums, results)`, of one
      block; the results are `[examples, rows, ...]`.
    rows: pytree of arrays `[B, N, ...]`; a block gets its part of them.
    keys: list of (keys, mask): `[B, M, G, ...]`, and bool `[B, M]`, behind
      which they are taken as 0, or None. A block gets its part of the keys, as
      `[examples, G, keys, ...]`.
    whole: pytree of arrays `[B, ...]`; a block gets those of its examples.
    init: pytree of arrays that the sums of each group of examples begin with.
    real: bool, `[B, N]`, where a query is real: a block without any is left
      out, its results are 0, unless devices with other queries have to meet.
      None where all are.

  Returns:
    The last sums, `[groups, ...]`, group g holding the examples g, g + groups
    and so on; and the results, `[B, N, ...]`.
  """
  batch, length = jax.tree.leaves(rows)[0].shape[:2]
  groups = batch // blocks.examples
  if groups * blocks.count == 1 or mesh_context.needs_uniform_control_flow():
    real = None

  def body(keys, whole, span, sums, part):
    number, rows, real = part
    first, key = number * blocks.rows, 0
    if span.slides:
      # All blocks see as many keys, those at the ends some in vain.
      key = jnp.clip(first + blocks.rows - span.keys, 0,
                     blocks.keys - span.keys)
    place = Place((first, blocks.rows), (key, span.keys))

    def compute(sums):
      own = [lax.dynamic_slice_in_dim(x, *place.keys, axis=2) for x in keys]
      return mesh_context.alike(
          function(sums, rows, own, whole, place), sums, rows, keys, whole)

    def skip(sums):
      _, results = jax.eval_shape(compute, sums)
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), results)
      return sums, mesh_context.alike(zeros, sums, rows, keys, whole)

    if real is None:
      return compute(sums)
    return lax.cond(jnp.any(real), compute, skip, sums)

  def group(_, part):
    rows, keys, whole, real = part
    sums = mesh_context.alike(init, rows, keys, whole)
    keys = [_heads_first(*x) for x in keys]
    results = []
    for span in blocks.spans:
      taken = slice(span.first, span.first + span.count)
      parts = (jnp.arange(taken.start, taken.stop, dtype=jnp.int32),
               *jax.tree.map(lambda x: x[taken], (rows, real)))
      run_one = functools.partial(body, keys, whole, span)
      sums, more = _scan(run_one, sums, parts)
      results.append(more)
    return (), (sums, jax.tree.map(lambda *x: jnp.concatenate(x), *results))

  def split_rows(x):
    padding = blocks.count * blocks.rows - length
    x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(blocks.examples, groups, blocks.count, blocks.rows,
                  *x.shape[2:])
    return jnp.moveaxis(x, 0, 2)

  def join_rows(x):
    x = jnp.moveaxis(x, 2, 0)
    return x.reshape(batch, -1, *x.shape[4:])[:, :length]

  parts = (jax.tree.map(split_rows, rows),
           *jax.tree.map(lambda x: split_groups(x, groups), (keys, whole)),
           None if real is None else split_rows(real))
  _, (sums, results) = _scan(group, (), parts)
  return sums, jax.tree.map(join_rows, results)


def _heads_first(array, mask):
  """Returns keys as `[b, G, M, ...]`, clean."""
  if mask is not None:
    array = masking.clean(array, mask)
  return jnp.swapaxes(array, 1, 2)


def split_groups(array: jax.Array, groups: int) -> jax.Array:
  """Makes `[groups, B / groups, ...]` of `[B, ...]`.

  Group g holds the examples g, g + groups and so on: an axis B that is split
  over devices stays so.
  """
  array = array.reshape(-1, groups, *array.shape[1:])
  return jnp.swapaxes(array, 0, 1)


def join_groups(array: jax.Array) -> jax.Array:
  """Undoes `split_groups`."""
  array = jnp.swapaxes(array, 0, 1)
  return array.reshape(-1, *array.shape[2:])


def _scan(function, carry, parts):
  """Is `lax.scan`, without a loop where there is only one part."""
  if jax.tree.leaves(parts)[0].shape[0] > 1:
    return lax.scan(function, carry, parts)
  carry, results = function(carry, jax.tree.map(lambda x: x[0], parts))
  return carry, jax.tree.map(lambda x: x[None], results)
