"""A record of texts, and how its fields are read."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
import reprlib
from typing import Any, NamedTuple, TypeVar

from haikd.core import checks
from haikd.data.records import broken as broken_lib
from haikd.data.records import hints
from haikd.data.records import streams

SKIPPED = 'skipped'  # Counts the records that cannot be used.
_Read = TypeVar('_Read')


class Record(NamedTuple):
  """One document, line or row of a split.

  Attributes:
    values: `{field: value}`.
    place: the file and line, for messages.
    done: the fraction of the split that is read after it, from 0 to 1.
    untyped: whether its numbers are written as texts, as in CSV.
    broken: what is done about it if it cannot be used.
  """

  values: Mapping[str, Any]
  place: str
  done: float
  untyped: bool = False
  broken: broken_lib.Broken = broken_lib.Broken('split')


def text_of(record: Record, field: str) -> str:
  """Returns a field that must be a text.

  Args:
    record: the record.
    field: its field.

  Raises:
    DataError: the field is missing, or it is not a text.
  """
  value = value_of(record, field)
  if isinstance(value, bytes):
    value = streams.decode(value, record.place)
  if not isinstance(value, str):
    raise checks.DataError(
        f'{record.place} must have a text in the field {field!r}; got '
        f'{reprlib.repr(value)}. Remove the record, or choose another field in '
        'config.data.options.')
  return value


def usable(records: Iterable[Record], read: Callable[[Record], _Read],
           counts: Counter) -> Iterator[tuple[Record, _Read]]:
  """Yields the records that can be used, each with what is read of it.

  Args:
    records: of a split.
    read: raises DataError for a record that cannot be used.
    counts: its `skipped` increases by the number of these.

  Raises:
    DataError: one of them must stop the run, or there are too many.
  """
  for record in records:
    try:
      found = read(record)
    except checks.DataError as err:
      record.broken.skip(err)
      counts[SKIPPED] += 1
      continue
    yield record, found


def texts_of(records: Iterable[Record], field: str,
             counts: Counter) -> list[str]:
  """Returns `text_of` each record that has a text; see `usable`."""
  return [text for _, text in usable(
      records, lambda record: text_of(record, field), counts)]


def value_of(record: Record, field: str) -> Any:
  """Returns a field.

  Args:
    record: the record.
    field: its field.

  Raises:
    DataError: the field is missing, or a text in it has half a character, which
      no tokenizer takes. JSON can write such a text.
  """
  if field not in record.values:
    raise checks.DataError(
        f'{record.place} must have the field {field!r}; got '
        f'{sorted(record.values)}. {checks.suggest(field, record.values)} '
        f'{_remedy(record)}')
  value = record.values[field]
  half = _half_character(value)
  if half:
    raise checks.DataError(
        f'{record.place} must have whole characters in the field {field!r}; '
        f'got the lone surrogate {half!r}. Remove the record, or replace the '
        'character.')
  return value


def _remedy(record):
  """Returns what to do about a field that is missing."""
  hint = hints.of_record(record.values)
  if not hint and record.untyped:
    hint = 'The first row of the file must name its columns.'
  return f'config.data.options sets its name. {hint}'.rstrip()


def number_of(record: Record, field: str) -> Any:
  """Returns `value_of` a field; of CSV, as a number if it can be one."""
  value = value_of(record, field)
  if record.untyped:
    for kind in (int, float):
      try:
        return kind(value)
      except ValueError:
        continue
  return value


def _half_character(value: Any) -> str:
  """Returns the first lone surrogate in a value, or ''."""
  if isinstance(value, str):
    try:
      if not value.isascii():
        value.encode()
    except UnicodeEncodeError as err:
      return value[err.start]
  elif isinstance(value, Mapping):
    return _half_character([*value, *value.values()])
  elif isinstance(value, (list, tuple)):
    return next(filter(None, map(_half_character, value)), '')
  return ''
