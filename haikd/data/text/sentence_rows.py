"""Sentences, or pairs of them, as rows: what all their data sets share."""

from collections import Counter
from collections.abc import Iterator, Sequence
import operator
from typing import Any, NamedTuple, Optional

import numpy as np

from haikd.data.text import affixes
from haikd.data.text import packing
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib

_HELD = 'held'  # Counts the texts that hold their special tokens already.


class SentenceRow(NamedTuple):
  """One row.

  Attributes:
    tokens: int32 `[N]`.
    types: of a pair, int32 `[N]`, 1 in its second sentence; None for a single
      sentence.
    mask: bool `[N]`, true where a token is real.
  """

  tokens: np.ndarray
  types: Optional[np.ndarray]
  mask: np.ndarray


class SentenceEncoder(NamedTuple):
  """How sentences become rows.

  Attributes:
    tokenizer: the tokenizer of the data.
    length: N.
    padding: the side of the padding, 'right' or 'left'.
  """

  tokenizer: tokenizer_lib.Tokenizer
  length: int
  padding: str

  def options(self) -> dict[str, Any]:
    """Returns what rows depend on, besides texts and tokenizer."""
    return dict(length=self.length, padding=self.padding)

  def encode(self, texts: Sequence[str], counts: Counter,
             seconds: Optional[Sequence[str]] = None
             ) -> Iterator[SentenceRow]:
    """Yields each text, or pair of texts, as a row of `length` tokens.

    Longer ones are truncated, shorter ones padded. Special tokens that a text
    holds already are not added again.

    Args:
      texts: the texts to encode.
      counts: its `tokens` increases by the number of tokens, and its `held` by
        that of texts with special tokens.
      seconds: the second sentence of each, or None.
    """
    texts = self.strip(texts, counts)
    seconds = None if seconds is None else self.strip(seconds, counts)
    pad = text_tokenizers.pad_id(self.tokenizer)
    for encoded in self.tokenizer.encode_batch(texts, seconds,
                                               length=self.length):
      counts['tokens'] += len(encoded.ids)
      types, room = encoded.types, self.length - len(encoded.ids)
      sides = (room, 0) if self.padding == 'left' else (0, room)
      yield SentenceRow(
          np.pad(encoded.ids, sides, constant_values=pad),
          None if types is None else np.pad(types, sides),
          np.pad(np.ones(len(encoded.ids), bool), sides))

  def full_ids(self, texts: Sequence[str],
               seconds: Optional[Sequence[str]] = None
               ) -> Iterator[np.ndarray]:
    """Yields the ids of each text, or pair of texts, without truncation.

    Special tokens that a text holds already are not added again.

    Args:
      texts: the texts to encode.
      seconds: the second sentence of each, or None.
    """
    texts = affixes.strip(self.tokenizer, texts)
    if seconds is not None:
      seconds = affixes.strip(self.tokenizer, seconds)
    for encoded in self.tokenizer.encode_batch(texts, seconds):
      yield encoded.ids

  def notices(self) -> dict[str, str]:
    """Returns what to say about the statistics, as `shards.Recipe` has it."""
    return {_HELD: 'texts hold special tokens that the tokenizer adds, and do '
                   'not get them again.'}

  def strip(self, texts: Sequence[str], counts: Counter) -> list[str]:
    """Returns texts without the special tokens that they hold already.

    Args:
      texts: the texts.
      counts: its `held` increases by the number of texts that hold some.
    """
    stripped = affixes.strip(self.tokenizer, texts)
    counts[_HELD] += sum(map(operator.ne, texts, stripped))
    return stripped

  def check_options(self) -> None:
    """Raises ConfigError for rows without room for a token."""
    special = self.tokenizer.encode_batch([''], [''])[0].ids
    packing.check_options(self.length, self.padding,
                          min_length=len(special) + 1)
