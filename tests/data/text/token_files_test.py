"""Files of token ids: rows cut by hand, and files that cannot be used."""

import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import checks
from haikd.data import description
from haikd.data import pipeline
from haikd.data import reader
from haikd.data import source
from haikd.data.text import token_files

OPTIONS = dict(length=4, vocabulary=12)


def save(folder, ids, split='train', dtype=np.uint16):
  np.save(folder / f'{split}.npy', np.asarray(ids, dtype))


def open_split(folder, split='train', **options):
  return source.open_source(
      'tokens', split, options=OPTIONS | options, source_dir=str(folder))


@pytest.mark.parametrize('dtype', [np.uint16, np.uint32, np.int64, np.uint8])
def test_rows_are_cut_end_to_end_and_predict_the_next_token(tmp_path, dtype):
  save(tmp_path, [5, 6, 7, 8, 9, 10, 11, 0, 1, 2], dtype=dtype)
  opened = open_split(tmp_path)
  assert len(opened) == 2 and opened.num_classes == 12  # 1 and 2 are dropped.
  second = opened[1]
  assert second['tokens'].tolist() == [9, 10, 11, 0]
  assert second['label'].tolist() == [10, 11, 0, -100]
  assert second['mask'].tolist() == [True] * 4
  assert second['target_mask'].tolist() == [True, True, True, False]
  assert second['tokens'].dtype == second['label'].dtype == np.int32
  assert not isinstance(second['tokens'], np.memmap)


@pytest.mark.parametrize('part, first', [('train[1:]', 4), ('train[-2:]', 4),
                                         ('train[67%:]', 8)])
def test_splits_may_be_sliced(tmp_path, part, first):
  save(tmp_path, range(12))
  assert open_split(tmp_path, part)[0]['tokens'][0] == first


def test_file_is_mapped_and_large_split_is_not_cached(tmp_path, monkeypatch):
  save(tmp_path, np.arange(40) % 12)
  monkeypatch.setattr(reader, 'CACHE_BYTES', 399)  # 10 rows of 40 bytes.
  opened = open_split(tmp_path)
  assert isinstance(opened._ids, np.memmap)
  data = reader.Reader(opened, 'train')
  data.load()
  assert not data.cached
  assert data.gather([9, 0])['tokens'][:, 0].tolist() == [0, 0]
  monkeypatch.setattr(reader, 'CACHE_BYTES', 400)
  data.load()
  assert data.cached


def test_only_requested_rows_are_validated(tmp_path):
  save(tmp_path, [0, 1, 2, 3, 4, 5, 12, 7])
  data = reader.Reader(open_split(tmp_path), 'train')
  assert data.gather([0])['tokens'].tolist() == [[0, 1, 2, 3]]
  with pytest.raises(checks.DataError, match=(
      "train.npy' must hold ids from 0 to vocabulary - 1; got 12 at index 6, "
      'vocabulary=12. Set config.data.options.vocabulary')):
    data.gather([0, 1])


def test_negative_ids_are_refused(tmp_path):
  save(tmp_path, [0, 1, -1, 3], dtype=np.int32)
  with pytest.raises(checks.DataError, match='got -1 at index 2'):
    open_split(tmp_path)[0]


def test_missing_file_says_how_to_make_one(tmp_path):
  save(tmp_path, range(8), split='training')
  with pytest.raises(checks.DataError, match=(
      "Split 'train' must be a file of token ids; got .*train.npy', which is "
      "missing. Did you mean 'training'.*numpy.save")):
    open_split(tmp_path)


def test_missing_folder_is_refused_by_its_field():
  with pytest.raises(checks.DataError, match=(
      'config.data.source_dir must be the folder .* got None. Set config')):
    source.open_source('tokens', 'train', options=OPTIONS)


@pytest.mark.parametrize('array, text', [
    (np.zeros((2, 3), int), r'along one axis; got shape=\(2, 3\), dtype=int64'),
    (np.zeros(8), r'must hold integers .* got shape=\(8,\), dtype=float64'),
    (np.zeros(8, bool), 'must hold integers .* dtype=bool'),
    (np.zeros(3, int), 'must hold a row or more; got 3 tokens, length=4'),
    (np.array([None] * 9), 'must be an array that NumPy can map'),
])
def test_array_that_does_not_hold_ids_is_refused(tmp_path, array, text):
  np.save(tmp_path / 'train.npy', array)
  with pytest.raises(checks.DataError, match=text):
    open_split(tmp_path)


def test_file_without_an_array_is_refused(tmp_path):
  (tmp_path / 'train.npy').write_text('ids')
  with pytest.raises(checks.DataError, match='must be an array that NumPy can'):
    open_split(tmp_path)


@pytest.mark.parametrize('options, text', [
    (dict(length=1), 'config.data.options.length must be at least 2; got 1'),
    (dict(vocabulary=0),
     'config.data.options.vocabulary must be at least 1; got 0'),
])
def test_options_out_of_range_are_refused(tmp_path, options, text):
  for call in (open_split, lambda _, **options: token_files._spec(**options)):
    with pytest.raises(checks.ConfigError, match=text):
      call(tmp_path, **OPTIONS | options)


@pytest.mark.parametrize('missing', OPTIONS)
def test_options_without_a_default_are_required(missing):
  options = {key: OPTIONS[key] for key in OPTIONS if key != missing}
  with pytest.raises(checks.ConfigError, match=(
      f'config.data.options.{missing} must be given')):
    source.open_source('tokens', 'train', options=options)


def test_description_matches_the_data(tmp_path):
  config = config_lib.base()
  config.batch_size = 3
  config.data.name, config.data.options = 'tokens', OPTIONS
  described, num_classes = description.describe(config)  # Without a file.
  save(tmp_path, np.arange(40) % 12)
  config.data.source_dir = str(tmp_path)
  data = pipeline.build_data(config)
  assert described == data.spec and num_classes == data.num_classes == 12
  assert described.inputs.shape == (3, 4)
