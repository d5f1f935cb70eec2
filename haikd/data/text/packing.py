"""Documents as rows of one length: packed end to end, or one a row."""

from collections.abc import Iterable, Iterator

import numpy as np

from haikd.core import checks

PADDING = ('right', 'left')


def row_dtype(length: int) -> np.dtype:
  """Returns what a row is kept as.

  Args:
    length: N.

  Returns:
    The dtype of `tokens` and `parts`, `[N]` int32 each. A part is a document,
    or what else a row is put together from, counted from 1; 0 is padding.
  """
  return np.dtype([('tokens', '<i4', (length,)), ('parts', '<i4', (length,))])


def pack(documents: Iterable[np.ndarray], length: int, *, pad: int,
         padding: str = 'right') -> Iterator[np.ndarray]:
  """Lays documents end to end and cuts them into rows.

  All rows but the last are full. A document that goes on in the next row is a
  document of its own there: nothing of it looks back into the row before.

  Args:
    documents: integers `[n]` each, n above 0.
    length: N.
    pad: the token that fills the last row up.
    padding: on which side, 'right' or 'left'.

  Yields:
    A scalar of `row_dtype(length)`.
  """
  tokens, parts = [], []
  room, part = length, 0
  for document in documents:
    start = 0
    while start < len(document):
      piece = document[start:start + room]
      part += 1
      tokens.append(piece)
      parts.append(np.full(len(piece), part))
      start += len(piece)
      room -= len(piece)
      if not room:
        yield row(tokens, parts, length, pad=pad, padding=padding)
        tokens, parts, room, part = [], [], length, 0
  if tokens:
    yield row(tokens, parts, length, pad=pad, padding=padding)


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
    tokens: integers, `[n]` each, N of them at most in all.
    parts: what each belongs to, from 1 on; likewise.
    length: N.
    pad: the token that fills it up.
    padding: on which side, 'right' or 'left'.

  Returns:
    A scalar of `row_dtype(length)`.
  """
  made = np.zeros((), row_dtype(length))
  used = sum(map(len, tokens))
  place = slice(length - used, length) if padding == 'left' else slice(used)
  made['tokens'] = pad
  made['tokens'][place] = np.concatenate(tokens)
  made['parts'][place] = np.concatenate(parts)
  return made


def positions(parts: np.ndarray) -> np.ndarray:
  """Returns the place of each position in its part.

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


def check(where: str, length: int, padding: str, *, least: int = 2) -> None:
  """Raises ConfigError for a length or padding out of its range."""
  if length < least:
    raise checks.ConfigError(
        f'{where}: length must be at least {least}; got length={length}.')
  if padding not in PADDING:
    raise checks.ConfigError(
        f'{where}: padding must be on the right or left; got '
        f'padding={padding!r}. {checks.suggest(padding, PADDING)}')
