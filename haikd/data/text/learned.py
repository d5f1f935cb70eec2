"""Rows in which only some of the tokens are learned."""

from collections.abc import Mapping

import numpy as np

from haikd.data.text import packing
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.data.text import tokens as tokens_lib

_CONTEXT, _LEARNED = 1, 2  # The parts of a row.


def first_beyond(spans: tokenizer_lib.Spans, place: int) -> int:
  """Returns the first token that has a character at or beyond a place.

  Args:
    spans: a text.
    place: the index of a character, or the length of the text.

  Returns:
    The index of a token, or the number of tokens.
  """
  # A token without characters belongs to what follows it.
  beyond = (spans.ends > place) | (spans.starts >= place)
  return int(np.argmax(beyond)) if beyond.any() else len(beyond)


def row(tokens: np.ndarray, is_learned: np.ndarray, length: int, *, pad: int,
        padding: str) -> np.ndarray:
  """Returns one row.

  Args:
    tokens: integers, `[n]`, n at most N.
    is_learned: bool `[n]`.
    length: N.
    pad: the token that fills the row up.
    padding: the side of the padding, 'right' or 'left'.

  Returns:
    A scalar of `packing.row_dtype(length)`.
  """
  return packing.row([tokens], [np.where(is_learned, _LEARNED, _CONTEXT)],
                     length, pad=pad, padding=padding)


def expand(rows: np.ndarray) -> Mapping[str, np.ndarray]:
  """Returns the columns of examples.

  Args:
    rows: `[B]` rows.

  Returns:
    `tokens`, `mask`, `label` and `target_mask`, which is true where the next
    token is learned.
  """
  tokens, parts = rows['tokens'], rows['parts']
  label, target_mask = tokens_lib.next_token(
      tokens, parts > 0, completion=parts == _LEARNED)
  return dict(tokens=tokens, mask=parts > 0, label=label,
              target_mask=target_mask)
