"""Examples that are left out: named, counted, and of no weight."""

import logging
import re

import numpy as np
import pytest

from haikd.core import checks
from haikd.data import arrays
from haikd.data import reader
from haikd.data import reading as reading_lib
from haikd.data.records import broken
from haikd.data.records import file_names
from haikd.data.records import rows

SKIP = reading_lib.Reading(on_error='skip', max_skipped=2)
# What is wrong with the example, and what the message must say of it.
FAULTS = {
    'raises': (RuntimeError('bits'), 'readable; got RuntimeError: bits'),
    'nan': (dict(x=np.float32([1, np.nan]), label=1), 'have a finite x'),
    'label': (dict(x=np.float32([1, 1]), label=7), 'label below num_classes=3'),
    'shape': (dict(x=np.float32([1]), label=1), 'keys, shapes and dtypes'),
    'keys': (dict(y=np.float32([1, 1]), label=1), 'keys, shapes and dtypes'),
    'kind': ([1, 2], 'be a dict'),
}


class Listed:
  """A user's Source, whose examples may be errors."""
  num_classes = 3

  def __init__(self, examples):
    self.examples = examples

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, index):
    example = self.examples[index]
    if isinstance(example, Exception):
      raise example
    return example


def examples(*bad, size=6):
  made = [dict(x=np.float32([i, i]), label=i % 3) for i in range(size)]
  for index, fault in bad:
    made[index] = FAULTS[fault][0]
  return Listed(made)


@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('index', [0, 2])
@pytest.mark.parametrize('load', [False, True])
def test_an_example_that_cannot_be_used_has_no_weight(
    caplog, fault, index, load):
  # Where the first has another shape, all others are the ones that differ.
  if index == 0 and fault in ('shape', 'keys'):
    pytest.skip('nothing says which shape is right')
  caplog.set_level(logging.INFO, 'haikd')
  data = reader.Reader(examples((index, fault)), 'train', reading=SKIP)
  if load:
    data.load()
  columns = data.gather(np.arange(6))
  expected = np.ones(6)
  expected[index] = 0
  assert columns['weight'].tolist() == expected.tolist()
  good = np.flatnonzero(expected)
  assert columns['x'][good, 0].tolist() == good.tolist()
  assert columns['label'][good].tolist() == (good % 3).tolist()
  # Its row holds another example.
  assert columns['x'][index].tolist() in columns['x'][good].tolist()
  said, = [x.getMessage() for x in caplog.records if 'skipped' in x.message]
  assert FAULTS[fault][1] in said and f'example {index} of' in said
  assert "split 'train': 1 skipped" in said
  # The next time it is known.
  assert data.gather([index, 1])['weight'].tolist() == [0, 1]
  assert data.gather([index])['weight'].tolist() == [0]


def test_without_faults_all_have_weight_1_or_their_own():
  data = reader.Reader(examples(), 'train', reading=SKIP)
  assert data.gather([3, 1])['weight'].tolist() == [1, 1]
  columns = dict(x=np.array([[1.0], [np.nan], [3.0]]),
                 label=np.array([0, 1, 2]), weight=np.array([0.5, 2.0, 3.0]))
  weighted = reader.Reader(arrays.Arrays(columns, num_classes=3), 'train',
                           reading=SKIP)
  weighted.load()
  assert weighted.gather([0, 1, 2])['weight'].tolist() == [0.5, 0, 3]


def test_more_than_the_limit_are_refused_with_the_first():
  data = reader.Reader(
      examples((1, 'nan'), (3, 'label'), (5, 'raises')), 'train', reading=SKIP)
  with pytest.raises(checks.DataError, match='at most 2 examples .*max_skipped'
                     '; got more than 2. The first one: example 1 of split'):
    data.gather(np.arange(6))


def test_a_split_without_a_good_example_is_refused():
  data = reader.Reader(
      examples((0, 'nan'), (1, 'nan'), size=2), 'train', reading=SKIP)
  with pytest.raises(checks.DataError, match='got none of 2 that can be used'):
    data.gather([0, 1])


def test_stopping_is_the_default_and_names_the_example():
  for index, fault in enumerate(FAULTS):
    data = reader.Reader(examples((index, fault), size=7), 'train')
    if index:
      with pytest.raises(checks.DataError, match=f'example {index} of split'):
        data.gather(np.arange(7))


BROKEN = {
    'x.jsonl': b'{"a": 1}\n{"a": \n{"a": "\xff"}\n{"a": 4}\n',
    'x.csv': b'a,b\n1,2\n1\n4,5\n',
    'x.json': b'[{"a": 1}, [2], {"a": 4}]',
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_broken_record_of_a_file_is_skipped_or_refused(
    tmp_path, caplog, name):
  caplog.set_level(logging.INFO, 'haikd')
  path = tmp_path / name
  path.write_bytes(BROKEN[name])
  read = lambda reading: [
      int(values['a']) for values, _, _ in rows.read(
          path, file_names.parse(path), broken=broken.Broken(
              "split 'train'", reading))]
  assert read(SKIP) == [1, 4]
  assert 'skipped so far of the records' in caplog.text
  assert '(config.data.on_error). The last one: ' in caplog.text
  with pytest.raises(checks.DataError,
                     match='line [23] of|element 2 .line 1. of'):
    read(reading_lib.Reading())
  with pytest.raises(checks.DataError, match='at most 0 broken records'):
    read(SKIP._replace(max_skipped=0))


@pytest.mark.parametrize('change, code, said', [
    ('on_error=skip', 0, "'train': 1 skipped so far .*example 7 of split"),
    ('on_error=ignore', 2, "config.data.on_error must be 'stop' or 'skip'")])
def test_a_run_goes_on_without_an_example(run, change, code, said):
  got, _, err = run('--config.plugins=("my_plugin",)', '--config.steps=2',
                    '--config.teacher.train.steps=1',
                    '--config.data.name=spoilt',
                    '--config.data.options={"what": "nan"}',
                    '--config.evaluation.split=train',
                    '--config.evaluation.final=train',
                    f'--config.data.{change}')
  assert got == code, err
  assert re.search(said, err)
