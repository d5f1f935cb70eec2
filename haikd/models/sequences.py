"""Rows of tokens, as a language model or an encoder takes them."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Optional, Union

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import attention_mask
from haikd.models import layers

# A window, as an array, that hides no position.
EVERYTHING = np.iinfo(np.int32).max

_COLUMNS = ('tokens', 'segments', 'positions', 'types')


class Sequence(NamedTuple):
  """A batch of rows of tokens.

  Attributes:
    tokens: `[B, N]` integers.
    mask: bool, `[B, N]`, true where a position is real.
    positions: `[B, N]` int32, the index of each real position in its document,
      from 0; 0 in padding before it.
    segments: `[B, N]` int32, which document of its row a position belongs to;
      None where a row is one document.
    types: `[B, N]` int32, which sentence of a pair a position belongs to; None
      where all belong to the first.
    counted: whether positions were counted here, so that they are below N.
  """

  tokens: jax.Array
  mask: jax.Array
  positions: jax.Array
  segments: Optional[jax.Array]
  types: Optional[jax.Array]
  counted: bool

  def allowed(
      self,
      *,
      causal: bool,
      window: Optional[Union[int, jax.Array]] = None
  ) -> attention_mask.AttentionMask:
    """Returns which keys each query may attend to.

    They are the real keys of the query's document.

    Args:
      causal: whether a query attends only to itself and to keys before it.
      window: how many positions away keys must be fewer than; with `causal`
        that is how many keys a query attends to at most. None for all.
    """
    if isinstance(window, np.integer):
      window = int(window)
    return attention_mask.AttentionMask(
        self.mask, self.segments, causal, window)


def read(inputs: Union[jax.Array, Mapping[str, Any]],
         mask: Optional[jax.Array]) -> Sequence:
  """Returns the rows of a batch.

  Args:
    inputs: tokens, `[B, N]` integers, or a dict of `tokens` and any of
      `segments`, `positions` and `types`, all of the same shape.
    mask: bool, `[B, N]` or `[B]`, true where a position is real; None if all
      are.

  Returns:
    A Sequence. Without `positions`, a real position is numbered by the real
    ones before it in its row. A document then gives the same outputs wherever
    in its row it starts.

  Raises:
    TypeError: tokens are not integers, or the mask is not boolean.
    ValueError: another shape, another column, or segments without positions.
  """
  columns = inputs if isinstance(inputs, Mapping) else dict(tokens=inputs)
  unknown = sorted(set(columns) - set(_COLUMNS))
  if unknown or 'tokens' not in columns:
    raise ValueError(
        'inputs must be tokens, or a dict of tokens and any of '
        f'{", ".join(_COLUMNS[1:])}; got {sorted(columns)}. Choose a data set '
        'of tokens.')
  tokens = columns['tokens']
  for name, value in columns.items():
    layers.check_tokens(name, value)
    if value.shape != tokens.shape:
      raise ValueError(f'{name} must have the shape of tokens; got '
                       f'{name}.shape={value.shape}, tokens.shape='
                       f'{tokens.shape}.')
  mask = layers.position_mask(mask, tokens)
  positions = columns.get('positions')
  if positions is None:
    if 'segments' in columns:
      raise ValueError('inputs must have positions if they have segments; got '
                       f'{sorted(columns)}. Count positions from 0 in each '
                       'document.')
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
  return Sequence(tokens, mask, positions, columns.get('segments'),
                  columns.get('types'), 'positions' not in columns)
