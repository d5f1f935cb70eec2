"""Files of token ids: rows cut by hand, and files that cannot be used."""

import struct

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
      "train.npy' must hold ids from 0 to vocabulary - 1; got 12 at index 6 of "
      'uint16, vocabulary=12. Set config.data.options.vocabulary')):
    data.gather([0, 1])


def test_negative_ids_are_refused(tmp_path):
  save(tmp_path, [0, 1, -1, 3], dtype=np.int32)
  with pytest.raises(checks.DataError, match='got -1 at index 2'):
    open_split(tmp_path)[0]


def test_missing_file_says_how_to_make_one(tmp_path):
  save(tmp_path, range(8), split='training')
  with pytest.raises(checks.DataError, match=(
      "Split 'train' must be a file of token ids, train.npy or train.bin; got "
      "neither in .*. Did you mean 'training'.*numpy.save")):
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
    (dict(dtype='int32'), 'dtype must be None, .*; got .int32.. Did you mean'),
    (dict(documents='join'), "documents must be 'joined' or 'apart'; got 'jo"),
])
def test_options_out_of_range_are_refused(tmp_path, options, text):
  for call in (open_split, lambda _, **options: token_files._spec(**options)):
    with pytest.raises(checks.ConfigError, match=text):
      call(tmp_path, **OPTIONS | options)


def write_raw(folder, ids, dtype='<u2'):
  """As nanoGPT: `np.array(ids, dtype=np.uint16).tofile(…)`."""
  np.array(ids, dtype).tofile(folder / 'train.bin')


def write_llm_c(folder, ids, magic=20240520, version=1, dtype='<u2', *,
                count=None):
  """As `write_datafile` in llm.c's dev/data/data_common.py."""
  header = np.zeros(256, np.int32)
  header[:3] = magic, version, len(ids) if count is None else count
  with open(folder / 'train.bin', 'wb') as file:
    file.write(header.tobytes())
    file.write(np.array(ids, dtype).tobytes())


def write_megatron(folder, documents, code=8, dtype='<u2', *, version=1,
                   sizes=None, bounds=None):
  """As `_IndexWriter` in Megatron's core/datasets/indexed_dataset.py.

  Each document is a sequence.
  """
  np.concatenate([np.array(ids, dtype) for ids in documents]).tofile(
      folder / 'train.bin')
  lengths = [len(ids) for ids in documents] if sizes is None else sizes
  pointers = np.cumsum([0, *lengths[:-1]]) * np.dtype(dtype).itemsize
  bounds = range(len(lengths) + 1) if bounds is None else bounds
  with open(folder / 'train.idx', 'wb') as file:
    file.write(b'MMIDIDX\x00\x00')
    file.write(struct.pack('<Q', version))
    file.write(struct.pack('<B', code))
    file.write(struct.pack('<Q', len(lengths)))
    file.write(struct.pack('<Q', len(bounds)))
    file.write(np.array(lengths, np.int32).tobytes())
    file.write(pointers.astype(np.int64).tobytes())
    file.write(np.array(bounds, np.int64).tobytes())


@pytest.mark.parametrize('write, options', [
    (write_raw, dict(dtype='uint16')),
    (lambda folder, ids: write_raw(folder, ids, '<u4'), dict(dtype='uint32')),
    (write_llm_c, {}),
    (lambda folder, ids: write_llm_c(folder, ids, 20240801, 7, '<u4'), {}),
    (write_llm_c, dict(dtype='uint16')),
    (lambda folder, ids: write_megatron(folder, [ids]), {}),
    (lambda folder, ids: write_megatron(folder, [ids], 4, '<i4'), {}),
])
def test_ids_of_other_programs_are_those_of_an_array(tmp_path, write, options):
  ids = np.random.default_rng(0).integers(0, 12, 300)
  save(tmp_path, ids, 'plain')
  write(tmp_path, ids)
  opened, plain = open_split(tmp_path, **options), open_split(tmp_path, 'plain')
  assert len(opened) == len(plain) == 75
  for index in (0, 40, 74):
    row, expected = opened[index], plain[index]
    assert row.keys() == expected.keys()
    for key, value in expected.items():
      np.testing.assert_array_equal(row[key], value)
      assert row[key].dtype == value.dtype


