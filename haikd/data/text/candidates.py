"""A query, its candidates and a teacher's scores of them, in a record."""

from collections.abc import Iterator, Sequence
import json
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from haikd.core import checks
from haikd.data.records import streams
from haikd.data.text import text_records

Names = Union[None, str, Sequence[str]]  # None for those that are there.

# What fields are called where the config names none, the first that is there.
_NEGATIVES = ('negatives', 'negative')
_NUMBERED = ('negative_', 'negative')  # negative_1, negative_2 and so on.
_SCORES = ('scores', 'labels', 'score', 'label')


class Candidates(NamedTuple):
  """What a record says.

  Attributes:
    query: its query.
    texts: the positive and the negatives.
    scores: of the texts, as many; None if the data has none.
  """

  query: str
  texts: list[str]
  scores: Optional[list[float]]


class Fields(NamedTuple):
  """Which fields hold what.

  Attributes:
    query: the field of the query.
    positive: that of the positive.
    negatives: those of the negatives, each a text or a list of texts.
    scores: those of the scores, each a number or a list; empty for none.
    margins: likewise those of margins, the score of the positive less that of
      each negative.
  """

  query: str
  positive: str
  negatives: tuple[str, ...]
  scores: tuple[str, ...]
  margins: tuple[str, ...]

  def read(self, record: text_records.Record) -> Candidates:
    """Returns what a record says.

    Raises:
      DataError: a field is missing or holds something else, or there is not one
        score for each candidate.
    """
    query = text_records.text_of(record, self.query)
    positives = list(_texts(record, self.positive))
    if len(positives) != 1 or positives[0] is None:
      raise checks.DataError(
          f'{record.place} must have one text in the field {self.positive!r}; '
          f'got {len(list(filter(None, positives)))}. Write a record for each '
          'positive.')
    texts = [text for name in (self.positive, *self.negatives)
             for text in _texts(record, name)]
    scores = self._scores(record, len(texts))
    kept = {i: text for i, text in enumerate(texts) if text is not None}
    if scores is not None:
      for i in kept:
        if not checks.is_number(scores[i]):
          raise checks.DataError(
              f'{record.place} must have a finite number as the score of each '
              f'text in {self._score_names()}; got {scores[i]!r} for text '
              f'{i + 1} of {len(texts)}. Remove or fix the record.')
      scores = [float(scores[i]) for i in kept]
    return Candidates(query, [*kept.values()], scores)

  def _scores(self, record, count) -> Optional[list[Any]]:
    """Returns what stands for the scores of so many texts, or None."""
    if not self.scores and not self.margins:
      return None
    are_margins = not self.scores
    found = [x for name in (*self.scores, *self.margins)
             for x in _numbers(record, name)]
    if len(found) + are_margins != count:
      rule = ('a margin for each negative' if are_margins else
              'a score for the positive and for each negative')
      remedy = ('' if are_margins else
                ' If they are scores of the positive less those of negatives, '
                'set config.data.options.margins to the field.')
      raise checks.DataError(
          f'{record.place} must have {rule} in {self._score_names()}, '
          f'{count - are_margins} in all; got {len(found)}.{remedy}')
    if are_margins:
      return [0.0, *(-x if checks.is_number(x) else x for x in found)]
    return found

  def _score_names(self):
    names = self.scores or self.margins
    return ' and '.join(map(repr, names))


def find(record: text_records.Record, *, query: str, positive: str,
         negatives: Names, scores: Names, margins: Names) -> Fields:
  """Returns which fields hold what, as far as the config does not say.

  Args:
    record: the first one of a split.
    query: the field of the query.
    positive: that of the positive.
    negatives: the fields of the negatives; None to look for them.
    scores: those of the scores; None to look for them, () for none.
    margins: those of margins; None for none.

  Raises:
    ConfigError: both scores and margins, or a choice of negatives.
    DataError: there are no negatives.
  """
  known = record.values
  if margins and scores:
    raise checks.ConfigError(
        'config.data.options must have scores or margins; got both, '
        f'{scores!r} and {margins!r}. Leave one of them out.')
  if negatives is None:
    numbered = (_while_known(known, prefix) for prefix in _NUMBERED)
    choices = [*((name,) for name in _NEGATIVES if name in known),
               *filter(None, numbered)]
    if len(choices) > 1:
      raise checks.ConfigError(
          'config.data.options.negatives must name the fields of the negatives '
          f'where there is a choice; got none, and {record.place} has '
          f'{" or ".join(map(str, choices))}.')
    negatives = next(iter(choices), None)
    if negatives is None:
      raise checks.DataError(
          f'{record.place} must have the field {_NEGATIVES[0]!r} or '
          f'{_NEGATIVES[1]!r}; got {sorted(known)}. config.data.options.'
          'negatives names it, or several.')
  if scores is None and not margins:
    scores = tuple(name for name in _SCORES if name in known)[:1]
  return Fields(query, positive, _as_names(negatives), _as_names(scores),
                _as_names(margins))


def _while_known(known, prefix):
  """Returns the fields prefix1, prefix2 and so on that are there."""
  names = []
  while f'{prefix}{len(names) + 1}' in known:
    names.append(f'{prefix}{len(names) + 1}')
  return tuple(names)


def _as_names(names: Names) -> tuple[str, ...]:
  return (names,) if isinstance(names, str) else tuple(names or ())


def _texts(record, name) -> Iterator[Optional[str]]:
  """Yields the texts of a field, None for a cell without one."""
  for value in _values(record, name):
    if isinstance(value, bytes):
      value = streams.decode(value, record.place)
    if record.untyped and value == '':
      value = None
    if not isinstance(value, (str, type(None))):
      raise checks.DataError(
          f'{record.place} must have texts in the field {name!r}; got '
          f'{value!r}. Remove the record, or choose another field in '
          'config.data.options.')
    yield value


def _numbers(record, name) -> Iterator[Any]:
  """Yields what stands in a field of numbers, None for an empty cell."""
  for value in _values(record, name):
    if record.untyped and isinstance(value, str):
      try:
        value = float(value) if value else None
      except ValueError:
        pass  # It is shown as it stands.
    yield value


def _no_json(record, name, value):
  return checks.DataError(
      f'{record.place} must have lists as JSON in the field {name!r}; got '
      f'{value[:40]!r}. Write the file as JSON lines or parquet.')


def _values(record, name) -> list[Any]:
  """Returns the values of a field, which may be a list."""
  value = text_records.value_of(record, name)
  if isinstance(value, np.ndarray):
    value = value.tolist()
  if record.untyped and isinstance(value, str) and (
      value.startswith('[') and value.endswith(']')):
    # Quotes tell a list of texts that is no JSON from a text in brackets.
    try:
      value = json.loads(value)
    except ValueError:
      if value[1:2] in ('"', "'"):
        raise _no_json(record, name, value) from None
  return value if isinstance(value, list) else [value]
