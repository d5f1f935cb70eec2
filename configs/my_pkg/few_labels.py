"""Fashion-MNIST with few labels: a user's data set, from outside haikd.

A mixture of its two kinds of images trains a student that has labels for some,
and a teacher for all.
"""

import numpy as np

import haikd
from haikd.data import datasets

_NO_LABEL = np.int64(-100)


class _Unlabelled:
  """A source whose labels are hidden."""

  def __init__(self, source):
    self._source = source
    self.num_classes = source.num_classes

  def __len__(self):
    return len(self._source)

  def __getitem__(self, index):
    return {**self._source[index], 'label': _NO_LABEL}


@haikd.register_dataset(tasks=('classification',))
def few_labels(split, *, labelled=None, source_dir=None, data_dir=None):
  """The first `labelled` training images; None for all, without labels."""
  if split == 'train' and labelled is not None:
    split = f'train[:{labelled}]'
  source = datasets.fashion(split, source_dir=source_dir, data_dir=data_dir)
  return _Unlabelled(source) if labelled is None else source
