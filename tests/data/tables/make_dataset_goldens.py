"""Writes the folders and files that `datasets` writes, for `table_test.py`.

  python tests/data/tables/make_dataset_goldens.py

It needs Hugging Face's `datasets`, of which haikd needs nothing; the committed
files are by datasets 5.2.0. The pixels of image i are all 10 i.
"""

import pathlib
import shutil

import datasets
import numpy as np

FOLDER = pathlib.Path(__file__).parent / 'golden'
NAMES = ['cat', 'ant', 'bee']  # Not by the alphabet: the order is theirs.


def rows(start, size):
  """Returns the columns of some rows."""
  numbers = range(start, start + size)
  return dict(
      image=[np.full((2, 3, 3), 10 * i, np.uint8) for i in numbers],
      label=[i % 3 for i in numbers],
      pair=[[i, i + 0.5] for i in numbers],
      grid=[[[i, 1, 2], [3, 4, 5]] for i in numbers],
      size=list(numbers))


def main():
  """Writes a DatasetDict, a data set alone, and a parquet file."""
  features = datasets.Features(
      image=datasets.Image(),
      label=datasets.ClassLabel(names=NAMES),
      pair=datasets.Sequence(datasets.Value('float32'), length=2),
      grid=datasets.Array2D((2, 3), 'int32'),
      size=datasets.Value('int64'))
  make = lambda start, size: datasets.Dataset.from_dict(
      rows(start, size), features)
  shutil.rmtree(FOLDER, ignore_errors=True)
  datasets.DatasetDict(
      train=make(0, 8), test=make(8, 3)).save_to_disk(FOLDER / 'saved')
  make(0, 5).save_to_disk(FOLDER / 'alone')
  make(0, 4).to_parquet(FOLDER / 'train.parquet')


if __name__ == '__main__':
  main()
