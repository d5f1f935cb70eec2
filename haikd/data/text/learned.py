"""Rows in which only some of the tokens are learned."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Protocol

import numpy as np

from haikd.data import spec as spec_lib
from haikd.data.text import byte_level
from haikd.data.text import packing
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.data.text import tokens as tokens_lib

_CONTEXT, _LEARNED = 1, 2  # The parts of a row.


class Spans(Protocol):
  """A text as token ids that know which part of it they stand for.

  Attributes:
    ids: int32 `[N]`, without the special tokens that the tokenizer adds.
  """

  ids: np.ndarray

  def first_beyond(self, place: int) -> int:
    """Returns the first token that has a character at or beyond a place.

    Args:
      place: the index of a character, or the length of the text.

    Returns:
      The index of a token, or the number of tokens.
    """

  def begins_before(self, index: int, place: int) -> bool:
    """Returns whether a token has a character before a place."""

  def after(self, index: int, place: int) -> str:
    """Returns the text between a token and a place."""


def spans_of(tokenizer: tokenizer_lib.Tokenizer,
             texts: Sequence[str]) -> list[Spans]:
  """Returns texts as ids with their places."""
  sizes = byte_level.sizes(tokenizer)
  if sizes is not None:
    # Without offsets, texts are tokenised in three quarters of the time.
    encoded = tokenizer.encode_batch(texts, special=False)
    spans = [_Bytes(each.ids, sizes, text)
             for each, text in zip(encoded, texts)]
    if all(each.is_exact for each in spans):
      return [*spans]
  return [_Characters(encoding, text)
          for encoding, text in zip(tokenizer.encode_spans(texts), texts)]


class _Characters:
  """Spans from the offsets of the package `tokenizers`.

  The tokens of one character, its bytes, all begin and end with it.
  """

  def __init__(self, encoding: Any, text: str):
    self.ids = np.array(encoding.ids, np.int32)
    self._encoding = encoding
    self._text = text

  def first_beyond(self, place: int) -> int:
    if place >= len(self._text):
      return len(self.ids)
    index = self._encoding.char_to_token(place)
    if index is not None:
      return index
    # No token has this character, which may be a blank.
    return next((i for i, (_, end) in enumerate(self._encoding.offsets)
                 if end > place), len(self.ids))

  def begins_before(self, index: int, place: int) -> bool:
    return self._encoding.token_to_chars(index)[0] < place

  def after(self, index: int, place: int) -> str:
    return self._text[self._encoding.token_to_chars(index)[1]:place]


class _Bytes:
  """Spans of tokens that are the bytes of a text.

  Attributes:
    is_exact: whether they are.
  """

  def __init__(self, ids: np.ndarray, sizes: np.ndarray, text: str):
    self.ids = ids
    self._text = text
    self._sizes = sizes[ids]
    self._ends = np.cumsum(self._sizes)
    size = len(text) if text.isascii() else len(text.encode())
    self.is_exact = self._sizes.sum() == size

  def first_beyond(self, place: int) -> int:
    return int(np.searchsorted(self._ends, self._byte(place), side='right'))

  def begins_before(self, index: int, place: int) -> bool:
    return bool(self._ends[index] - self._sizes[index] < self._byte(place))

  def after(self, index: int, place: int) -> str:
    content = self._text[:place].encode()
    return content[self._ends[index]:].decode(errors='replace')

  def _byte(self, place):
    """Returns the byte at which a character begins."""
    return place if self._text.isascii() else len(self._text[:place].encode())


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
