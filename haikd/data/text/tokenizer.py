"""Tokenizers of pretrained models: from text to ids and back.

A thin coat over the package `tokenizers`, which is imported when one is loaded.
"""

from collections.abc import Mapping, Sequence
import hashlib
import json
import os
from typing import Any, NamedTuple, Optional

import numpy as np

from haikd.core import checks
from haikd.data.text import tokenizer_gguf
from haikd.storage import files
from haikd.storage import paths

GGUF = 'gguf:'

_FILE, _CONFIG, _MAP, _TEMPLATE = (
    'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json',
    'chat_template.jinja')

# What special tokens are called where no file says which is which.
_KNOWN = dict(
    bos=('<s>', '<|begin_of_text|>', '<bos>'),
    eos=('</s>', '<|endoftext|>', '<|end_of_text|>', '<eos>'),
    pad=('[PAD]', '<pad>', '<|finetune_right_pad_id|>'),
    unk=('[UNK]', '<unk>'),
    cls=('[CLS]',),
    sep=('[SEP]',),
    mask=('[MASK]', '<mask>'))


class Special(NamedTuple):
  """The ids of special tokens, None for what a tokenizer does not have.

  Attributes:
    bos: begins a text.
    eos: ends a text.
    pad: fills up.
    unk: stands for what is not in the vocabulary.
    cls: begins what an encoder reads.
    sep: ends each sentence that an encoder reads.
    mask: stands for what an encoder is to guess.
  """

  bos: Optional[int] = None
  eos: Optional[int] = None
  pad: Optional[int] = None
  unk: Optional[int] = None
  cls: Optional[int] = None
  sep: Optional[int] = None
  mask: Optional[int] = None


class Encoded(NamedTuple):
  """A text, or two, as a model takes it.

  Attributes:
    ids: int32 `[N]`.
    types: of two texts, int32 `[N]`, 1 in the second and 0 elsewhere, where the
      tokenizer says so; None of one.
  """

  ids: np.ndarray
  types: Optional[np.ndarray] = None


class Tokenizer:
  """A tokenizer without truncation and padding of its own.

  Attributes:
    definition: what `tokenizer.json` holds; not to be changed.
    config: what `tokenizer_config.json` holds; not to be changed.
    template: what `chat_template.jinja` holds, which is only kept; or None.
    special: the ids of special tokens.
    size: the size of the vocabulary, one more than the largest id.
    digest: a hash of all that texts and ids depend on.

  Args:
    definition: what `tokenizer.json` holds.
    config: what `tokenizer_config.json` holds.
    template: what `chat_template.jinja` holds, or None.
    source: where they are from, for messages.

  Raises:
    DataError: a definition that the package `tokenizers` refuses, or that
      package is not installed.
  """

  def __init__(self, definition: Mapping[str, Any],
               config: Optional[Mapping[str, Any]] = None, *,
               template: Optional[str] = None, source: str = 'tokenizer'):
    self.definition = {**definition, 'truncation': None, 'padding': None}
    self.config = dict(config or {})
    self.template = template
    text = json.dumps(self.definition, ensure_ascii=False)
    try:
      import tokenizers
    except ImportError as err:
      raise checks.DataError(
          'tokenizer.load: tokenizers must be installed; got '
          f"{checks.one_line(err)}. Run `pip install 'haikd[text]'`.") from err
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as err:  # The package has no other.
      raise checks.DataError(
          f'tokenizer.load: {source} must hold a tokenizer that the package '
          f'tokenizers reads; got {checks.one_line(err)}. Update the package, '
          'or restore the file.') from err
    self.special = self._find_special()
    self.size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
    self.digest = hashlib.sha256(
        files.encode([self.definition, self.special],
                     sort_keys=True).encode('utf-8', 'surrogatepass')
    ).hexdigest()

  def encode_batch(self, texts: Sequence[str],
                   pairs: Optional[Sequence[str]] = None, *,
                   special: bool = True,
                   length: Optional[int] = None) -> list[Encoded]:
    """Returns texts as ids.

    Args:
      texts: what to encode.
      pairs: the second sentence of each, to make one sequence with the first.
      special: whether special tokens are put around them, as the model was
        trained with.
      length: the largest number of ids, at which texts are cut, special tokens
        included; None for no limit.

    Returns:
      One Encoded a text.
    """
    if length is None:
      self._tokenizer.no_truncation()
    else:
      self._tokenizer.enable_truncation(length)
    given = texts if pairs is None else list(zip(texts, pairs, strict=True))
    encoded = self._tokenizer.encode_batch_fast(
        given, add_special_tokens=special)
    if pairs is None:
      return [Encoded(np.array(e.ids, np.int32)) for e in encoded]
    return [Encoded(np.array(e.ids, np.int32), np.array(e.type_ids, np.int32))
            for e in encoded]

  def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
    """Returns the text that ids stand for.

    Args:
      ids: `[N]` integers.
      skip_special: whether to leave special tokens out.
    """
    return self._tokenizer.decode([int(i) for i in ids],
                                  skip_special_tokens=skip_special)

  def id_of(self, token: str) -> Optional[int]:
    """Returns the id of a token, None if there is no such token."""
    return self._tokenizer.token_to_id(token)

  def token_of(self, index: int) -> Optional[str]:
    """Returns the token with an id, None if there is no such id."""
    return self._tokenizer.id_to_token(int(index))

  def canonical(self) -> dict[str, Any]:
    """Returns the definition as the package writes it, with nothing left out.

    What a file says in an older way, or does not say, is in it as the package
    understands it.
    """
    self._tokenizer.no_truncation()
    return json.loads(self._tokenizer.to_str())

  def save(self, folder: paths.Path) -> None:
    """Writes the files that `load` and transformers read.

    Args:
      folder: made if need be; local or in a bucket.

    Raises:
      OSError: it cannot be written.
    """
    paths.make_folder(folder)
    folder = paths.as_path(folder)
    special = {
        f'{role}_token': self.token_of(index)
        for role, index in self.special._asdict().items() if index is not None
    }
    files.write_json(folder / _MAP, special)
    files.write_json(folder / _CONFIG, {**self.config, **special})
    if self.template is not None:
      files.replace(folder / _TEMPLATE, self.template)
    files.replace(folder / _FILE, files.encode(self.definition) + '\n')

  def _find_special(self):
    found = {}
    for role, known in _KNOWN.items():
      key = f'{role}_token'
      if key in self.config:
        token = self.config[key]
        known = (token['content'] if isinstance(token, Mapping) else token,)
      ids = [self.id_of(token) for token in known if token is not None]
      found[role] = next((i for i in ids if i is not None), None)
    return Special(**found)


