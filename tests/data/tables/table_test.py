"""Tables as people have them: CSV, JSON, parquet, and folders of `datasets`."""

import json
import logging
import re
import textwrap

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from haikd.core import checks
from haikd.data import source
from haikd.data.tables import arrow_columns
from haikd.data.tables import text_columns


def opened(path, split='train', **options):
  return source.open_source('table', split, source_dir=str(path),
                            options=options)


def examples(made):
  """Returns the columns of a Source, `{key: array}`."""
  rows = [made[i] for i in range(len(made))]
  return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


@pytest.fixture
def iris(tmp_path):
  """A CSV that is sorted by its classes, and a split with other columns."""
  rows = [f'{i},{i / 10},{"setosa" if i < 12 else "iris"}' for i in range(20)]
  (tmp_path / 'train.csv').write_text('\n'.join(['a,b,label', *rows]))
  (tmp_path / 'test.csv').write_text('id,label,b,a\nq,virginica,7.5,70\n')
  (tmp_path / 'README.txt').write_text('Where it is from.')
  return tmp_path


def test_numbers_are_a_vector_and_names_are_classes(iris, caplog):
  caplog.set_level(logging.INFO, 'haikd')
  train = opened(iris)
  assert 'inputs are x of a, b (config.data.options.inputs)' in caplog.text
  columns = examples(train)
  assert columns['x'].shape == (20, 2) and columns['x'].dtype == np.float32
  np.testing.assert_allclose(columns['x'][:, 1], columns['x'][:, 0] / 10)
  # Over all splits: iris, setosa, virginica.
  np.testing.assert_array_equal(columns['label'], columns['x'][:, 0] < 12)
  assert train.class_names == ('iris', 'setosa', 'virginica')
  assert train.num_classes == 3


def test_columns_have_the_order_of_training(iris):
  test = examples(opened(iris, 'test'))
  np.testing.assert_array_equal(test['x'], [[70, 7.5]])
  assert test['label'].tolist() == [2]


def test_one_file_is_cut_and_each_part_has_all_classes(iris):
  parts = [opened(iris / 'train.csv', split)
           for split in ('train[:80%]', 'train[80%:]')]
  assert [len(part) for part in parts] == [16, 4]
  # 12 of 20 are setosa: 9.6 of 16 and 2.4 of 4.
  assert [sum(examples(part)['label']) for part in parts] in ([10, 2], [9, 3])
  first = [examples(part)['x'][:, 0] for part in parts]
  assert sorted(np.concatenate(first)) == list(range(20))


@pytest.mark.parametrize('name', ('', 'Unnamed: 0'))
def test_row_numbers_that_pandas_has_written_are_no_input(
    tmp_path, name, caplog):
  caplog.set_level(logging.INFO, 'haikd')
  (tmp_path / 'train.csv').write_text(f'{name},a,label\n0,1,2\n1,3,0\n')
  assert examples(opened(tmp_path))['x'].shape == (2, 1)
  assert f'the column {name!r} is left out' in caplog.text


def test_inputs_and_labels_are_chosen(tmp_path, caplog):
  caplog.set_level(logging.INFO, 'haikd')
  (tmp_path / 'train.tsv').write_text(
      'id\tu\tv\ty\tz\n7\t1\t2\t0.5\t3\n8\t3\t4\t1.5\t1\n')
  path = tmp_path / 'train.tsv'
  columns = examples(opened(path, inputs=dict(tokens='id', x=('v', 'u')),
                            label='y'))
  assert 'inputs are tokens of id, x of v, u (config.' in caplog.text
  order = np.argsort(columns['tokens'])
  assert columns['tokens'].dtype.kind == 'i' and columns['tokens'].ndim == 1
  np.testing.assert_array_equal(columns['x'][order], [[2, 1], [4, 3]])
  np.testing.assert_array_equal(columns['label'][order], [0.5, 1.5])
  both = opened(path, inputs='u', label=('y', 'z'))
  assert both.num_classes is None
  assert sorted(map(tuple, examples(both)['label'])) == [(0.5, 3), (1.5, 1)]
  assert set(examples(opened(path, inputs='u', label=None))) == {'x'}


def test_weights_are_a_column_and_no_input(tmp_path):
  (tmp_path / 'train.csv').write_text('a,w,label\n1,0.5,0\n2,3,1\n')
  columns = examples(opened(tmp_path, weight='w'))
  assert columns['x'].shape == (2, 1)
  assert sorted(zip(columns['x'][:, 0], columns['weight'])) == [
      (1, 0.5), (2, 3)]
  with pytest.raises(checks.DataError, match="must have the column 'v'"):
    opened(tmp_path, weight='v')


def test_columns_of_0_and_1_are_labels_of_which_several_may_be_true(tmp_path):
  (tmp_path / 'train.csv').write_text('x,funny,sad\n1,0,1\n2,1,1\n')
  made = opened(tmp_path, inputs='x', label=('funny', 'sad'))
  assert made.num_classes == 2 and made.class_names == ('funny', 'sad')


