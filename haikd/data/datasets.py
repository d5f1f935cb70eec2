"""The image data sets that come with haikd."""

import functools
import hashlib
import pathlib
from typing import Optional

import numpy as np

from haikd.core import checks
from haikd.core import registry
from haikd.data import idx
from haikd.data import orders
from haikd.data import prepared
from haikd.data import reading as reading_lib
from haikd.data import source

_DIGITS_TEST, _DIGITS_VALIDATION = 600, 300
_FASHION_SHAPE = (28, 28)


@registry.register_dataset(tasks=('classification',))
def digits(split: str, *, data_dir: Optional[str] = None) -> source.Source:
  """Handwritten digits, 1,797 images of 8 x 8: 897 train, 300 + 600 held out.

  Args:
    split: 'train', 'validation' or 'test', each with the classes in the same
      proportion, or a tfds slice such as 'train[:50%]'.
    data_dir: the folder of prepared files; None for the default of tfds.

  Returns:
    A Source of `image`, `[8, 8, 1]` uint8, and `label`.

  Raises:
    DataError: an unknown split, scikit-learn is missing, or `data_dir` cannot
      be written.
  """
  from haikd.data import builders
  builder = prepared.prepare(
      functools.partial(builders.Digits, _read_digits, data_dir=data_dir))
  return prepared.open_split(builder, split)


def _read_digits():
  try:
    from sklearn import datasets
  except ImportError as err:
    raise checks.DataError(
        'scikit-learn must be installed, since it holds the images of digits; '
        f'got {checks.describe(err)}. Run `pip install haikd[demo]`, or '
        "`pip install -e '.[demo]'` in a checkout.") from err
  raw = datasets.load_digits()
  images = np.round(raw.images * (255 / 16)).astype(np.uint8)
  order = orders.stratified(raw.target)
  held_out = _DIGITS_TEST + _DIGITS_VALIDATION
  return _take(images, raw.target,
               train=order[held_out:],
               validation=order[_DIGITS_TEST:held_out],
               test=order[:_DIGITS_TEST])


@registry.register_dataset(tasks=('classification',))
def fashion(split: str,
            *,
            source_dir: Optional[str] = None,
            data_dir: Optional[str] = None,
            reading: reading_lib.Reading = reading_lib.Reading()
            ) -> source.Source:
  """Fashion-MNIST, 28 x 28: 54,000 train, 6,000 validation, 10,000 test.

  The validation split is a tenth of the training file, with the classes in the
  same proportion; the test split is the test file.

  Args:
    split: 'train', 'validation' or 'test', or a slice of one.
    source_dir: the folder of the four idx files, plain or .gz. It may be None
      once the data set is prepared in `data_dir`.
    data_dir: the folder of prepared files; None for the default of tfds.
    reading: how much memory each file may take.

  Returns:
    A Source of `image`, `[28, 28, 1]` uint8, and `label`.

  Raises:
    DataError: an unknown split; files that are missing, damaged, or not those
      that `data_dir` was prepared from; `data_dir` cannot be written.
  """
  from haikd.data import builders
  if source_dir is None:
    builder = builders.Fashion(dict, data_dir=data_dir)
    if not prepared.is_prepared(builder):
      raise checks.DataError(
          'config.data.source_dir must be the folder of the idx files, since '
          'nothing is prepared in data_dir; got source_dir=None, '
          f'data_dir={str(builder.data_dir)!r}. {idx.REMEDY}')
    return prepared.open_split(builder, split)
  folder = pathlib.Path(source_dir)
  digest = _digest(folder, idx.stamps(folder), reading)
  builder = prepared.prepare(
      functools.partial(
          builders.Fashion,
          functools.partial(_split_fashion, folder, reading),
          digest=digest,
          data_dir=data_dir))
  if builder.info.metadata['digest'] != digest:
    raise checks.DataError(
        'config.data.source_dir must hold the files that data_dir was prepared '
        f'from; got other files in source_dir={str(source_dir)!r}, '
        f'data_dir={str(builder.data_dir)!r}. Choose another data_dir, or '
        'delete that folder.')
  return prepared.open_split(builder, split)


@functools.lru_cache(maxsize=1)
def _digest(folder, stamps, reading):
  """Checks the files and returns a digest, once for all splits of a run."""
  del stamps  # Keys of the cache: a changed file is read again.
  digest = hashlib.sha256()
  for arrays in _read_fashion(folder, reading).values():
    for array in arrays:
      digest.update(array.tobytes())
  return digest.hexdigest()


def _read_fashion(folder, reading):
  files = {part: idx.read_pair(folder, part, reading) for part in idx.PARTS}
  for part, (images, labels) in files.items():
    if images.shape[1:] != _FASHION_SHAPE:
      raise checks.DataError(
          'config.data.source_dir must hold images of 28 x 28 pixels; got '
          f'{part}.shape={images.shape}. Register your own data set for images '
          'of another size.')
    if labels.size and labels.max() > 9:
      index = int(labels.argmax())
      raise checks.DataError(
          f'config.data.source_dir must hold labels below 10; got {part} label '
          f'{labels[index]} at index {index}. Fetch the files again.')
  return files


def _split_fashion(folder, reading):
  files = _read_fashion(folder, reading)
  images, labels = files['train']
  order = orders.stratified(labels)
  held_out = len(labels) // 10
  return dict(
      _take(images, labels, train=order[held_out:],
            validation=order[:held_out]),
      test=files['t10k'])


def _take(images, labels, **splits):
  return {
      split: (images[np.sort(indices)], labels[np.sort(indices)])
      for split, indices in splits.items()
  }
