"""Synthetic data: learnable and deterministic."""

import numpy as np
import pytest

from haikd.core import checks
from haikd.data import synthetic


@pytest.mark.parametrize('kind', ['images', 'tokens'])
def test_data_is_the_same_every_time_and_differs_between_splits(kind):
  first, again, other = (
      synthetic.synthetic(split, kind=kind).columns
      for split in ('train', 'train', 'test'))
  for key in first:
    np.testing.assert_array_equal(first[key], again[key])
  assert any((first[key] != other[key]).any() for key in first)


def test_images_have_the_requested_shape():
  made = synthetic.synthetic('train', size=7, num_classes=3, shape=(4, 5, 2))
  assert made.columns['image'].shape == (7, 4, 5, 2)
  assert made.columns['image'].dtype == np.uint8
  assert np.bincount(made.columns['label']).tolist() == [3, 2, 2]
  assert made.num_classes == 3


def test_images_of_other_splits_show_the_same_prototypes():
  train, test = (synthetic.synthetic(split, size=200).columns
                 for split in ('train', 'test'))
  means = [train['image'][train['label'] == c].mean(0) for c in range(10)]
  distance = [((test['image'] - mean)**2).sum((1, 2, 3)) for mean in means]
  assert (np.argmin(distance, 0) == test['label']).all()


def test_tokens_follow_their_rule_and_are_ragged():
  made = synthetic.synthetic('train', kind='tokens', size=50, length=6,
                             vocabulary=11)
  tokens, mask, label, target_mask = (
      made.columns[key] for key in ('tokens', 'mask', 'label', 'target_mask'))
  assert made.num_classes == 11
  assert set(mask.sum(1)) == {2, 3, 4, 5, 6}
  np.testing.assert_array_equal(target_mask.sum(1), mask.sum(1) - 1)
  np.testing.assert_array_equal(label[target_mask],
                                (3 * tokens[target_mask] + 1) % 11)
  assert (label[~target_mask] == -100).all()


@pytest.mark.parametrize('options, message', [
    (dict(kind='image'),
     "kind must be a known kind of data; got 'image'. Did you mean 'images'"),
    (dict(num_classes=0), 'num_classes must be at least 1; got 0'),
    (dict(length=1), 'length must be at least 2; got 1'),
    (dict(vocabulary=1), 'vocabulary must be at least 2; got 1'),
    (dict(size=-1), 'size must be at least 0; got -1'),
    (dict(shape=()), r'shape must be positive numbers, .*; got \(\)'),
    (dict(shape=(4, 0, 1)), 'shape must be positive numbers'),
])
def test_options_out_of_range_are_refused(options, message):
  with pytest.raises(checks.ConfigError,
                     match=f'config.data.options.{message}'):
    synthetic.synthetic('train', **options)


def test_unknown_split_is_refused():
  with pytest.raises(checks.DataError, match='Known: test, train, validation'):
    synthetic.synthetic('valid')
