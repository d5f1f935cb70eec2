"""From a name in a config to a data set, and what a user may register."""

import re

import numpy as np
import pytest

from haikd.core import checks
from haikd.core import registry
from haikd.data import arrays
from haikd.data import reader
from haikd.data import source
from haikd.data import spec as spec_lib


@pytest.fixture(autouse=True)
def temporary():
  with registry.datasets.temporary():
    yield


@pytest.fixture
def mine():
  """A user's registered data set, which records its arguments."""
  given = {}

  @registry.register_dataset()
  def my_data(split, *, source_dir=None, data_dir=None, size=3):
    given.update(split=split, source_dir=source_dir, data_dir=data_dir)
    return arrays.Arrays(dict(x=np.zeros(size)), num_classes=2)

  return given


def test_registered_function_gets_split_folders_and_options(mine):
  opened = source.open_source(
      'my_data', 'train', options=dict(size=5), source_dir='a', data_dir='b')
  assert len(opened) == 5
  assert mine == dict(split='train', source_dir='a', data_dir='b')


def test_option_that_is_not_taken_is_refused(mine):
  with pytest.raises(
      checks.ConfigError,
      match='config.data.options.sise must be an option of my_data; got '
      "'sise'. Did you mean 'size'"):
    source.open_source('my_data', 'train', options=dict(sise=5))


@pytest.mark.parametrize('name, field', source.RESERVED.items())
def test_arguments_that_haikd_passes_are_not_options(mine, name, field):
  with pytest.raises(
      checks.ConfigError,
      match=f"config.data.options.{name} must be left out; got 'x'. Set {field}"
      ' instead'):
    source.open_source('my_data', 'train', options={name: 'x'})


@pytest.mark.parametrize('folder', ['source_dir', 'data_dir'])
def test_folder_that_would_be_ignored_is_refused(folder):

  @registry.register_dataset()
  def plain(split):
    return arrays.Arrays(dict(x=np.zeros(3)))

  assert len(source.open_source('plain', 'train')) == 3
  with pytest.raises(
      checks.ConfigError,
      match=f"config.data.{folder} must be None for 'plain', which does not "
      "take it; got 'somewhere'"):
    source.open_source('plain', 'train', **{folder: 'somewhere'})


def test_function_may_take_any_option():
  given = {}

  @registry.register_dataset()
  def greedy(split, **options):
    given.update(options)
    return arrays.Arrays(dict(x=np.zeros(3)))

  source.open_source('greedy', 'train', options=dict(a=1), data_dir='d')
  assert given == dict(a=1, source_dir=None, data_dir='d')


@pytest.mark.parametrize('error', [
    FileNotFoundError(2, 'No such file', 'a.png'), KeyError('x'),
    RuntimeError(), TypeError('a\nb')])
def test_error_of_a_data_set_becomes_one_line(error):

  @registry.register_dataset()
  def breaks(split):
    raise error

  with pytest.raises(
      checks.DataError,
      match="^data set 'breaks' must open split 'train'; got "
      f'{type(error).__name__}: .* Fix its options or its code, or set split '
  ) as raised:
    source.open_source('breaks', 'train')
  assert raised.value.__cause__ is error and '\n' not in str(raised.value)


@pytest.mark.parametrize('value', ['x', 2.5, True, None])
def test_option_of_another_type_is_refused(value):
  with pytest.raises(
      checks.ConfigError,
      match=f'config.data.options.size must be of type int; got {value!r}'):
    source.open_source('synthetic', 'train', options=dict(size=value))


def test_annotation_may_be_a_string():

  @registry.register_dataset()
  def late(split, *, size: 'int' = 3):
    return arrays.Arrays(dict(x=np.zeros(size)))

  with pytest.raises(checks.ConfigError, match='size must be of type int'):
    source.open_source('late', 'train', options=dict(size='x'))


def test_empty_split_is_refused(mine):
  with pytest.raises(
      checks.DataError,
      match='config.data.train must name a split that has examples; got '
      "'train' of 'my_data', which has none"):
    source.open_source('my_data', 'train', options=dict(size=0),
                       field='config.data.train')


def test_unknown_split_is_named_by_its_field():
  with pytest.raises(
      checks.DataError,
      match="config.evaluation.final must name a split of the data set; got 'v'"
      '. Known: test, train, validation'):
    source.open_source('synthetic', 'v[:9]', field='config.evaluation.final')


@pytest.mark.parametrize('value, attribute', [
    (None, '__len__'), (iter('abc'), '__len__'), ({1}, '__getitem__')])
