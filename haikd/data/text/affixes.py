"""The special tokens that a tokenizer itself puts around a text."""

from collections.abc import Iterator, Sequence
import itertools
from typing import NamedTuple

import numpy as np

from haikd.core import checks
from haikd.data.text import tokenizer as tokenizer_lib

_PROBE = 'a'  # In most vocabularies.


class Affixes(NamedTuple):
  """What a tokenizer adds.

  Attributes:
    before: int32 `[n]`, the ids before a text.
    after: int32 `[m]`, the ids after it.
  """

  before: np.ndarray
  after: np.ndarray


def of(tokenizer: tokenizer_lib.Tokenizer) -> Affixes:
  """Returns the special tokens that a tokenizer adds to every text.

  Raises:
    DataError: a tokenizer that has only tokens which it adds.
  """
  framed, bare = _encode(tokenizer, probe(tokenizer))
  start, = _places(bare, framed)
  return Affixes(framed[:start], framed[start + len(bare):])


def probe(tokenizer: tokenizer_lib.Tokenizer) -> str:
  """Returns a text whose tokens differ from those that are added to it.

  Args:
    tokenizer: any tokenizer, such as one of bases or of amino acids.

  Raises:
    DataError: there is none.
  """
  tokens = (tokenizer.decode([i]) for i in range(tokenizer.size))
  for text in itertools.chain([_PROBE], tokens):
    framed, bare = _encode(tokenizer, text)
    if len(bare) and len(_places(bare, framed)) == 1:
      return text
  raise checks.DataError(
      'config.data.options.tokenizer must have a token besides those that it '
      f'adds to texts; got {tokenizer.size} tokens. Choose another tokenizer.')


def _encode(tokenizer, text):
  """Returns the ids of a text with and without special tokens."""
  return [tokenizer.encode_batch([text], special=special)[0].ids
          for special in (True, False)]


def _places(part, ids):
  """Returns where a part begins in ids."""
  return [i for i in range(len(ids) - len(part) + 1)
          if np.array_equal(ids[i:i + len(part)], part)]


def agree(first: tokenizer_lib.Tokenizer,
          second: tokenizer_lib.Tokenizer) -> bool:
  """Returns whether two tokenizers add the same to texts and pairs of texts.

  Args:
    first: a tokenizer.
    second: another one, with the same ids.
  """
  return _added(first) == _added(second)


def _added(tokenizer):
  """Returns what is added to a text and to a pair, with its types."""
  pair = tokenizer.encode_batch([''], [''])[0]
  return [part.tolist() for part in (*of(tokenizer), pair.ids, pair.types)]


def strip(tokenizer: tokenizer_lib.Tokenizer,
          texts: Sequence[str]) -> list[str]:
  """Returns texts without the special tokens that the tokenizer adds.

  Args:
    tokenizer: the tokenizer of the texts.
    texts: texts, some of which may hold these tokens where they are added.
  """
  before, after = (''.join(str(tokenizer.token_of(i)) for i in ids)
                   for ids in of(tokenizer))
  return [text.removeprefix(before).removesuffix(after) for text in texts]


def contradictions(tokenizer: tokenizer_lib.Tokenizer) -> Iterator[str]:
  """Yields what tokenizer_config.json says against tokenizer.json.

  `add_bos_token` and `add_eos_token` are followed by transformers 4. Version 5
  drops them wherever there is a tokenizer.json, and so does haikd.

  Args:
    tokenizer: a loaded tokenizer.

  Yields:
    A sentence for each field.
  """
  for role in ('bos', 'eos'):
    field = f'add_{role}_token'
    stated = tokenizer.config.get(field)
    index = getattr(tokenizer.special, role)
    if index is None or not isinstance(stated, bool):
      continue
    before, after = of(tokenizer)
    adds = index in (before[:1] if role == 'bos' else after[-1:])
    if stated != adds:
      token = tokenizer.token_of(index)
      remedy = ('config.data.options.add_special_tokens=False leaves it out'
                if adds else f'config.data.options.{role}={token!r} adds it')
      yield (
          f'{field}={stated} in tokenizer_config.json contradicts '
          f'tokenizer.json, which {"adds" if adds else "does not add"} '
          f'{token!r}. tokenizer.json counts, as in transformers 5; '
          f'transformers 4 follows the field. For `text` and `completions`, '
          f'{remedy}.')