def load(path: str) -> Tokenizer:
  """Loads the tokenizer of a pretrained model.

  Truncation and padding that a file asks for are left out: data sets set their
  own.

  Args:
    path: a folder of Hugging Face with `tokenizer.json`, such a file, or
      'gguf:<file>', whose tokenizer has to be byte-level BPE. Which tokens are
      special is read from `tokenizer_config.json` and `special_tokens_map.json`
      in the same folder; without them, they go by their usual names.

  Returns:
    A Tokenizer.

  Raises:
    DataError: a path that is not there or holds no such tokenizer, or a package
      that is not installed.
  """
  if path.startswith(GGUF):
    definition, config = tokenizer_gguf.read(path.removeprefix(GGUF))
    return Tokenizer(definition, config, source=path)
  path = paths.as_path(os.path.expanduser(path))
  if not path.name.endswith('.json'):
    path = path / _FILE
  if not paths.exists(path):
    raise checks.DataError(
        f'tokenizer.load: path must be a folder with {_FILE}, or that file; got'
        f' {str(path.parent)!r}, which {_what_is_there(path.parent)}')
  folder = path.parent
  config = _json_object(folder / _CONFIG)
  special = _json_object(folder / _MAP)
  return Tokenizer(
      _json_object(path), {**special, **config},
      template=_read_template(folder / _TEMPLATE), source=repr(str(path)))


def _read_template(path):
  """Returns what a file holds; None if it is not there."""
  if not paths.exists(path):
    return None
  try:
    return paths.read(path).decode()
  except (OSError, UnicodeDecodeError) as err:
    raise checks.DataError(
        f'tokenizer.load: {str(path)!r} must be UTF-8; got '
        f'{checks.one_line(err)}. Restore the file.') from err


def _json_object(path):
  """Returns what a file holds; nothing if it is not there."""
  if not paths.exists(path):
    return {}
  value = files.read_json(path)
  if not isinstance(value, dict):
    raise checks.DataError(
        f'tokenizer.load: {str(path)!r} must hold a JSON object; got '
        f'{type(value).__name__}. Restore the file.')
  return value


def _what_is_there(folder):
  names = paths.names(folder)
  slow = [name for name in names
          if name == 'vocab.txt' or name.endswith('.model')]
  if slow:
    return (f'has {slow[0]} only. Make the other of it, where transformers is '
            f'installed: `AutoTokenizer.from_pretrained({str(folder)!r})'
            f'.save_pretrained({str(folder)!r})`.')
  if names:
    return 'has none. Fetch it from where the model is from.'
  return 'is not there or empty. Correct config.data.options.tokenizer.'
