"""Data sets of tfds that somebody else has prepared."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from haikd.core import checks
from haikd.data import prepared

with tfds.core.registered.skip_registration():

  class Mixed(tfds.core.GeneratorBasedBuilder):
    """Numbers and text."""

    VERSION = tfds.core.Version('2.0.0')
    code_path = None

    def _info(self):
      features = dict(
          x=tfds.features.Tensor(shape=(2,), dtype=np.float32),
          note=tfds.features.Text(),
          label=tfds.features.ClassLabel(num_classes=4))
      return tfds.core.DatasetInfo(
          builder=self,
          features=tfds.features.FeaturesDict(features),
          disable_shuffling=True)

    def _split_generators(self, dl_manager):
      return dict(train=self._generate_examples(5))

    def _generate_examples(self, size):
      for i in range(size):
        yield i, dict(x=np.float32([i, -i]), note='text', label=i % 4)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('data'))
  prepared.prepare(lambda: Mixed(data_dir=folder, file_format='array_record'))
  return folder


@pytest.mark.parametrize('name', ['mixed', 'mixed:2.0.0'])
def test_named_reads_the_features_that_are_numbers(data_dir, name):
  opened = prepared.named(name, data_dir)('train')
  assert len(opened) == 5 and opened.num_classes == 4
  assert opened[3].keys() == {'x', 'label'}
  assert opened[3]['x'].tolist() == [3, -3] and opened[3]['label'] == 3
  assert [e['label'] for e in opened.__getitems__([4, 1])] == [0, 1]


def test_features_choose_what_is_read(data_dir):
  opened = prepared.named('mixed', data_dir)('train', features=('x',))
  assert opened[0].keys() == {'x'} and opened.num_classes is None


@pytest.mark.parametrize('feature', ['note', 'y'])
def test_features_must_be_numbers(data_dir, feature):
  with pytest.raises(checks.ConfigError, match=f"got '{feature}'.*label, x"):
    prepared.named('mixed', data_dir)('train', features=(feature,))


def test_splits_may_be_sliced(data_dir):
  opened = prepared.named('mixed', data_dir)('train[2:4]')
  assert [opened[i]['label'] for i in range(len(opened))] == [2, 3]


def test_unknown_split_lists_those_there_are(data_dir):
  with pytest.raises(
      checks.DataError,
      match="one that 'mixed' has; got split='trian'. Did you mean 'train'"):
    prepared.named('mixed', data_dir)('trian')


def test_unknown_name_suggests_a_registered_one(data_dir):
  with pytest.raises(checks.ConfigError,
                     match="got 'digit'. Did you mean 'digits'.*plugins"):
    prepared.named('digit', data_dir)


@pytest.mark.parametrize('name', ['mnist:9.9.9', 'mnist/none', 'not a name'])
def test_names_that_tfds_cannot_read_are_refused(data_dir, name):
  with pytest.raises(checks.ConfigError, match=f"version; got '{name}'"):
    prepared.named(name, data_dir)


def test_data_set_that_is_not_prepared_is_explained(data_dir):
  with pytest.raises(
      checks.DataError,
      match="'mnist' must be prepared in data_dir.*download_and_prepare"):
    prepared.named('mnist', data_dir)


class Builder:
  """A tfds builder in one of the states that are hard to bring about."""
  name = 'fake'

  def __init__(self, folder, error=None):
    self.data_path = self.data_dir = folder
    self.info = type('Info', (), dict(features={}, splits={}))
    self._error = error

  def download_and_prepare(self, file_format):
    raise self._error

  def as_data_source(self, split):
    raise self._error


def test_file_format_without_access_by_index_is_explained(tmp_path):
  builder = Builder(tmp_path, NotImplementedError('tfrecord'))
  with pytest.raises(checks.DataError,
                     match='prepared as array_record; got tfrecord'):
    prepared.open_split(builder, 'train')


def test_process_that_comes_second_reads_the_files_of_the_first(tmp_path):
  (tmp_path / 'done').mkdir()
  (tmp_path / 'done' / 'dataset_info.json').touch()
  builders = [Builder(tmp_path / 'absent', OSError('Directory not empty')),
              Builder(tmp_path / 'done')]
  second = builders[1]
  assert prepared.prepare(lambda: builders.pop(0)) is second


def test_what_is_prepared_is_not_prepared_again(tmp_path):
  (tmp_path / 'dataset_info.json').touch()
  builder = Builder(tmp_path, AssertionError('prepared twice'))
  assert prepared.prepare(lambda: builder) is builder


def test_disk_that_cannot_be_written_is_explained(tmp_path):
  with pytest.raises(checks.DataError,
                     match='a folder that can be written.*disk full'):
    prepared.prepare(lambda: Builder(tmp_path, OSError('disk full')))


def test_description_is_that_of_the_examples(data_dir):
  columns, num_classes = prepared.described('mixed', data_dir)()
  example = prepared.named('mixed', data_dir)('train')[0]
  assert num_classes == 4 and columns.keys() == example.keys()
  assert columns['x'].shape == (2,) and columns['label'].shape == ()
  columns, num_classes = prepared.described('mixed', data_dir)(features=('x',))
  assert columns.keys() == {'x'} and num_classes is None
