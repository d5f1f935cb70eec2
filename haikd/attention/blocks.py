"""Cuts attention maps into blocks.

A block holds some examples with all their heads, some query rows, and every key
that one of these rows may attend to. It always holds complete rows, so the
ordinary softmax applies (no running maximum), and a loss may compare one row
with another.

Nothing above a causal diagonal is computed. All blocks of one loop have the
same size, so a causal map takes a few loops, each over rows whose keys end at
about the same place. With a window, one loop is enough.
"""

from typing import NamedTuple, Optional, Union

import jax
import jax.numpy as jnp

from haikd.core import attention_mask
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
