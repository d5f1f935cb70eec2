"""The tokenizer of a data set: loaded once, and saved beside the data."""

from collections.abc import Iterator, Mapping
import contextlib
import functools
import hashlib
import pathlib
from typing import Any, Optional

import numpy as np

from haikd.core import checks
from haikd.data import source
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.storage import paths


def load(path: str) -> tokenizer_lib.Tokenizer:
  """Loads a tokenizer, once for all splits of a run.

  Args:
    path: as for `haikd.data.text.tokenizer.load`.

  Returns:
    A Tokenizer.

  Raises:
    DataError: as `haikd.data.text.tokenizer.load`.
  """
  file = pathlib.Path(path.removeprefix(tokenizer_lib.GGUF)).expanduser()
  inside = sorted(path for glob in ('*.json', '*.jinja', '*/*.jinja')
                  for path in file.glob(glob))
  stamps = [(p.name, p.stat().st_size, p.stat().st_mtime_ns)
            for p in (file, *inside) if p.exists()]
  return _load(path, tuple(stamps))


@functools.lru_cache(maxsize=4)  # Teacher, student and data may have their own.
def _load(path, stamps):
  del stamps  # In the cache's key, so that a changed file is loaded again.
  return tokenizer_lib.load(path)


def root(data_dir: Optional[str]) -> pathlib.Path:
  """Returns the folder of everything that is prepared from texts.

  Args:
    data_dir: the folder of prepared files; None for that of tfds.

  Raises:
    DataError: it is in a bucket.
  """
  if data_dir is None:
    from tensorflow_datasets.core import constants
    data_dir = constants.DATA_DIR
  if paths.is_remote(data_dir):
    raise checks.DataError(
        'config.data.data_dir must be a local folder for texts; got '
        f'{data_dir!r}. Set config.data.data_dir to a folder that all '
        'processes see, or to one on each machine.')
  return pathlib.Path(data_dir).expanduser() / 'haikd_text'


def save_beside_data(
    tokenizer: tokenizer_lib.Tokenizer, data_dir: Optional[str],
    kept_ids: Optional[np.ndarray] = None,
    ends: tuple[int, ...] = ()) -> source.TextInfo:
  """Writes a tokenizer beside the data that is prepared with it.

  Args:
    tokenizer: the tokenizer of the data, pruned or not.
    data_dir: the folder of prepared files, as for `root`.
    kept_ids: int32 `[V]`, for each id of `tokenizer` its id in the tokenizer
      that it was pruned from; None if it is not pruned.
    ends: the ids of the tokens that end a text.

  Returns:
    Where it is.

  Raises:
    DataError: it cannot be written.
  """
  content = f'{tokenizer.digest} {tokenizer.config}'
  for name, template in sorted(tokenizer.templates.items()):
    content += f' {name} {template}'
  folder = root(data_dir) / 'tokenizers' / hashlib.sha256(
      content.encode()).hexdigest()[:16]
  if not (folder / 'tokenizer.json').exists():  # Written last.
    with explaining_write_errors(folder):
      tokenizer.save(folder)
  return source.TextInfo(str(folder), tokenizer.size, kept_ids, ends)


@contextlib.contextmanager
def explaining_write_errors(folder: pathlib.Path) -> Iterator[None]:
  """Turns errors of writing to a folder under `root` into DataErrors."""
  try:
    yield
  except (OSError, RuntimeError) as err:  # array_record raises RuntimeError.
    raise checks.DataError(
        'config.data.data_dir must be a folder that can be written, with room; '
        f'got {str(folder)!r} ({checks.one_line(err)}). Set '
        'config.data.data_dir to another folder, or make room.') from err


def pad_id(tokenizer: tokenizer_lib.Tokenizer) -> int:
  """Returns the token that fills rows up; the mask hides it."""
  special = tokenizer.special
  candidates = (special.pad, special.eos, special.sep, 0)
  return next(i for i in candidates if i is not None)


def special_ids(tokenizer: tokenizer_lib.Tokenizer,
                definition: Mapping[str, Any]) -> set[int]:
  """Returns the ids of special tokens.

  Args:
    tokenizer: the tokenizer.
    definition: its canonical definition, which takes time to make.
  """
  ids = {i for i in tokenizer.special if i is not None}
  return ids | {token['id'] for token in definition['added_tokens']
                if token['special']}


def check_pruning(prune: bool, vocabulary: Optional[int]) -> None:
  """Raises ConfigError for a vocabulary that is both pruned and given."""
  if prune and vocabulary is not None:
    raise checks.ConfigError(
        'config.data.options.vocabulary must be None with prune=True, since '
        f'pruning determines it; got {vocabulary}.')


def vocabulary_size(tokenizer: tokenizer_lib.Tokenizer,
                    vocabulary: Optional[int]) -> int:
  """Returns V: `vocabulary`, or the size of the tokenizer if it is None.

  Args:
    tokenizer: the tokenizer of the data.
    vocabulary: at least the size of the tokenizer; None for exactly that.

  Raises:
    ConfigError: a vocabulary that is too small.
  """
  if vocabulary is not None and vocabulary < tokenizer.size:
    raise checks.ConfigError(
        'config.data.options.vocabulary must be at least the size of the '
        f'tokenizer, {tokenizer.size}; got {vocabulary}. Leave it out; if it '
        'is that of weights, give them a row for each token with '
        f'`resize_token_embeddings({tokenizer.size})` of transformers.')
  return vocabulary or tokenizer.size
