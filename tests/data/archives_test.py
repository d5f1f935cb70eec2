"""Arrays in `.npz` files as a data set."""

import re

import numpy as np
import pytest

from haikd.core import checks
from haikd.data import source


def opened(path, split='train'):
  return source.open_source('npz', split, source_dir=path and str(path))


def test_archives_of_a_folder_are_splits_with_the_same_classes(tmp_path):
  np.savez(tmp_path / 'train.npz', x=np.eye(3), label=['b', 'a', 'b'])
  np.savez(tmp_path / 'test.npz', x=np.eye(3)[:1], label=['c'])
  train, test = opened(tmp_path), opened(tmp_path, 'test')
  assert train.class_names == test.class_names == ('a', 'b', 'c')
  assert [int(train[i]['label']) for i in range(3)] == [1, 0, 1]
  assert int(test[0]['label']) == 2
  np.testing.assert_array_equal(train[1]['x'], [0, 1, 0])


@pytest.mark.parametrize('arrays, match', (
    (dict(x=[1, 2], label=[0]), r"got .'x': 2, 'label': 1.. Give every array"),
    (dict(x=[1, 2], size=3), "'size': None"),
    (dict(x=np.array([dict()])), 'without pickles; got .*train.npz'),
    (None, 'must hold archives of arrays, without pickles'),
    ('none', 'must hold .npz files; got'),
    ('not given', 'must be a folder of archives, or an archive; got None'),
))
def test_what_is_no_archive_of_examples_is_refused(tmp_path, arrays, match):
  path = tmp_path / 'train.npz'
  if arrays is None:
    path.write_bytes(b'no archive')
  elif isinstance(arrays, dict):
    np.savez(path, **arrays)
  with pytest.raises((checks.ConfigError, checks.DataError), match=match):
    opened(None if arrays == 'not given' else tmp_path)


def test_an_archive_by_the_command_line(run, tmp_path):
  x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
  order = np.argsort(x.argmax(-1))  # By class, so that a slice lacks one.
  np.savez(tmp_path / 'mine.npz', x=x[order], label=x.argmax(-1)[order])
  code, out, err = run(
      '--config.data.name=npz', f'--config.data.source_dir={tmp_path}/mine.npz',
      '--config.data.options={}', '--config.data.train=train[:50%]',
      '--config.evaluation.split=train[80%:]',
      '--config.evaluation.final=train[80%:]', '--config.steps=2')
  assert code == 0, err
  assert 'accuracy' in out
  assert re.search(r"split 'train\[:50%\]' has no example of \d of 4 classes: "
                   '.*3. If its examples are sorted by class, shuffle', err)
