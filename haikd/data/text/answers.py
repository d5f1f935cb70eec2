"""Answers in the rows of a chat, each with the token that ends it."""

from typing import NamedTuple, Optional

import numpy as np

from haikd.core import checks
from haikd.data.text import learned
from haikd.data.text import render_chats
from haikd.data.text import text_records

Encoded = tuple[render_chats.Row, learned.Spans]  # A row with its ids.


class Answer(NamedTuple):
  """The character an answer begins with, its first token, and its last."""

  begin: int
  first: int
  stop: int


def find(rows: list[Encoded], is_stop: np.ndarray,
         record: text_records.Record) -> list[list[Answer]]:
  """Returns the answers in each row of a chat.

  Args:
    rows: of the chat.
    is_stop: `[V]`, whether a token may end an answer.
    record: the chat, for messages.

  Raises:
    DataError: an answer that no such token ends.
  """
  return [[_answer(row, whole, span, is_stop, record.place)
           for span in row.spans] for row, whole in rows]


def _answer(row, whole, span, is_stop, place) -> Answer:
  begin, end = span
  first = whole.first_beyond(begin)
  stop = _stop(whole, first, end, is_stop)
  if stop is None:
    raise checks.DataError(
        f'{place} must have a token that ends each answer, or the student '
        'never learns to stop; got, with what is learned in «»: '
        f'{_shown(row)}. Use a chat template that writes one, such as '
        '{{ eos_token }}, or name its token in config.data.options.eos.')
  return Answer(begin, first, stop)


def _stop(whole: learned.Spans, first: int, end: int,
          is_stop: np.ndarray) -> Optional[int]:
  """Returns the token that ends an answer; only blanks may follow it.

  Args:
    whole: the chat.
    first: the first token of the answer.
    end: the index of the character after the answer.
    is_stop: as for `find`.

  Returns:
    The index of a token, or None if there is no such token.
  """
  last = whole.first_beyond(end)
  stops = np.flatnonzero(is_stop[whole.ids[first:last]])
  if not len(stops):
    return None
  stop = first + int(stops[-1])
  return None if whole.after(stop, end).strip() else stop


def _shown(row: render_chats.Row) -> str:
  """Returns a row on one line, what is learned in «»; long parts shortened."""
  places = [0, *(place for span in row.spans for place in span), len(row.text)]
  parts = [row.text[start:end] for start, end in zip(places, places[1:])]
  short = [part if len(part) <= 120 else f'{part[:60]}…{part[-60:]}'
           for part in parts]
  lines = [repr(part)[1:-1] for part in short]
  return ''.join(f'«{line}»' if i % 2 else line for i, line in enumerate(lines))
