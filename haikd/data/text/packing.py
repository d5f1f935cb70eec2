"""Documents as rows of one length: packed end to end, or one to a row."""

from collections.abc import Iterable, Iterator

import numpy as np

from haikd.core import checks

PADDING = ('right', 'left')
_MOST = 2**24  # Tokens in a row.


def row_dtype(length: int) -> np.dtype:
  """Returns the dtype of a stored row.

  Args:
    length: N.

  Returns:
    The dtype of `tokens` and `parts`, `[N]` int32 each. A part is a document,
    or another piece that a row is composed of, numbered from 1; 0 is padding.
  """
  return np.dtype([('tokens', '<i4', (length,)), ('parts', '<i4', (length,))])


def pack(documents: Iterable[np.ndarray], length: int, *, pad: int,
         padding: str = 'right') -> Iterator[np.ndarray]:
  """Lays documents end to end and cuts them into rows.

  All rows but the last are full. A document that continues in the next row is a
  separate document there: it attends to nothing in the row before.

  Args:
    documents: integers `[n]` each, n above 0.
    length: N.
    pad: the token that fills the last row up.
    padding: the side of the padding, 'right' or 'left'.

  Yields:
    A scalar of `row_dtype(length)`.
  """
  dtype = row_dtype(length)
  filled, end, part = np.zeros((), dtype), 0, 0
  for document in documents:
    start = 0
    while start < len(document):
      piece = document[start:start + length - end]
      place = slice(end, end + len(piece))
      part += 1
      filled['tokens'][place], filled['parts'][place] = piece, part
      start, end = start + len(piece), place.stop
      if end == length:
        yield filled
        filled, end, part = np.zeros((), dtype), 0, 0
  if end:
    yield row([filled['tokens'][:end]], [filled['parts'][:end]], length,
              pad=pad, padding=padding)


def pieces(documents: Iterable[np.ndarray],
           length: int) -> Iterator[np.ndarray]:
  """Cuts documents that are longer than a row.

  Args:
    documents: integers `[n]` each.
    length: N.

  Yields:
    Integers, `[N]` or fewer.
  """
  for document in documents:
    for start in range(0, len(document), length):
      yield document[start:start + length]


def row(tokens: list[np.ndarray], parts: list[np.ndarray], length: int, *,
        pad: int, padding: str) -> np.ndarray:
  """Returns one row.

  Args:
    tokens: integers, `[n]` each, at most N in total.
    parts: the part of each token, numbered from 1; shaped like `tokens`.
    length: N.
    pad: the token that fills the row up.
    padding: the side of the padding, 'right' or 'left'.

  Returns:
    A scalar of `row_dtype(length)`.
  """
  packed = np.zeros((), row_dtype(length))
  used = sum(map(len, tokens))
  place = slice(length - used, length) if padding == 'left' else slice(used)
  packed['tokens'] = pad
  packed['tokens'][place] = np.concatenate(tokens)
  packed['parts'][place] = np.concatenate(parts)
  return packed


def positions(parts: np.ndarray) -> np.ndarray:
  """Returns the index of each position within its part.

  Args:
    parts: `[..., N]` integers, the same within a part, 0 in padding.

  Returns:
    `[..., N]` int32, from 0 in each part; 0 in padding.
  """
  index = np.arange(parts.shape[-1], dtype=np.int32)
  starts = np.ones(parts.shape, bool)
  starts[..., 1:] = parts[..., 1:] != parts[..., :-1]
  first = np.maximum.accumulate(np.where(starts, index, 0), axis=-1)
  return np.where(parts > 0, index - first, 0).astype(np.int32)


def check_options(length: int, padding: str, *, min_length: int = 2) -> None:
  """Raises ConfigError for a length or padding out of its range."""
  if length < min_length:
    raise checks.ConfigError(
        f'config.data.options.length must be at least {min_length}; got '
        f'{length}.')
  if length > _MOST:
    raise checks.ConfigError(
        f'config.data.options.length must be at most {_MOST:,}; got {length}.')
  if padding not in PADDING:
    raise checks.ConfigError(
        "config.data.options.padding must be 'right' or 'left'; got "
        f'{padding!r}. {checks.suggest(padding, PADDING)}')
