"""Tokenizers of pretrained models: from text to ids and back.

A thin wrapper of the package `tokenizers`, which is imported on first use.
"""

from collections.abc import Mapping, Sequence
import copy
import hashlib
import json
import os
import re
import threading
import types
from typing import Any, NamedTuple, Optional

import numpy as np

from haikd.core import checks
from haikd.data.text import special_tokens
from haikd.data.text import template_files
from haikd.data.text import tokenizer_calls
from haikd.data.text import tokenizer_gguf
from haikd.storage import files
from haikd.storage import paths

GGUF = 'gguf:'

_FILE, _CONFIG, _MAP = (
    'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json')


class EncodedText(NamedTuple):
  """A text, or a pair of texts, as token ids.

  Attributes:
    ids: int32 `[N]`.
    types: of a pair, int32 `[N]`, 1 in the second text and 0 elsewhere, or all
      0 if the tokenizer does not distinguish them; None for a single text.
  """

  ids: np.ndarray
  types: Optional[np.ndarray] = None


class Tokenizer:
  """A tokenizer with the truncation and padding of its file switched off.

  Attributes:
    definition: the content of `tokenizer.json`; don't modify it.
    config: the content of `tokenizer_config.json`; don't modify it.
    templates: chat templates in files of their own, by name; 'default' is that
      in `chat_template.jinja`. They replace those of the config.
    special: the ids of special tokens.
    size: the size of the vocabulary, one more than the largest id.
    digest: a hash of everything that ids and texts depend on.

  Args:
    definition: the content of `tokenizer.json`.
    config: the content of `tokenizer_config.json`.
    templates: chat templates in files of their own, by name.
    source: the file they come from, for messages.

  Raises:
    DataError: a definition that the package `tokenizers` refuses, or that
      package is not installed.
  """

  def __init__(self, definition: Mapping[str, Any],
               config: Optional[Mapping[str, Any]] = None, *,
               templates: Mapping[str, str] = types.MappingProxyType({}),
               source: str = 'tokenizer'):
    self.definition = {**definition, 'truncation': None, 'padding': None}
    self.config = dict(config or {})
    self.templates = dict(templates)
    self._tokenizer = tokenizer_calls.load(self.definition, source)
    self._source = source
    # Calls change settings of the package's object.
    self._lock = threading.Lock()
    self.special = special_tokens.find(self.config, self.id_of, source)
    self.size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
    self.digest = hashlib.sha256(
        json.dumps([self.definition, self.special], ensure_ascii=False,
                   sort_keys=True).encode('utf-8', 'surrogatepass')
    ).hexdigest()

  def encode_batch(self, texts: Sequence[str],
                   pairs: Optional[Sequence[str]] = None, *,
                   special: bool = True,
                   length: Optional[int] = None) -> list[EncodedText]:
    """Returns texts as ids.

    Args:
      texts: the texts to encode.
      pairs: the second text of each, which is joined with the first to one
        sequence.
      special: whether to add the special tokens that the model was trained
        with.
      length: the number of ids, special tokens included, to which texts are
        truncated; None for no limit.

    Returns:
      One EncodedText for each text.

    Raises:
      DataError: the package fails, or takes too long.
    """
    inputs = texts if pairs is None else list(zip(texts, pairs, strict=True))
    with self._lock:
      if length is None:
        self._tokenizer.no_truncation()
      else:
        self._tokenizer.enable_truncation(length)
      encoded = tokenizer_calls.limited(
          lambda: self._tokenizer.encode_batch_fast(
              inputs, add_special_tokens=special),
          sum(map(len, (*texts, *(pairs or ())))), self._source)
    if pairs is None:
      return [EncodedText(np.array(e.ids, np.int32)) for e in encoded]
    return [EncodedText(np.array(e.ids, np.int32),
                        np.array(e.type_ids, np.int32)) for e in encoded]

  def encode_spans(self, texts: Sequence[str]) -> list[Any]:
    """Returns texts as the package's `Encoding`s, without special tokens.

    Slower than `encode_batch`, but with the offsets and the word of each token.

    Raises:
      DataError: as `encode_batch`.
    """
    with self._lock:
      self._tokenizer.no_truncation()
      processor = self._tokenizer.post_processor
      # Some processors cut blanks off the offsets.
      self._tokenizer.post_processor = None
      try:
        return tokenizer_calls.limited(
            lambda: self._tokenizer.encode_batch(
                texts, add_special_tokens=False),
            sum(map(len, texts)), self._source)
      finally:
        self._tokenizer.post_processor = processor

  def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
    """Returns the text of ids.

    Args:
      ids: `[N]` integers.
      skip_special: whether to leave special tokens out.
    """
    return self._tokenizer.decode([int(i) for i in ids],
                                  skip_special_tokens=skip_special)

  def id_of(self, token: str) -> Optional[int]:
    """Returns the id of a token, None if there is no such token."""
    try:
      return self._tokenizer.token_to_id(token)
    except UnicodeEncodeError:  # JSON can write half a character.
      return None

  def token_of(self, index: int) -> Optional[str]:
    """Returns the token with an id, None if there is no such id."""
    return self._tokenizer.id_to_token(int(index))

  def canonical(self) -> dict[str, Any]:
    """Returns the definition as the package writes it, complete.

    Older notation and missing fields of a file are replaced by what the package
    reads them as.
    """
    with self._lock:
      self._tokenizer.no_truncation()
      return json.loads(self._tokenizer.to_str())

  def with_template(self, template: str) -> 'Tokenizer':
    """Returns this tokenizer with a chat template in place of all its own."""
    changed = copy.copy(self)
    changed.templates = {template_files.DEFAULT: template}
    changed.config = {key: value for key, value in self.config.items()
                      if key != 'chat_template'}
    return changed

  def save(self, folder: paths.Path) -> None:
    """Writes the files that `load` and transformers read.

    Args:
      folder: the folder, local or in a bucket; created if it is missing.

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
    template_files.write(folder, self.templates)
    files.replace(
        folder / _FILE, json.dumps(self.definition, ensure_ascii=False) + '\n')


def load(path: str) -> Tokenizer:
  """Loads the tokenizer of a pretrained model.

  Truncation and padding of the file are ignored: data sets choose theirs.

  Args:
    path: a folder of Hugging Face with `tokenizer.json`, such a file, or
      'gguf:<file>', whose tokenizer must be byte-level BPE. The special tokens
      are read from `tokenizer_config.json` and `special_tokens_map.json` in the
      same folder; without them, they are recognised by their usual names.

  Returns:
    A Tokenizer.

  Raises:
    DataError: a path that is missing or holds no such tokenizer, or a package
      that is not installed.
  """
  if path.startswith(GGUF):
    definition, config = tokenizer_gguf.read(path.removeprefix(GGUF))
    return Tokenizer(definition, config, source=path)
  file = paths.as_path(os.path.expanduser(path))
  if not file.name.endswith('.json'):
    file = file / _FILE
  folder = file.parent
  if not paths.exists(file):
    raise checks.DataError(
        f'A tokenizer must be a folder with {_FILE}, or that file; got '
        f'{str(folder)!r}, {_describe_missing(folder)}')
  config = _json_object(folder / _CONFIG)
  special = _json_object(folder / _MAP)
  return Tokenizer(
      _json_object(file), {**special, **config},
      templates=template_files.read(folder, config), source=repr(str(file)))


def _json_object(path):
  """Returns the JSON object of a file; an empty one if it is missing."""
  if not paths.exists(path):
    return {}
  value = files.read_json(path)
  if not isinstance(value, dict):
    raise checks.DataError(
        f'{str(path)!r} must hold a JSON object; got {type(value).__name__}. '
        'Restore the file.')
  return value


def _describe_missing(folder):
  """Returns an error's end: why tokenizer.json is missing, and a remedy."""
  names = paths.names(folder)
  # Formats that only transformers' tokenizers in Python read.
  slow = [name for name in names
          if name in ('vocab.txt', 'merges.txt') or name.endswith('.model')]
  if slow:
    return (f'which has only {slow[0]}. Convert it where transformers is '
            f'installed: `AutoTokenizer.from_pretrained({str(folder)!r})'
            f'.save_pretrained({str(folder)!r})`.')
  if names:
    return f'which has no {_FILE}. Fetch it from where the model comes from.'
  remedy = 'Correct config.data.options.tokenizer.'
  if re.fullmatch(r'[\w-]+/[\w.-]+', str(folder)):
    remedy = (f'haikd fetches nothing: run `hf download {folder} --local-dir '
              f'{folder}`, or correct config.data.options.tokenizer.')
  return f'which is missing or empty. {remedy}'
