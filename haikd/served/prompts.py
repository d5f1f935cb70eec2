"""Cuts rows into prompts: a document each, which no other may be seen from."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from haikd.core import base
from haikd.core import checks

_TOKENS, _SEGMENTS, _POSITIONS = 'tokens', 'segments', 'positions'
_FIELD = 'config.data'


class Prompt(NamedTuple):
  """A document of a row, up to the last token that is predicted.

  Attributes:
    row: its row in the batch.
    start: the position of its first token.
    tokens: N ids, two or more: the positions from `start` predict all of them
      but the first.
  """

  row: int
  start: int
  tokens: list[int]


def check_spec(spec: base.Batch) -> None:
  """Refuses data that is no text for a model that predicts the next token.

  Args:
    spec: a batch of ShapeDtypeStructs.

  Raises:
    ConfigError: other inputs than tokens, or no labels.
  """
  given = spec.inputs if isinstance(spec.inputs, dict) else {
      _TOKENS: spec.inputs}
  is_text = (_TOKENS in given and
             set(given) <= {_TOKENS, _SEGMENTS, _POSITIONS} and
             all(len(x.shape) == 2 and x.dtype == np.int32
                 for x in given.values()))
  labels = spec.labels
  if not is_text or labels is None or labels.shape != spec.mask.shape:
    shapes = {name: x.shape for name, x in given.items()}
    raise checks.ConfigError(
        f'{_FIELD} must be texts whose next token is predicted, for a teacher '
        f'on a server; got inputs of shapes {shapes}. Record another teacher '
        'without --server.')


def cut(batch: base.Batch, keep: np.ndarray) -> Iterator[Prompt]:
  """Yields the documents of rows.

  Args:
    batch: NumPy arrays, which pass `check_spec`.
    keep: bool `[B, N]`, where predictions count; a document without any is left
      out.

  Raises:
    DataError: a row that a teacher here would see otherwise: with padding in a
      document, positions that do not begin at 0, or labels that are not the
      next token.
  """
  given = batch.inputs if isinstance(batch.inputs, dict) else {
      _TOKENS: batch.inputs}
  assert batch.labels is not None, 'check_spec has refused it'
  tokens, positions = given[_TOKENS], given.get(_POSITIONS)
  segments = given.get(_SEGMENTS, np.zeros_like(tokens))
  documents = np.where(batch.mask, segments, -1)
  for row in np.flatnonzero(keep.any(axis=1)).tolist():
    ids = documents[row]
    starts = np.flatnonzero(np.diff(ids, prepend=-2))
    stops = np.append(starts[1:], len(ids))
    seen = ids[starts][ids[starts] >= 0]
    _require(len(set(seen.tolist())) == len(seen),
             'documents without padding in them')
    for start, stop in zip(starts.tolist(), stops.tolist()):
      kept = np.flatnonzero(keep[row, start:stop])
      if not len(kept):
        continue
      end = start + int(kept[-1]) + 2
      _require(ids[start] >= 0 and end <= stop and np.array_equal(
          batch.labels[row, start + kept], tokens[row, start + kept + 1]),
               'labels that are the next token')
      _require(positions is None or np.array_equal(
          positions[row, start:end], np.arange(end - start)),
               'positions from 0 in each document')
      yield Prompt(row, start, tokens[row, start:end].tolist())


def _require(holds, what):
  if not holds:
    raise checks.DataError(
        f'{_FIELD} must have {what}, for a teacher on a server, which sees '
        'documents alone; got a row that has not. Record without --server.')