def test_anything_but_a_source_is_refused(value, attribute):
  registry.register_dataset('bad')(lambda split: value)
  with pytest.raises(checks.ConfigError,
                     match=f"'bad' must return a Source, with {attribute}"):
    source.open_source('bad', 'train')


def test_unknown_name_is_refused(mine):
  with pytest.raises(
      checks.ConfigError,
      match='config.data.name must be a registered data set or one of tfds; got'
      " 'my_dat'. Did you mean 'my_data'"):
    source.open_source('my_dat', 'train')


def test_arrays_hold_examples_of_every_column():
  made = arrays.Arrays(dict(x=[[1, 2], [3, 4]], label=[5, 6]), num_classes=7)
  assert len(made) == 2 and made.num_classes == 7
  assert made[1]['x'].tolist() == [3, 4] and made[1]['label'] == 6


@pytest.mark.parametrize('columns', [dict(x=[1, 2], label=[1]), {}])
def test_arrays_refuse_columns_that_do_not_match(columns):
  with pytest.raises(checks.DataError, match='the same number of examples'):
    arrays.Arrays(columns)


@pytest.mark.parametrize('part, expected', [
    ('', range(10)),
    ('[:3]', [0, 1, 2]),
    ('[7:]', [7, 8, 9]),
    ('[2:4]', [2, 3]),
    ('[-2:]', [8, 9]),
    ('[:20%]', [0, 1]),
    ('[80%:]', [8, 9]),
    ('[:99]', range(10)),
])
def test_slice_of_a_split_holds_its_examples(part, expected):
  with registry.datasets.temporary():
    registry.register_dataset('ten')(lambda split: arrays.Arrays(
        dict(x=np.arange(10)), num_classes=7))
    opened = source.open_source('ten', f'train{part}')
  assert [int(opened[i]['x']) for i in range(len(opened))] == list(expected)
  assert opened.num_classes == 7


def test_slice_reads_several_examples_at_once_if_its_data_set_does():
  calls = []

  class Batched(arrays.Arrays):

    def __getitems__(self, indices):
      calls.append(indices)
      return [self[i] for i in indices]

  with registry.datasets.temporary():
    registry.register_dataset('batched')(
        lambda split: Batched(dict(x=np.arange(10))))
    registry.register_dataset('single')(
        lambda split: arrays.Arrays(dict(x=np.arange(10))))
    batched, single = (
        reader.Reader(source.open_source(name, 'train[4:]'), 'train[4:]')
        for name in ('batched', 'single'))
  assert batched.gather([0, 3])['x'].tolist() == [4, 7]
  assert calls == [[4, 7]]
  # Otherwise an error names the example.
  with pytest.raises(checks.DataError, match='example 9 of'):
    single.gather([0, 9])


@pytest.mark.parametrize('split', ['train[3]', 'train[a:b]', 'train[:3', 'x[]'])
def test_malformed_slice_is_refused(split):
  with pytest.raises(
      checks.DataError,
      match='config.data.train must be the name of a split or a slice such as '
      r".*; got '" + re.escape(split)):
    source.open_source('digits', split, field='config.data.train')


def test_spec_depends_on_the_options():

  def spec(*, size=3):
    return spec_lib.Spec(
        dict(x=spec_lib.Column((size,), np.float32)), num_classes=2)

  @registry.register_dataset(spec=spec)
  def my_data(split, *, source_dir=None, size=3):
    raise AssertionError('The data must not be opened.')

  described = source.describe(
      'my_data', options=dict(size=5), source_dir='nowhere')
  assert described.columns['x'].shape == (5,) and described.num_classes == 2
  with pytest.raises(checks.ConfigError, match="Did you mean 'size'"):
    source.describe('my_data', options=dict(sise=5))


def test_data_set_may_be_registered_without_a_spec(mine):
  assert source.describe('my_data') is None


@pytest.mark.parametrize('spec, error', [
    (lambda: 1 / 0, 'ZeroDivisionError: division by zero'),
    (lambda: 3, 'TypeError: .*int'),
])
def test_error_of_a_spec_becomes_one_line(spec, error):
  registry.register_dataset('bad', spec=spec)(lambda split: None)
  with pytest.raises(checks.DataError, match=(
      "^the spec of data set 'bad' must describe an example; got "
      f'{error}. Fix its options or its code; --debug')):
    source.describe('bad')


def test_spec_of_an_unknown_name_is_refused(tmp_path):
  with pytest.raises(checks.ConfigError, match='must be a registered data set'):
    source.describe('no_such_data', data_dir=str(tmp_path))
