"""Which tokens of a tokenizer are special, by its files or by usual names."""

from collections.abc import Callable, Mapping
import reprlib
from typing import Any, NamedTuple, Optional

from haikd.core import checks

# The usual names of special tokens, for a tokenizer whose files don't say which
# is which.
_USUAL_NAMES: dict[str, tuple[str, ...]] = dict(
    bos=('<s>', '<|begin_of_text|>', '<bos>'),
    eos=('</s>', '<|endoftext|>', '<|end_of_text|>', '<eos>'),
    pad=('[PAD]', '<pad>', '<|finetune_right_pad_id|>'),
    unk=('[UNK]', '<unk>'),
    cls=('[CLS]',),
    sep=('[SEP]',),
    mask=('[MASK]', '<mask>'))


class Special(NamedTuple):
  """The ids of special tokens, None for those a tokenizer does not have.

  Attributes:
    bos: begins a text.
    eos: ends a text.
    pad: fills rows up.
    unk: replaces what is not in the vocabulary.
    cls: begins the input of an encoder.
    sep: ends each sentence in the input of an encoder.
    mask: replaces a token that an encoder must predict.
  """

  bos: Optional[int] = None
  eos: Optional[int] = None
  pad: Optional[int] = None
  unk: Optional[int] = None
  cls: Optional[int] = None
  sep: Optional[int] = None
  mask: Optional[int] = None


def find(config: Mapping[str, Any],
         id_of: Callable[[str], Optional[int]], source: str) -> Special:
  """Returns the special tokens, as a config or else usual names have them.

  Args:
    config: the content of `tokenizer_config.json`.
    id_of: returns the id of a token, None if there is no such token.
    source: the tokenizer's file, for messages.

  Raises:
    DataError: the config has something else than a token.
  """
  special = {}
  for role, names in _USUAL_NAMES.items():
    key = f'{role}_token'
    if key in config:
      token = config[key]
      if isinstance(token, Mapping):
        token = token.get('content', token)
      if not isinstance(token, str | None):
        raise checks.DataError(
            f'{key} beside {source} must be a text, or an object with its '
            f'content; got {reprlib.repr(token)}. Restore '
            'tokenizer_config.json.')
      names = () if token is None else (token,)
    ids = [id_of(name) for name in names]
    special[role] = next((i for i in ids if i is not None), None)
  return Special(**special)
