"""digits against scikit-learn itself; fashion against files written here."""

import builtins
import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets

from haikd.core import checks
from haikd.data import datasets

SPLITS = ('train', 'validation', 'test')


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('data'))


def read(opened):
  examples = opened.__getitems__(list(range(len(opened))))
  return (np.stack([e['image'] for e in examples]),
          np.array([e['label'] for e in examples]))


def keys(images, labels):
  return sorted((image.tobytes(), int(label))
                for image, label in zip(images, labels))


def test_digits_are_those_of_scikit_learn(data_dir):
  raw = sklearn_datasets.load_digits()
  parts = [read(datasets.digits(split, data_dir=data_dir)) for split in SPLITS]
  images = np.concatenate([part[0] for part in parts])
  labels = np.concatenate([part[1] for part in parts])
  assert images.dtype == np.uint8 and images.shape == (1797, 8, 8, 1)
  assert images.min() == 0 and images.max() == 255
  # 255 is not a multiple of 16, yet rounding back gives the 17 levels again.
  levels = np.round(images[..., 0] * (16 / 255)).astype(np.uint8)
  assert keys(levels, labels) == keys(raw.images.astype(np.uint8), raw.target)


def test_digits_have_the_classes_in_proportion(data_dir):
  every = np.bincount(sklearn_datasets.load_digits().target)
  for split, size in zip(SPLITS, (897, 300, 600)):
    _, labels = read(datasets.digits(split, data_dir=data_dir))
    assert len(labels) == size
    assert np.abs(np.bincount(labels) - every * (size / 1797)).max() <= 1


def test_digits_are_the_same_when_prepared_again(data_dir, tmp_path):
  for split in SPLITS:
    first = read(datasets.digits(split, data_dir=data_dir))
    second = read(datasets.digits(split, data_dir=str(tmp_path)))
    for a, b in zip(first, second):
      np.testing.assert_array_equal(a, b)


def test_digits_know_their_classes_and_slices(data_dir):
  opened = datasets.digits('train[:10]', data_dir=data_dir)
  assert (opened.num_classes, len(opened)) == (10, 10)


def test_unknown_split_of_digits_lists_the_known_ones(data_dir):
  with pytest.raises(
      checks.DataError,
      match="split must name a split of the data set; got 'valid'. Did you mean"
      r" 'validation'\? Known: test, train, validation"):
    datasets.digits('valid', data_dir=data_dir)


@pytest.fixture
def without_sklearn(monkeypatch):
  real = builtins.__import__

  def fake(name, *args, **kwargs):
    if name.partition('.')[0] == 'sklearn':
      raise ImportError("No module named 'sklearn'")
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', fake)


def test_missing_scikit_learn_is_explained(tmp_path, without_sklearn):
  with pytest.raises(
      checks.DataError,
      match='scikit-learn must be installed, .*; got ImportError: No module '
      "named 'sklearn'. "
      r"Run `pip install haikd\[demo\]`, or `pip install -e '.\[demo\]'"):
    datasets.digits('train', data_dir=str(tmp_path))


def test_prepared_digits_need_no_scikit_learn(data_dir, without_sklearn):
  assert len(datasets.digits('test', data_dir=data_dir)) == 600


def test_preparing_prints_nothing(tmp_path, capfd):
  datasets.digits('train', data_dir=str(tmp_path))
  assert capfd.readouterr() == ('', '')


def test_folder_that_cannot_be_written_is_refused(tmp_path):
  file = tmp_path / 'file'
  file.write_text('not a folder')
  with pytest.raises(checks.DataError,
                     match='config.data.data_dir must be a folder that can be'):
    datasets.digits('train', data_dir=str(file))


def test_processes_may_prepare_at_once(tmp_path):
  code = ('import sys\nfrom haikd.data import datasets\n'
          "print(len(datasets.digits('train', data_dir=sys.argv[1])))")
  running = [
      subprocess.Popen([sys.executable, '-c', code, str(tmp_path)],
                       stdout=subprocess.PIPE, text=True) for _ in range(2)
  ]
  assert [process.communicate()[0] for process in running] == ['897\n'] * 2


def test_interrupted_preparation_starts_again(tmp_path, monkeypatch):

  def killed():
    raise KeyboardInterrupt

  monkeypatch.setattr(datasets, '_read_digits', killed)
  with pytest.raises(KeyboardInterrupt):
    datasets.digits('train', data_dir=str(tmp_path))
  monkeypatch.undo()
  assert len(datasets.digits('train', data_dir=str(tmp_path))) == 897


