"""What all data sets of sentences do: one row a sentence, or a pair of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np

from haikd.data.text import packing
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib


class Encoded(NamedTuple):
  """One row.

  Attributes:
    tokens: int32 `[N]`.
    types: of a pair, int32 `[N]`, 1 in its second sentence; None of a sentence.
    mask: bool `[N]`, true where a token is real.
  """

  tokens: np.ndarray
  types: Optional[np.ndarray]
  mask: np.ndarray


class Encoder(NamedTuple):
  """How sentences become rows.

  Attributes:
    tokenizer: of the encoder.
    length: N.
    padding: on which side rows are filled up, 'right' or 'left'.
  """

  tokenizer: tokenizer_lib.Tokenizer
  length: int
  padding: str

  def options(self) -> dict[str, Any]:
    """Returns what rows depend on, beside texts and tokenizer."""
    return dict(length=self.length, padding=self.padding)

  def encode(self, texts: Sequence[str], counts: Counter,
             pairs: Optional[Sequence[str]] = None) -> Iterator[Encoded]:
    """Yields each text, or pair of texts, as a row.

    Args:
      texts: what to encode.
      counts: to whose `tokens` theirs are added.
      pairs: the second sentence of each, or None.
    """
    pad = text_tokenizers.filler(self.tokenizer)
    for encoded in self.tokenizer.encode_batch(texts, pairs,
                                               length=self.length):
      counts['tokens'] += len(encoded.ids)
      types, room = encoded.types, self.length - len(encoded.ids)
      sides = (room, 0) if self.padding == 'left' else (0, room)
      yield Encoded(
          np.pad(encoded.ids, sides, constant_values=pad),
          None if types is None else np.pad(types, sides),
          np.pad(np.ones(len(encoded.ids), bool), sides))

  def uncut(self, texts: Sequence[str],
            pairs: Optional[Sequence[str]] = None) -> Iterator[np.ndarray]:
    """Yields the ids of each text, or pair of texts, however many there are."""
    for encoded in self.tokenizer.encode_batch(texts, pairs):
      yield encoded.ids

  def check(self, where: str) -> None:
    """Raises ConfigError for rows without room for a token."""
    special = self.tokenizer.encode_batch([''], [''])[0].ids
    packing.check(where, self.length, self.padding, least=len(special) + 1)
