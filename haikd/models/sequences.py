"""Rows of tokens, as a language model or an encoder takes them."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Optional, Union

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import attention_mask
from haikd.models import layers

_COLUMNS = ('tokens', 'segments', 'positions', 'types')


class Sequence(NamedTuple):
  """A batch of rows.

  Attributes:
    tokens: `[B, N]` integers.
    mask: bool, `[B, N]`, true where a position is real.
    positions: `[B, N]` int32, the place of each real position in its document,
      from 0; 0 in padding before it.
    segments: `[B, N]` int32, which document of its row a position belongs to;
      None where a row is one document.
    types: `[B, N]` int32, which sentence of a pair a position belongs to; None
      where all are of the first.
  """

  tokens: jax.Array
  mask: jax.Array
  positions: jax.Array
  segments: Optional[jax.Array]
  types: Optional[jax.Array]

  def allowed(
      self,
      *,
      causal: bool,
      window: Optional[Union[int, jax.Array]] = None
  ) -> attention_mask.AttentionMask:
    """Returns where a query may look at a key.

    Keys are real and of the query's own document.

    Args:
      causal: whether a query looks at itself and what stands before it only.
      window: how many keys a query sees at most, itself and those right before
        it; with `causal` only. None for all.
    """
    if isinstance(window, np.integer):
      window = int(window)
    return attention_mask.AttentionMask(
        self.mask, self.segments, causal, window)


def read(where: str, inputs: Union[jax.Array, Mapping[str, Any]],
         mask: Optional[jax.Array]) -> Sequence:
  """Returns the rows of a batch.

  Args:
    where: the model, for messages.
    inputs: tokens, `[B, N]` integers, or a dict of `tokens` and, as they are
      there, `segments`, `positions` and `types`, shaped alike.
    mask: bool, `[B, N]` or `[B]`, true where a position is real; None if all
      are.

  Returns:
    A Sequence. Without `positions` each real position of a row has the number
    of real ones before it, so that a document gives the same wherever in its
    row it stands.

  Raises:
    TypeError: tokens are not integers, or the mask is not boolean.
    ValueError: another shape, another column, or segments without positions.
  """
  columns = inputs if isinstance(inputs, Mapping) else dict(tokens=inputs)
  unknown = sorted(set(columns) - set(_COLUMNS))
  if unknown or 'tokens' not in columns:
    raise ValueError(
        f'{where}: inputs must be tokens, or a dict of tokens and some of '
        f'{", ".join(_COLUMNS[1:])}; got {sorted(columns)}. Choose a data set '
        'of tokens.')
  tokens = columns['tokens']
  for value in columns.values():
    layers.check_tokens(where, value)
    if value.shape != tokens.shape:
      raise ValueError(f'{where}: inputs must all be of the shape of tokens; '
                       f'got shapes {[x.shape for x in columns.values()]}.')
  mask = layers.position_mask(where, mask, tokens)
  positions = columns.get('positions')
  if positions is None:
    if 'segments' in columns:
      raise ValueError(f'{where}: inputs must have positions beside segments; '
                       f'got {sorted(columns)}. Count them anew in each '
                       'document.')
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
  return Sequence(tokens, mask, positions, columns.get('segments'),
                  columns.get('types'))