def test_documents_of_megatron_may_be_kept_apart(tmp_path):
  # Sequences of 3, 2, 0 and 5 tokens; the second document is two of them.
  write_megatron(tmp_path, [[1, 2, 3], [4, 5], [], [6, 7, 8, 9, 10]],
                 bounds=[0, 1, 3, 4])
  opened = open_split(tmp_path, length=5, documents='apart')
  rows = [{key: value.tolist() for key, value in opened[i].items()}
          for i in range(2)]
  assert rows[0] == dict(
      tokens=[1, 2, 3, 4, 5], mask=[True] * 5, segments=[1, 1, 1, 2, 2],
      positions=[0, 1, 2, 0, 1], label=[2, 3, -100, 5, -100],
      target_mask=[True, True, False, True, False])
  assert rows[1]['segments'] == [1] * 5
  assert rows[1]['label'] == [7, 8, 9, 10, -100]
  joined = open_split(tmp_path, length=5)[0]
  assert joined['label'].tolist() == [2, 3, 4, 5, -100]
  spec = token_files._spec(**OPTIONS | dict(length=5, documents='apart'))
  assert {key: (column.shape, np.dtype(column.dtype))
          for key, column in spec.columns.items()} == {
              key: (value.shape, value.dtype)
              for key, value in opened[0].items()}


def test_documents_need_an_index_to_be_kept_apart(tmp_path):
  save(tmp_path, range(8))
  with pytest.raises(checks.ConfigError, match="documents must be 'joined' for "
                     "a file that does not say.*Megatron's .idx"):
    open_split(tmp_path, documents='apart')


def write_index(folder, content):
  write_raw(folder, range(8))
  (folder / 'train.idx').write_bytes(content)


MANY = np.random.default_rng(0).integers(0, 300, 500)


@pytest.mark.parametrize('write, options, text', [
    (lambda f: write_raw(f, range(8)), {},
     "dtype must be given, since a .bin file.*nanoGPT writes 'uint16'"),
    (lambda f: (f / 'train.bin').write_bytes(b'abc'), dict(dtype='uint16'),
     'must hold whole ids of 2 bytes; got 3 bytes'),
    (lambda f: (f / 'train.bin').touch(), dict(dtype='uint16'),
     'must hold whole ids of 2 bytes; got 0 bytes'),
    (lambda f: write_raw(f, MANY, '<u4'), dict(dtype='uint16'),
     "dtype must be that of the ids.*every second id .* Set it to 'uint32'"),
    (lambda f: write_raw(f, MANY), dict(dtype='uint32', vocabulary=300),
     'must hold ids from 0 to vocabulary - 1.*dtype to that of the file'),
    (lambda f: write_llm_c(f, range(8)), dict(dtype='uint32'),
     "be the dtype that the file says; got 'uint32' and uint16"),
    (lambda f: write_llm_c(f, range(8), count=9), {},
     'as many tokens as its header says; got 8 where it says 9'),
    (lambda f: write_megatron(f, [range(8)], version=2), {},
     "train.idx' must be the index of 'train.bin'.*version 2 and dtype code 8"),
    (lambda f: write_megatron(f, [range(8)], code=6), {}, 'dtype code 6'),
    (lambda f: write_megatron(f, [range(8)], sizes=[7]), {},
     "got 7 tokens, where 'train.bin' holds 8"),
    (lambda f: write_megatron(f, [range(8)], bounds=[0, 2]), {},
     'bounds of documents out of order'),
    (lambda f: write_index(f, b''), {}, 'got a file that begins otherwise'),
    (lambda f: write_index(f, b'x' * 99), {}, 'that begins otherwise'),
    (lambda f: write_index(f, b'MMIDIDX\0\0' + struct.pack(
        '<QBQQ', 1, 8, 5, 5)), {}, '34 bytes for 5 sequences and 5 bounds'),
    (lambda f: (write_raw(f, range(8)), save(f, range(8))),
     dict(dtype='uint16'),
     'must be one file of token ids; got train.npy and train.bin'),
])
def test_binary_file_that_would_be_misread_is_refused(tmp_path, write, options,
                                                      text):
  write(tmp_path)
  with pytest.raises(ValueError, match=text):
    open_split(tmp_path, **options)[0]


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
  described, num_classes, _ = description.describe(config)  # Without a file.
  save(tmp_path, np.arange(40) % 12)
  config.data.source_dir = str(tmp_path)
  data = pipeline.build_data(config)
  assert described == data.spec and num_classes == data.num_classes == 12
  assert described.inputs.shape == (3, 4)
