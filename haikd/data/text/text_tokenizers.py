"""The tokenizer of a data set: read once, and kept beside what it made."""

from collections.abc import Iterator
import contextlib
import functools
import hashlib
import pathlib
from typing import Optional

import numpy as np

from haikd.core import checks
from haikd.data import source
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.storage import paths

Tokenizer = tokenizer_lib.Tokenizer


def load(path: str) -> Tokenizer:
  """Loads a tokenizer, once for all splits of a run.

  Args:
    path: as for `haikd.data.text.tokenizer.load`.

  Returns:
    A Tokenizer.

  Raises:
    DataError: as `haikd.data.text.tokenizer.load`.
  """
  file = pathlib.Path(path.removeprefix(tokenizer_lib.GGUF)).expanduser()
  inside = sorted([*file.glob('*.json'), *file.glob('*.jinja')])
  stamps = [(p.name, p.stat().st_size, p.stat().st_mtime_ns)
            for p in (file, *inside) if p.exists()]
  return _load(path, tuple(stamps))


@functools.lru_cache(maxsize=2)
def _load(path, stamps):
  del stamps  # They make a changed file a new argument.
  return tokenizer_lib.load(path)


def root(data_dir: Optional[str]) -> pathlib.Path:
  """Returns the folder of all that is prepared of texts.

  Args:
    data_dir: where prepared files lie; None for where tfds has them.

  Raises:
    DataError: it is in a bucket.
  """
  if data_dir is None:
    from tensorflow_datasets.core import constants
    data_dir = constants.DATA_DIR
  if paths.is_remote(data_dir):
    raise checks.DataError(
        'text_tokenizers.root: data_dir must be a local folder for texts; got '
        f'data_dir={data_dir!r}. Set config.data.data_dir to one that all '
        'processes see, or to one on each machine.')
  return pathlib.Path(data_dir).expanduser() / 'haikd_text'


def keep(tokenizer: Tokenizer, data_dir: Optional[str],
         kept_ids: Optional[np.ndarray] = None) -> source.TextInfo:
  """Writes a tokenizer beside what is prepared with it.

  Args:
    tokenizer: maybe pruned.
    data_dir: where prepared files lie, as for `root`.
    kept_ids: which ids of the whole tokenizer its ids were; None if it is
      whole.

  Returns:
    Where it is.

  Raises:
    DataError: it cannot be written.
  """
  said = f'{tokenizer.digest} {tokenizer.config}'
  if tokenizer.template is not None:
    said += f' {tokenizer.template}'
  folder = root(data_dir) / 'tokenizers' / hashlib.sha256(
      said.encode()).hexdigest()[:16]
  if not (folder / 'tokenizer.json').exists():  # Which is written last.
    with writing(folder):
      tokenizer.save(folder)
  return source.TextInfo(str(folder), tokenizer.size, kept_ids)


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
  """Makes what goes wrong with a folder of `root` a DataError."""
  try:
    yield
  except (OSError, RuntimeError) as err:  # array_record has the second.
    raise checks.DataError(
        'text_tokenizers.root: data_dir must be a folder that can be written, '
        f'with room; got {str(folder)!r} ({checks.one_line(err)}). Set '
        'config.data.data_dir.') from err


def ending(tokenizer: Tokenizer) -> int:
  """Returns the token that ends a text; raises DataError if there is none."""
  special = tokenizer.special
  end = special.sep if special.eos is None else special.eos
  if end is None:
    raise checks.DataError(
        'text_tokenizers.ending: tokenizer must have a token that ends texts; '
        f'got {special}. Name it in tokenizer_config.json as eos_token.')
  return end


def end_with(end: int, ids: np.ndarray) -> np.ndarray:
  """Returns ids with one more at the end, unless it stands there."""
  if len(ids) and ids[-1] == end:
    return ids
  return np.append(ids, np.int32(end))


def filler(tokenizer: Tokenizer) -> int:
  """Returns the token that fills rows up, which the mask hides."""
  special = tokenizer.special
  found = (special.pad, special.eos, special.sep, 0)
  return next(i for i in found if i is not None)


def vocabulary_size(where: str, tokenizer: Tokenizer,
                    vocabulary: Optional[int]) -> int:
  """Returns V: that of the tokenizer, or what a user wants it to be.

  Args:
    where: the data set, for messages.
    tokenizer: of the data.
    vocabulary: at least the size of the tokenizer; None for just that.

  Raises:
    ConfigError: a vocabulary that is too small.
  """
  if vocabulary is not None and vocabulary < tokenizer.size:
    raise checks.ConfigError(
        f'{where}: vocabulary must be no smaller than the tokenizer; got '
        f'vocabulary={vocabulary}, tokenizer.size={tokenizer.size}. Set it to '
        'None, or prune=True.')
  return vocabulary or tokenizer.size