def test_lists_in_json_are_arrays(tmp_path):
  rows = [dict(ids=[i, 2, 3], mask=[1, 1, i % 2], size=i, label=i % 2)
          for i in range(4)]
  (tmp_path / 'train.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  columns = examples(opened(tmp_path))
  assert {key: value.shape for key, value in columns.items()} == dict(
      ids=(4, 3), mask=(4, 3), x=(4, 1), label=(4,))
  assert columns['mask'].dtype == bool
  np.testing.assert_array_equal(columns['mask'][:, 2], columns['label'])


def test_lists_under_the_name_label_are_no_input_beside_other_labels(tmp_path):
  write(tmp_path, '{"a": 1, "label": [1, 2], "kind": 0}', 'train.jsonl')
  with pytest.raises(checks.ConfigError, match="got the column 'label' under "
                     "'label'. Write dict.the_label='label'"):
    opened(tmp_path, label='kind')
  columns = examples(opened(tmp_path, label='kind',
                            inputs=dict(the_label='label')))
  assert columns['the_label'].tolist() == [[1, 2]]
  assert columns['label'].tolist() == [0]


def write(path, text, name='train.csv'):
  (path / name).write_text(text)


@pytest.mark.parametrize('text, options, match', (
    ('a,label\n1,x\n,y\n', {}, "column 'a' must have a value in every row; got "
     "none in line 3 of '.*train.csv'. Fill it in"),
    ('a,label\n1,x\nnan,y\n', {}, 'got none in line 3'),
    ('a,label\n1,x\nn/a,y\n', {}, "column 'a' must hold numbers, .*got 'n/a' in"
     " line 3 .* by naming the others in config.data.options.inputs"),
    ('a,label\n1,x\n2,\n', {}, "column 'label' must have a value in every"),
    ('a,label\n1,x\n2,7\n', {}, "must hold only names of classes, or only "
     "numbers; got 'x' in line 2 of .* and '7' in line 3"),
    ('a,label\n1,0\n1_2,1\n', {}, "column 'a' must hold numbers, in every row "
     "as many; got '1_2' in line 3"),
    ('a,y,z\n1,0,x\n', dict(label=('y', 'z')), "column 'z' must hold numbers,"
     " in every row as many; got 'x' in line 2 of .* Write it as numbers, or "
     'name another in config.data.options.label'),
    ('a,klass\n1,x\n', {}, "line 2 of .* must have the column 'label'; got "
     "none of that name. Known: a, klass. config.data.options.inputs and lab"),
    ('a,label\n1,x\n', dict(inputs='aa'), "must have the column 'aa'; got "
     "none of that name. Did you mean 'a'"),
    ('a,label\n1,x\n', dict(inputs=3), "inputs must name a column, or differ"),
    ('a,label\n1,x\n', dict(inputs=dict(image='a')), "must have images under "
     "the key 'image', and nothing else; got 'a' under 'image'"),
    ('a,b,c\n1,2,0\n', dict(inputs=dict(x='a', weight='b'), label='c'),
     "must have other keys than label and weight, which are no inputs; got the "
     r"column 'b' under 'weight'. Write dict\(the_weight='b', …\), or name the "
     'column in config.data.options.weight'),
    ('a,label\n1,x\n', dict(channels=2), 'channels must be 3 for colour or 1'),
    ('a,label\n', {}, 'must have rows; got none'),
    ('label\nx\n', {}, "split 'train' must have columns beside"),
))
def test_what_cannot_be_right_is_refused(tmp_path, text, options, match):
  write(tmp_path, text)
  with pytest.raises((checks.ConfigError, checks.DataError), match=match):
    opened(tmp_path, **options)


@pytest.mark.parametrize('label', (['x', 'y'], dict(x=1), float('inf')))
def test_labels_in_json_are_texts_or_numbers(tmp_path, label):
  write(tmp_path, json.dumps(dict(a=1, label=label)), 'train.jsonl')
  with pytest.raises(checks.DataError, match="column 'label' must hold names "
                     "of classes or numbers, .*; got "
                     f"{re.escape(repr(label))} in line 1 of .* or name "
                     "another in config.data.options.label"):
    opened(tmp_path)


def test_numbers_are_whole_if_all_are_written_so(tmp_path):
  """2.0 is no class; -100 is none; 1e2 is 100; 2**60 is no exact float."""
  write(tmp_path, 'a,b,c,d,label\n1.0, 1 ,7,1,-100\n2.0,+2,1e2,1,1\n'
        f'2,-3,3,{2**60},0\n')
  columns = examples(opened(tmp_path, inputs=dict(zip('uvwz', 'abcd'))))
  assert {key: value.dtype.kind for key, value in columns.items()} == dict(
      u='f', v='i', w='f', z='f', label='i')
  assert sorted(columns['v']) == [-3, 1, 2]
  assert sorted(columns['w']) == [3, 7, 100]
  write(tmp_path, '{"a": 1, "label": 2.0}\n{"a": 2, "label": 1}', 'train.jsonl')
  (tmp_path / 'train.csv').unlink()
  assert opened(tmp_path).num_classes is None  # They are numbers to predict.


def test_lists_of_0_and_1_say_for_each_class_whether_it_is_true(tmp_path):
  rows = [dict(ids=[4, 5], a=i, label=[i, 1, 1]) for i in (0, 1)]
  write(tmp_path, '\n'.join(map(json.dumps, rows)), 'train.jsonl')
  for label, kind, count in (
      ('label', 'f', 3), ('ids', 'i', 6)):
    made = opened(tmp_path, label=label, inputs='a')
    assert made.num_classes == count
    assert examples(made)['label'].dtype.kind == kind
  # As long as an input: two classes for each of its positions.
  positions = [dict(ids=[4, 5, 6], label=[0, 1, 1])]
  write(tmp_path, '\n'.join(map(json.dumps, positions)), 'train.jsonl')
  made = opened(tmp_path)
  assert made.num_classes == 2 and made[0]['label'].dtype.kind == 'i'


@pytest.mark.parametrize('kind, module', (
    ('csv', text_columns), ('parquet', arrow_columns)))
def test_a_column_is_read_once_for_all_splits(
    tmp_path, monkeypatch, kind, module):
  for split in ('train', 'validation', 'test'):
    if kind == 'csv':
      write(tmp_path, 'a,b,label\n1,2,x\n3,4,y\n', f'{split}.csv')
    else:
      rows = pyarrow.table(dict(a=[1, 3], b=[2, 4], label=['x', 'y']))
      parquet.write_table(rows, tmp_path / f'{split}.parquet')
  read, seen, calls = module.read, [], []

  def recorded(files, requested, *others):
    seen.extend((files[0][0].name, name) for name in requested)
    calls.append(files[0][0].name)
    return read(files, requested, *others)

  monkeypatch.setattr(module, 'read', recorded)
  for split in ('train[:1]', 'validation', 'test', 'train[1:]'):
    made = opened(tmp_path, split)
    assert made.class_names == ('x', 'y') and made[0]['x'].shape == (2,)
  # All of one; the labels of the two others, and their inputs.
  assert len(calls) == 5
  assert len(seen) == len({*seen}) == 9
  # What has changed is read again.
  if kind == 'csv':
    write(tmp_path, 'a,b,label\n1,2,x\n3,4,zz\n')
    assert opened(tmp_path).class_names == ('x', 'y', 'zz')


def test_a_missing_split_names_those_that_are_there(iris):
  with pytest.raises(checks.DataError, match="got 'validation'. Known: README, "
                     "test, train. A part of one"):
    opened(iris, 'validation')
  with pytest.raises(checks.DataError, match='must have columns; got a text'):
    opened(iris, 'README')
  with pytest.raises(checks.DataError, match='must hold a table; got .*where'):
    opened(iris / 'nowhere')
  (iris / 'rows.xlsx').write_text('x')
  with pytest.raises(checks.DataError, match='which is a spreadsheet. Save it'):
    opened(iris / 'rows.xlsx')


CONFIG = '''
    from haikd import config as config_lib

    def get_config():
      config = config_lib.base()
      config.steps, config.batch_size, config.teacher.train.steps = 2, 8, 2
      config.data.name = 'table'
      config.teacher.options = config.student.options = dict(hidden=(4,))
      config.data.train, config.evaluation.split = 'train[:-8]', 'train[-8:]'
      config.evaluation.final = 'train[-8:]'
      return config
'''


@pytest.mark.parametrize('options, task, metric, inputs', (
    (dict(label='kind'), 'auto', 'accuracy', 'u, v'),
    # Prices are integers too.
    (dict(label='v', inputs='u'), 'regression', 'mse', 'u')))
def test_a_csv_by_the_command_line(
    run, tmp_path, options, task, metric, inputs):
  rows = [f'{i},{i % 3},{"ab"[i % 2]}' for i in range(40)]
  (tmp_path / 'rows.csv').write_text('\n'.join(['u,v,kind', *rows]))
  (tmp_path / 'table.py').write_text(textwrap.dedent(CONFIG))
  code, out, err = run(
      f'--config.data.source_dir={tmp_path}/rows.csv',
      f'--config.task={task}', f'--config.data.options={json.dumps(options)}',
      config='table.py')
  assert code == 0, err
  assert metric in out and f'inputs are x of {inputs} (config' in err


@pytest.mark.parametrize('rows, match', [
    ([{'a': [1, [2, 3]], 'label': 0}, {'a': [1, 2], 'label': 1}],
     "column 'a' must hold numbers, in every row as many; got .1, .2, 3.. in"),
    ([{'1' * 5000: 1, 'label': 0}, {'a': 2, 'label': 1}],
     "must have the column '1{199}…; got none of that name"),
    ([{'1' * 5000: 'x', 'label': 0}], "column '1{199}… must hold numbers"),
])
def test_messages_about_columns_are_short(tmp_path, rows, match):
  (tmp_path / 'train.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  with pytest.raises(checks.DataError, match=match) as caught:
    source.open_source('table', 'train', source_dir=str(tmp_path), options={})
  assert len(str(caught.value)) < 1000
