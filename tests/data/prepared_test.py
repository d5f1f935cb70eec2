"""Data sets that tfds has prepared."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from haikd.core import checks
from haikd.data import prepared
from haikd.data import spec as spec_lib

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
def test_named_reads_the_numeric_features(data_dir, name):
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
  with pytest.raises(
      checks.ConfigError,
      match='config.data.options.features must name features that hold numbers;'
      f" got '{feature}'.*Known: label, x"):
    prepared.named('mixed', data_dir)('train', features=(feature,))


def test_splits_may_be_sliced(data_dir):
  opened = prepared.named('mixed', data_dir)('train[2:4]')
  assert [opened[i]['label'] for i in range(len(opened))] == [2, 3]


def test_unknown_split_lists_the_known_ones(data_dir):
  with pytest.raises(
      checks.DataError,
      match='split must name a split of the data set; got '
      "'trian'. Did you mean 'train'"):
    prepared.named('mixed', data_dir)('trian')


def test_unknown_name_suggests_a_registered_one(data_dir):
  with pytest.raises(checks.ConfigError,
                     match='config.data.name must be a registered data set or '
                     "one of tfds; got 'digit'. Did you mean 'digits'.*plugin"):
    prepared.named('digit', data_dir)


@pytest.mark.parametrize('name', ['mnist:9.9.9', 'mnist/none', 'not a name'])
def test_names_that_tfds_cannot_parse_are_refused(data_dir, name):
  with pytest.raises(
      checks.ConfigError,
      match=f"config.data.name must name .* name/config:version; got '{name}'"):
    prepared.named(name, data_dir)


def test_data_set_that_is_not_prepared_is_explained(data_dir):
  with pytest.raises(
      checks.DataError,
      match="config.data.data_dir must hold 'mnist', prepared by tfds; got "
      f"'{data_dir}.*', which does not.*download_and_prepare"):
    prepared.named('mnist', data_dir)


class Builder:
  """A tfds builder in a state that is hard to reproduce."""
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
                     match="'fake' must be prepared as array_record; got "
                     'NotImplementedError: tfrecord. Prepare'):
    prepared.open_split(builder, 'train')


def test_second_process_to_finish_reads_the_files_of_the_first(tmp_path):
  (tmp_path / 'done').mkdir()
  (tmp_path / 'done' / 'dataset_info.json').touch()
  builders = [Builder(tmp_path / 'absent', OSError('Directory not empty')),
              Builder(tmp_path / 'done')]
  second = builders[1]
  assert prepared.prepare(lambda: builders.pop(0)) is second


def test_prepared_data_set_is_not_prepared_again(tmp_path):
  (tmp_path / 'dataset_info.json').touch()
  builder = Builder(tmp_path, AssertionError('prepared twice'))
  assert prepared.prepare(lambda: builder) is builder


def test_disk_that_cannot_be_written_is_explained(tmp_path):
  with pytest.raises(checks.DataError,
                     match='config.data.data_dir must be a folder that can be '
                     'written; got .*disk full'):
    prepared.prepare(lambda: Builder(tmp_path, OSError('disk full')))


def test_spec_is_that_of_the_examples(data_dir):
  spec = prepared.described('mixed', data_dir)()
  example = prepared.named('mixed', data_dir)('train')[0]
  assert spec.num_classes == 4 and spec.columns.keys() == example.keys()
  assert spec.columns['x'] == spec_lib.Column((2,), np.float32)
  assert spec.columns['label'].shape == ()
  spec = prepared.described('mixed', data_dir)(features=('x',))
  assert spec.columns.keys() == {'x'} and spec.num_classes is None


def test_spec_leaves_the_size_of_images_free(tmp_path):
  spec = prepared.described('imagenet2012', str(tmp_path))()
  assert spec.columns['image'] == spec_lib.Column((None, None, 3), np.uint8)
  assert spec.num_classes == 1000
