"""Rows of documents, written out."""

import numpy as np
import pytest

from haikd.core import checks
from haikd.data.text import packing


def documents(*lengths):
  """Returns documents of the tokens 10, 11, …; 20, 21, …; and so on."""
  return [np.arange(10 * i, 10 * i + n) for i, n in enumerate(lengths, start=1)]


def columns(rows):
  return [(row['tokens'].tolist(), row['parts'].tolist()) for row in rows]


def test_documents_lie_end_to_end_in_full_rows():
  rows = columns(packing.pack(documents(3, 2, 6, 1), 4, pad=0))
  assert rows == [
      ([10, 11, 12, 20], [1, 1, 1, 2]),
      ([21, 30, 31, 32], [1, 2, 2, 2]),  # The rest is a new document.
      ([33, 34, 35, 40], [1, 1, 1, 2]),
  ]


@pytest.mark.parametrize('padding, row', [
    ('right', ([20, 21, 9, 9], [1, 1, 0, 0])),
    ('left', ([9, 9, 20, 21], [0, 0, 1, 1])),
])
def test_the_last_row_is_padded(padding, row):
  rows = columns(packing.pack(documents(4, 2), 4, pad=9, padding=padding))
  assert rows == [([10, 11, 12, 13], [1, 1, 1, 1]), row]


def test_rows_do_not_share_memory():
  first, _ = packing.pack(documents(8), 4, pad=0)
  assert first['tokens'].tolist() == [10, 11, 12, 13]


def test_the_last_row_counts_its_documents():
  *_, last = packing.pack([np.arange(3), np.arange(2)], 8, pad=0)
  assert last['parts'].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]


def test_document_longer_than_a_row_is_cut_into_documents():
  rows = columns(packing.pack(documents(9), 4, pad=0))
  assert [parts for _, parts in rows] == [[1] * 4, [1] * 4, [1, 0, 0, 0]]


def test_without_documents_there_are_no_rows():
  assert not list(packing.pack([], 4, pad=0))


def test_pieces_are_no_longer_than_a_row():
  pieces = [piece.tolist() for piece in packing.pieces(documents(5, 2), 2)]
  assert pieces == [[10, 11], [12, 13], [14], [20, 21]]


def test_positions_restart_in_each_part():
  parts = np.array([[1, 1, 2, 2, 2, 3], [0, 0, 1, 1, 2, 2], [1, 1, 0, 0, 0, 0]])
  assert packing.positions(parts).tolist() == [
      [0, 1, 0, 1, 2, 0], [0, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0]]
  assert packing.positions(parts).dtype == np.int32


@pytest.mark.parametrize('length, padding, text', [
    (1, 'right', 'config.data.options.length must be at least 2; got 1'),
    (2, 'both', "config.data.options.padding must be 'right' or 'left'; got "
     "'both'"),
])
def test_options_out_of_range_are_refused(length, padding, text):
  with pytest.raises(checks.ConfigError, match=text):
    packing.check_options(length, padding)
