"""Cells of tables that cannot be used: their rows are skipped and counted."""

import json

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from haikd.core import checks
from haikd.data import reader
from haikd.data import reading as reading_lib
from haikd.data import source
from haikd.data.tables import text_columns

SKIP = reading_lib.Reading(on_error='skip', max_skipped=3)
ROWS = 12  # Row i is (i, 2 i, i modulo 3).


def opened(path, reading=SKIP, **options):
  return reader.Reader(
      source.open_source('table', 'train', source_dir=str(path),
                         options=options, reading=reading),
      'train', reading=reading)


def write(path, kind, changes):
  """Writes a table, with other cells at some (row, column)."""
  columns = dict(a=list(range(ROWS)), b=[2 * i for i in range(ROWS)],
                 label=[i % 3 for i in range(ROWS)])
  for (row, name), value in changes.items():
    columns[name][row] = value
  rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
  if kind == 'csv':
    lines = [','.join('' if x is None else str(x) for x in row.values())
             for row in rows]
    (path / 'train.csv').write_text('\n'.join(['a,b,label', *lines]))
  elif kind == 'jsonl':
    (path / 'train.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  else:
    parquet.write_table(pyarrow.table(columns), path / 'train.parquet',
                        row_group_size=5)


def left(path, **options):
  """Returns the rows that are left, by their first number, and the classes."""
  found = opened(path, **options)
  columns = found.gather(np.arange(ROWS))
  kept = columns['weight'] == 1
  np.testing.assert_array_equal(
      columns['x'][kept, 1], 2 * columns['x'][kept, 0])
  assert set(columns['weight']) <= {0, 1}
  return sorted(columns['x'][kept, 0].astype(int)), found.num_classes


@pytest.mark.parametrize('kind, changes', (
    ('csv', {(5, 'a'): 'x'}),
    ('csv', {(0, 'b'): None, (5, 'label'): 'none', (7, 'a'): '1_0'}),
    ('csv', {(11, 'label'): None}),
    ('jsonl', {(3, 'a'): [1, 2], (4, 'b'): {}, (5, 'label'): [1]}),
    ('jsonl', {(0, 'a'): 'x', (11, 'b'): 'y'}),
    ('parquet', {(0, 'a'): None, (11, 'label'): None}),
    ('parquet', {(4, 'b'): None, (6, 'a'): None, (7, 'a'): None})))
@pytest.mark.parametrize('block', (4096, 4))
def test_rows_of_cells_that_are_no_numbers_are_skipped(
    tmp_path, monkeypatch, caplog, kind, changes, block):
  monkeypatch.setattr(text_columns, '_ROWS', block)
  write(tmp_path, kind, changes)
  bad = {row for row, _ in changes}
  with caplog.at_level('INFO', 'haikd'):
    assert left(tmp_path) == (sorted({*range(ROWS)} - bad), 3)
  assert 'skipped so far of the examples that were read' in caplog.text
  with pytest.raises(checks.DataError, match='^column .* must h'):
    opened(tmp_path, reading_lib.Reading())


@pytest.mark.parametrize('kind', ('csv', 'parquet'))
def test_names_of_classes_may_be_missing(tmp_path, kind):
  names = {(i, 'label'): 'xyz'[i % 3] for i in range(ROWS)}
  write(tmp_path, kind, {**names, (0, 'label'): None, (4, 'label'): ' '})
  assert left(tmp_path) == ([1, 2, 3, *range(5, ROWS)], 3)


@pytest.mark.parametrize('kind', ('csv', 'parquet'))
def test_too_many_stop_the_run(tmp_path, kind):
  write(tmp_path, kind, {(row, 'a'): None for row in range(4)})
  with pytest.raises(checks.DataError, match="^column 'a' must have a value"):
    opened(tmp_path)
  # Of two columns together.
  write(tmp_path, kind, {**{(row, 'a'): None for row in range(2)},
                         **{(row, 'b'): None for row in range(4, 6)}})
  with pytest.raises(checks.DataError, match=(
      "^split 'train' must have at most 3 examples that cannot be used, "
      'config.data.max_skipped; got more than 3. The first one: column')):
    left(tmp_path)


def test_a_number_among_names_is_not_guessed(tmp_path):
  write(tmp_path, 'csv', {(i, 'label'): 'xyz'[i % 3] for i in range(ROWS - 1)})
  with pytest.raises(checks.DataError, match='only names of classes, or only'):
    opened(tmp_path, reading_lib.Reading(on_error='skip'))


def test_a_column_of_texts_is_not_skipped_row_by_row(tmp_path):
  write(tmp_path, 'csv', {(i, 'a'): 'text' for i in range(ROWS)})
  with pytest.raises(checks.DataError, match="^column 'a' must hold numbers"):
    opened(tmp_path, reading_lib.Reading(on_error='skip'))


def test_a_job_learns_from_the_other_rows(run, tmp_path):
  write(tmp_path, 'csv', {(5, 'a'): 'x'})
  flags = ('--config.data.name=table', f'--config.data.source_dir={tmp_path}',
           '--config.data.options={}', '--config.evaluation.split=train',
           '--config.evaluation.final=train', '--config.batch_size=4')
  code, _, err = run(*flags)
  assert code == 3 and "got 'x' in line 7 of" in err
  code, _, err = run(*flags, '--config.data.on_error=skip')
  assert code == 0, err
  assert err.count("1 skipped so far of the examples that were read") == 1
