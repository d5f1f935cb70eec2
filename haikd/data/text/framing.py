"""Which special tokens stand around the texts of a data set."""

from collections import Counter
import difflib
from typing import NamedTuple, Optional

import numpy as np

from haikd.core import checks
from haikd.data.text import affixes
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib

HELD = 'held'  # Counts the texts that hold their special tokens already.

_OPTIONS = 'config.data.options'


class Choice(NamedTuple):
  """The options of a data set that are about special tokens.

  Attributes:
    eos: the token that ends a text; None for the tokenizer's.
    bos: the token that begins a text; None for what the tokenizer adds.
    pad: the token that fills rows up; None for the tokenizer's.
    add_special_tokens: whether a text gets the special tokens that the
      tokenizer adds; None for yes, unless it holds them already.
  """

  eos: Optional[str] = None
  bos: Optional[str] = None
  pad: Optional[str] = None
  add_special_tokens: Optional[bool] = None


class Frame(NamedTuple):
  """The special tokens around a text.

  Attributes:
    before: int32 `[n]`, what begins a text.
    after: int32 `[m]`, what ends a text.
    pad: the token that fills rows up; the mask hides it.
    adds_after: whether the tokenizer adds some of `after`.
    always: whether a text gets what it holds already.
    tokens: `before` and `after` as text, for messages.
  """

  before: np.ndarray
  after: np.ndarray
  pad: int
  adds_after: bool
  always: bool
  tokens: str

  @property
  def end(self) -> int:
    """The token that ends a text."""
    return int(self.after[-1])

  def missing_before(self, ids: np.ndarray) -> np.ndarray:
    """Returns what to put before a text, given its ids."""
    return self.before[:0] if self._is_opened(ids) else self.before

  def missing_after(self, ids: np.ndarray) -> np.ndarray:
    """Returns what to put after a text, given its ids."""
    return self.after[self._held_after(ids):]

  def count_held(self, ids: np.ndarray, counts: Counter) -> None:
    """Counts a text in HELD if it does not get what the tokenizer adds.

    A text that ends with its last token, where the tokenizer adds none, is not
    counted.

    Args:
      ids: the text as ids.
      counts: the statistics of the data set.
    """
    counts[HELD] += bool(self._is_opened(ids) or
                         self.adds_after and self._held_after(ids))

  def notices(self) -> dict[str, str]:
    """Returns what to say about the statistics, as `shards.Recipe` has it."""
    return {
        HELD: f'texts hold special tokens that texts get ({self.tokens}), and '
              f'do not get them again. {_OPTIONS}.add_special_tokens=True adds '
              'them all the same.'
    }

  def _is_opened(self, ids):
    size = len(self.before)
    return bool(not self.always and size and _same(ids[:size], self.before))

  def _held_after(self, ids):
    """Returns how many tokens of `after` a text ends with."""
    if self.always and self.adds_after:
      return 0
    for size in range(min(len(self.after), len(ids)), 0, -1):
      if _same(ids[-size:], self.after[:size]):
        return size
    return 0


def build(tokenizer: tokenizer_lib.Tokenizer, choice: Choice) -> Frame:
  """Returns the special tokens of a data set.

  Args:
    tokenizer: its tokenizer.
    choice: its options.

  Raises:
    ConfigError: options that contradict one another, or that name a token which
      the tokenizer does not have.
    DataError: nothing says what ends a text.
  """
  adds = choice.add_special_tokens
  if choice.bos is not None and adds is False:
    raise checks.ConfigError(
        f'{_OPTIONS}.add_special_tokens must be None or True with a bos; got '
        f'False, bos={choice.bos!r}. Leave one of the two out.')
  before, after = affixes.of(tokenizer)
  if choice.bos is not None:
    before = _one(token_id(tokenizer, 'bos', choice.bos))
  elif adds is False:
    before = before[:0]
  if choice.eos is not None or adds is False:
    after = after[:0]
  end = end_id(tokenizer, choice.eos)
  adds_after = len(after) > 0
  if not adds_after or after[-1] != end:
    after = np.append(after, _one(end))
  pad = (text_tokenizers.pad_id(tokenizer) if choice.pad is None else
         token_id(tokenizer, 'pad', choice.pad))
  tokens = [tokenizer.token_of(i) for i in (*before, *after)]
  return Frame(before, after, pad, adds_after, adds is True,
               ', '.join(map(repr, tokens)))


def end_id(tokenizer: tokenizer_lib.Tokenizer, eos: Optional[str]) -> int:
  """Returns the token that ends a text.

  Args:
    tokenizer: the tokenizer of the data.
    eos: the option of that name.

  Raises:
    ConfigError: the tokenizer does not have the token `eos`.
    DataError: `eos` is None, and the tokenizer says nothing.
  """
  if eos is not None:
    return token_id(tokenizer, 'eos', eos)
  special = tokenizer.special
  end = special.sep if special.eos is None else special.eos
  if end is None:
    raise checks.DataError(
        'config.data.options.tokenizer must have a token that ends texts; got '
        f'{special}. Name one in {_OPTIONS}.eos.')
  return end


def token_id(tokenizer: tokenizer_lib.Tokenizer, option: str,
             token: str) -> int:
  """Returns the id of the token that an option names.

  Args:
    tokenizer: the tokenizer of the data.
    option: the name of the option.
    token: its value.

  Raises:
    ConfigError: the tokenizer does not have the token.
  """
  index = tokenizer.id_of(token)
  if index is None:
    special = [tokenizer.token_of(i) for i in tokenizer.special
               if i is not None]
    added = [each['content']
             for each in tokenizer.definition.get('added_tokens', ())]
    known = {str(each)
             for each in (*special, *difflib.get_close_matches(token, added))}
    raise checks.ConfigError(
        f'{_OPTIONS}.{option} must be a token of the tokenizer; got {token!r}. '
        f'{checks.suggest(token, known)}')
  return index


def _same(some, others):
  return some.tolist() == others.tolist()  # Few: a tenth of array_equal's time.


def _one(index):
  return np.array([index], np.int32)
