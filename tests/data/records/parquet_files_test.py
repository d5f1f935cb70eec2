"""How many rows of a parquet file are read at once."""

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from haikd.data import reading as reading_lib
from haikd.data.records import parquet_files


def rows_at_once(path, column, mib, rows=4096):
  """Returns the rows of the largest piece of a file of one column."""
  parquet.write_table(pyarrow.table(dict(a=column)), path)
  with parquet_files.opened(path) as file:
    return max(len(batch) for batch in parquet_files.batches(
        path, file, ['a'], reading_lib.Reading(memory_mib=mib), rows))


def test_a_dictionary_of_numbers_does_not_make_pieces_small(tmp_path):
  # 480,000 bytes of distinct numbers in the dictionary, each of 8 bytes.
  numbers = np.random.default_rng(0).normal(size=60_000)
  assert rows_at_once(tmp_path / 'x.parquet', numbers, mib=1) == 4096


@pytest.mark.parametrize('mib, expected', (
    # Pieces take an eighth of the memory, if each text is as long as the
    # dictionary of 60,000 entries of 4 + 12 bytes, and a row has up to two.
    (4096, 2**29 // (2 * 960_000)), (64, 2**23 // (2 * 960_000)), (8, 1)))
def test_a_dictionary_of_texts_bounds_pieces(tmp_path, mib, expected):
  texts = pyarrow.array([f'word{i:08d}' for i in range(60_000)])
  assert rows_at_once(tmp_path / 'x.parquet', texts, mib) == expected
