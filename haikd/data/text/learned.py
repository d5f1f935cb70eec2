"""Rows in which only some of the tokens are learned."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from haikd.data import spec as spec_lib
from haikd.data.text import packing
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.data.text import tokens as tokens_lib

_CONTEXT, _LEARNED = 1, 2  # The parts of a row.


class Spans:
  """A text as token ids, and the part of it that each of them stands for.

  The tokens of one character, its bytes, all begin and end with it.

  Attributes:
    ids: int32 `[N]`, without the special tokens that the tokenizer adds.

  Args:
    encoding: of the text, from `Tokenizer.encode_spans`.
    size: the number of characters in the text.
  """

  def __init__(self, encoding: Any, size: int):
    self.ids = np.array(encoding.ids, np.int32)
    self._encoding = encoding
    self._size = size

  def first_beyond(self, place: int) -> int:
    """Returns the first token that has a character at or beyond a place.

    Args:
      place: the index of a character, or the length of the text.

    Returns:
      The index of a token, or the number of tokens.
    """
    if place >= self._size:
      return len(self.ids)
    index = self._encoding.char_to_token(place)
    if index is not None:
      return index
    # No token has this character, which may be a blank.
    return next((i for i, (_, end) in enumerate(self._encoding.offsets)
                 if end > place), len(self.ids))

  def span(self, index: int) -> tuple[int, int]:
    """Returns where a token begins and ends in the text."""
    return self._encoding.token_to_chars(index)


def spans_of(tokenizer: tokenizer_lib.Tokenizer,
             texts: Sequence[str]) -> list[Spans]:
  """Returns texts as ids with their places."""
  return [Spans(encoding, len(text))
          for encoding, text in zip(tokenizer.encode_spans(texts), texts)]


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


def spec(*, tokenizer: str, length: int, vocabulary: Optional[int] = None,
         **options: Any) -> spec_lib.Spec:
  """Returns the Spec of such rows, given the options of their data set."""
  del options
  packing.check_options(length, 'right')
  return spec_lib.Spec(
      tokens_lib.columns(length),
      text_tokenizers.vocabulary_size(
          text_tokenizers.load(tokenizer), vocabulary))