def write_idx(path, array):
  header = bytes([0, 0, 8, array.ndim])
  sizes = np.array(array.shape, '>u4').tobytes()
  path.write_bytes(header + sizes + array.astype(np.uint8).tobytes())


def write_fashion(folder, *, train=40, test=20, side=28, seed=0):
  """Writes the four files; an image begins with its index and its label."""
  folder.mkdir(exist_ok=True)
  written = {}
  for part, size in (('train', train), ('t10k', test)):
    images = np.random.RandomState(seed).randint(0, 256, (size, side, side))
    labels = np.arange(size) % 10
    images[:, 0, 0], images[:, 0, 1] = np.arange(size), labels
    write_idx(folder / f'{part}-images-idx3-ubyte', images)
    write_idx(folder / f'{part}-labels-idx1-ubyte', labels)
    written[part] = images.astype(np.uint8), labels
  return written


def fashion(tmp_path, split='train', raw='raw', prepared='prepared'):
  return datasets.fashion(
      split,
      source_dir=None if raw is None else str(tmp_path / raw),
      data_dir=str(tmp_path / prepared))


def test_fashion_holds_out_a_tenth_of_the_training_file(tmp_path):
  written = write_fashion(tmp_path / 'raw')
  parts = {split: read(fashion(tmp_path, split)) for split in SPLITS}
  sizes = {split: len(labels) for split, (_, labels) in parts.items()}
  assert sizes == dict(train=36, validation=4, test=20)
  np.testing.assert_array_equal(parts['test'][0][..., 0], written['t10k'][0])
  both = [np.concatenate([parts['train'][i], parts['validation'][i]])
          for i in (0, 1)]
  assert keys(*both) == keys(written['train'][0][..., np.newaxis],
                             written['train'][1])
  # Of four examples of each class, no class loses two.
  assert np.bincount(parts['train'][1], minlength=10).min() == 3


def test_fashion_needs_no_files_once_prepared(tmp_path):
  write_fashion(tmp_path / 'raw')
  before = read(fashion(tmp_path))
  after = read(fashion(tmp_path, raw=None))
  np.testing.assert_array_equal(before[0], after[0])


def test_fashion_without_files_is_explained(tmp_path):
  with pytest.raises(
      checks.DataError,
      match='config.data.source_dir must be the folder of the idx files.*got '
      'source_dir=None.*apt-get install'):
    fashion(tmp_path, raw=None)


def test_fashion_refuses_a_missing_folder(tmp_path):
  with pytest.raises(
      checks.DataError,
      match="config.data.source_dir must hold train-images.*got '.*nowhere'"):
    fashion(tmp_path, raw='nowhere')


def test_fashion_refuses_files_that_were_not_prepared(tmp_path):
  write_fashion(tmp_path / 'raw')
  fashion(tmp_path)
  write_fashion(tmp_path / 'raw', seed=1)
  with pytest.raises(
      checks.DataError,
      match='config.data.source_dir must hold the files that data_dir was '
      'prepared from; got other files .*another data_dir'):
    fashion(tmp_path)
  assert len(fashion(tmp_path, prepared='elsewhere')) == 36


def test_fashion_refuses_damaged_files_and_leaves_nothing(tmp_path):
  write_fashion(tmp_path / 'raw')
  path = tmp_path / 'raw' / 't10k-images-idx3-ubyte'
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(checks.DataError,
                     match='as its header says; got 15679 values'):
    fashion(tmp_path)
  with pytest.raises(checks.DataError, match='nothing is prepared'):
    fashion(tmp_path, raw=None)


def test_fashion_refuses_images_of_another_size(tmp_path):
  write_fashion(tmp_path / 'raw', side=8)
  with pytest.raises(
      checks.DataError,
      match=r'images of 28 x 28 pixels; got train.shape=\(40, 8, 8\)'):
    fashion(tmp_path)


def test_fashion_refuses_labels_out_of_range(tmp_path):
  write_fashion(tmp_path / 'raw')
  labels = np.zeros(20)
  labels[3] = 10
  write_idx(tmp_path / 'raw' / 't10k-labels-idx1-ubyte', labels)
  with pytest.raises(checks.DataError,
                     match='labels below 10; got t10k label 10 at index 3'):
    fashion(tmp_path)
