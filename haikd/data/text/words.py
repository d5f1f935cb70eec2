"""Which word of its text each token belongs to."""

from collections.abc import Sequence
import itertools
from typing import Any

import numpy as np

_flatten = itertools.chain.from_iterable

# White space, as `str.isspace` has it, as ranges of code points.
_SPACES = ((0x09, 0x0d), (0x1c, 0x20), (0x85, 0x85), (0xa0, 0xa0),
           (0x1680, 0x1680), (0x2000, 0x200a), (0x2028, 0x2029),
           (0x202f, 0x202f), (0x205f, 0x205f), (0x3000, 0x3000))
# Scripts that put no space between words.
_UNSPACED = (
    (0x0e00, 0x0eff),  # Thai, Lao.
    (0x1000, 0x109f),  # Burmese.
    (0x1780, 0x17ff),  # Khmer.
    (0x3040, 0x30ff),  # Hiragana, Katakana.
    (0x3400, 0x4dbf),  # Chinese characters, in four blocks.
    (0x4e00, 0x9fff),
    (0xf900, 0xfaff),
    (0x20000, 0x3ffff),
)


def number_words(texts: Sequence[str],
                 encodings: Sequence[Any]) -> list[np.ndarray]:
  """Numbers the words of texts.

  A word is what the tokenizer's pre-tokenizer cuts out, such as a run of
  letters or a punctuation mark. Tokenizers of SentencePiece may cut out the
  whole text: a word then also ends at white space. In scripts without spaces
  between words, each token is a word, unless a character has several tokens.

  Args:
    texts: the texts.
    encodings: of each, from `Tokenizer.encode_spans`.

  Returns:
    For each text int32 `[N]`, which does not decrease, and is the same for all
    tokens of a word and different for any others.
  """
  counts = list(map(len, encodings))
  ends, total = np.cumsum(counts), sum(counts)
  if not total:
    return [np.zeros(0, np.int32) for _ in texts]
  characters = np.frombuffer(
      ''.join(texts).encode('utf-32-le', 'surrogatepass'), np.uint32)
  offsets = np.cumsum([0, *map(len, texts)])[:-1]
  spans = _flatten(_flatten(each.offsets for each in encodings))
  start, end = np.repeat(offsets, counts) + np.fromiter(
      spans, int, 2 * total).reshape(-1, 2).T
  pre_token = np.fromiter(
      (-1 if word is None else word
       for word in _flatten(each.word_ids for each in encodings)), int, total)
  begins = pre_token[1:] != pre_token[:-1]
  begins |= _between_words(characters, start, end)
  begins[[end - 1 for end in ends if 0 < end < len(start)]] = True
  words = np.concatenate([[1], 1 + np.cumsum(begins)]).astype(np.int32)
  return np.split(words, ends[:-1])


def _between_words(characters, start, end):
  """Returns whether the text shows a boundary before each token but the first.

  Args:
    characters: code points.
    start: `[N]`, where each token begins in them.
    end: `[N]`, where it ends.
  """
  is_space = _are_in(characters, _SPACES)
  is_unspaced = _are_in(characters, _UNSPACED)
  spaces_before = np.concatenate([[0], np.cumsum(is_space)])
  only_spaces = (spaces_before[end] - spaces_before[start] == end - start)[:-1]
  limit = len(characters) - 1
  first = np.minimum(start[1:], limit)
  last = np.clip(end[:-1] - 1, 0, limit)
  gap = spaces_before[np.maximum(start[1:], end[:-1])] - spaces_before[end[:-1]]
  at_space = is_space[first] | (gap > 0) | (is_space[last] & ~only_spaces)
  # Tokens that are bytes of one character overlap.
  is_whole = start[1:] >= end[:-1]
  return at_space | (is_whole & (is_unspaced[first] | is_unspaced[last]))


def _are_in(characters, ranges):
  inside = [(first <= characters) & (characters <= last)
            for first, last in ranges]
  return np.logical_or.reduce(inside)


def cut(words: np.ndarray, length: int) -> list[slice]:
  """Cuts a text into parts of at most `length` tokens, between words.

  Args:
    words: of the text, as `number_words` returns them.
    length: the most tokens of a part. A word that is longer is cut.

  Returns:
    The parts, in order.
  """
  parts, start = [], 0
  while start < len(words):
    end = min(start + length, len(words))
    if end < len(words) and words[end] == words[end - 1]:
      begin = int(np.searchsorted(words, words[end]))
      end = begin if begin > start else end
    parts.append(slice(start, end))
    start = end
  return parts
