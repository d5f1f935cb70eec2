"""Columns of parquet files and of folders that `datasets` has saved."""

import decimal
import io
import json
import pathlib

import numpy as np
from PIL import Image
import pyarrow
from pyarrow import parquet
import pytest

from haikd.core import checks
from haikd.data import source

GOLDEN = pathlib.Path(__file__).parent / 'golden'


def opened(path, split='train', **options):
  return source.open_source('table', split, source_dir=str(path),
                            options=options)


def examples(made):
  """Returns the columns of a Source, `{key: array}`."""
  rows = [made[i] for i in range(len(made))]
  return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def check_goldens(columns, numbers):
  """Compares with what `make_dataset_goldens.py` has written."""
  numbers = np.sort(numbers)
  order = np.argsort(columns['x'][:, 0])
  columns = {key: value[order] for key, value in columns.items()}
  np.testing.assert_array_equal(columns['x'][:, 0], numbers)
  np.testing.assert_array_equal(columns['label'], numbers % 3)
  np.testing.assert_array_equal(columns['pair'][:, 1], numbers + 0.5)
  assert columns['grid'].shape == (len(numbers), 2, 3)
  np.testing.assert_array_equal(columns['grid'][:, 0, 0], numbers)
  assert (columns['grid'][:, 1] == (3, 4, 5)).all()
  assert columns['image'].shape == (len(numbers), 2, 3, 3)
  assert columns['image'].dtype == np.uint8
  np.testing.assert_array_equal(columns['image'][:, 1, 2, 0], numbers * 10)


@pytest.mark.parametrize('path, split, numbers', (
    ('saved', 'train', range(8)), ('saved', 'test', range(8, 11)),
    ('alone', 'train', range(5)), ('train.parquet', 'train', range(4))))
def test_what_datasets_has_saved(path, split, numbers):
  made = opened(GOLDEN / path, split)
  assert made.class_names == ('cat', 'ant', 'bee') and made.num_classes == 3
  check_goldens(examples(made), np.array(numbers))


def save(path, columns, features=None):
  table = pyarrow.table(columns)
  if features is not None:
    table = table.replace_schema_metadata(
        {'huggingface': json.dumps(dict(info=dict(features=features)))})
  parquet.write_table(table, path)


def test_examples_without_a_class_are_ignored(tmp_path):
  """The Hub's test splits have -1 where a ClassLabel is hidden."""
  save(tmp_path / 'train.parquet', dict(a=[1, 2], label=[-1, 1]),
       dict(label=dict(_type='ClassLabel', names=['x', 'y'])))
  columns = examples(opened(tmp_path))
  assert dict(zip(columns['x'][:, 0], columns['label'])) == {1: -100, 2: 1}


def test_categories_of_pandas_are_names(tmp_path):
  labels = pyarrow.array(['u', 'v', 'u']).dictionary_encode()
  save(tmp_path / 'train.parquet', dict(a=[1.0, 2.0, 3.0], label=labels))
  assert opened(tmp_path).class_names == ('u', 'v')


@pytest.mark.parametrize('label, expected', (
    (pyarrow.array([True, False, True]), [1, 0, 1]),
    (pyarrow.array(['u', 'n', 'u'], pyarrow.string_view()), [1, 0, 1]),
))
def test_labels_of_any_type_are_classes(tmp_path, label, expected):
  save(tmp_path / 'train.parquet', dict(a=[0, 1, 2], label=label))
  made = opened(tmp_path)
  columns = examples(made)
  assert made.num_classes == 2 and columns['label'].dtype.kind == 'i'
  np.testing.assert_array_equal(
      columns['label'], np.array(expected)[columns['x'][:, 0].astype(int)])


def test_bytes_of_any_type_are_images(tmp_path):
  file = io.BytesIO()
  Image.new('RGB', (3, 2), (9, 8, 7)).save(file, 'png')
  save(tmp_path / 'train.parquet', dict(
      picture=pyarrow.array([file.getvalue()], pyarrow.large_binary()),
      label=[0]))
  np.testing.assert_array_equal(
      opened(tmp_path)[0]['image'], np.full((2, 3, 3), (9, 8, 7)))


def test_a_shard_without_rows_is_passed_over(tmp_path):
  for part, rows in enumerate(([], ['u', 'v'])):
    save(tmp_path / f'train-{part:05}-of-00002.parquet', dict(
        a=pyarrow.array(range(len(rows)), pyarrow.int64()),
        label=pyarrow.array(rows, pyarrow.string() if rows else None)))
  assert opened(tmp_path).class_names == ('u', 'v')


@pytest.mark.parametrize('columns, match', (
    (dict(a=[1, None], label=[0, 1]), "column 'a' must have a value in every "
     "row; got none in row 1 of '.*train.parquet'"),
    (dict(a=[1.0, float('nan')], label=[0, 1]), 'got none in row 1 of'),
    (dict(a=[[1, 2], [3]], label=[0, 1]), r"in every row as many; got \[3\] in "
     'row 1'),
    (dict(a=[[1, 2], [3, None]], label=[0, 1]), r'got \[3, None\] in row 1'),
    (dict(a=['x', 'y'], label=[0, 1]), "must hold numbers, .*'x' in row 0"),
    (dict(a=[1, 2], label=['x', None]), "column 'label' must have a value"),
    (dict(a=[1, 2], label=['x', ' ']), "column 'label' must have a value in "
     "every row; got none in row 1 of .* or name another in config.data.opt"),
    (dict(a=[1, 2], label=[decimal.Decimal('1.5')] * 2), "column 'label' must "
     r"hold names of classes or numbers, .*; got Decimal\('1.5'\) in row 0 of"),
    (dict(a=[1, 2], label=[dict(b=1)] * 2), "got {'b': 1} in row 0 of"),
    (dict(a=[1, 2], label=[['x', 'y']] * 2), r"got \['x', 'y'\] in row 0 of"),
    (dict(a=[b'x', b'y'], b=[b'x', b'y'], label=[0, 1]), "must give each input "
     "a key of its own; got 'a' and 'b' as 'image'"),
    (dict(a=[], label=[]), 'must have rows; got none'),
    (dict(a=[1], klass=[1]), "must have the column 'label'"),
))
def test_typed_columns_that_cannot_be_right_are_refused(
    tmp_path, columns, match):
  save(tmp_path / 'train.parquet', columns)
  with pytest.raises((checks.ConfigError, checks.DataError), match=match):
    opened(tmp_path)


def test_an_image_that_is_damaged_is_named(tmp_path):
  save(tmp_path / 'train.parquet', dict(image=[b'x'], label=[0]))
  with pytest.raises(checks.DataError, match="row 0 of '.*train.parquet' must "
                     'be an image that Pillow can read'):
    np.asarray(opened(tmp_path)[0]['image'])


def test_splits_with_other_names_of_classes_are_refused(tmp_path):
  for split, names in (('train', ['x', 'y']), ('test', ['y', 'x'])):
    save(tmp_path / f'{split}.parquet', dict(a=[1, 2], label=[0, 1]),
         dict(label=dict(_type='ClassLabel', names=names)))
  with pytest.raises(checks.DataError, match="must have the same classes in all"
                     " splits; got x, y in 'train' and y, x in 'test'"):
    opened(tmp_path)
