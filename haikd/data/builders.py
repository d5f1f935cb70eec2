"""tfds builders of the data sets that haikd prepares itself.

Importing this module imports tfds, so `haikd.data.datasets` imports it only
when a data set is opened.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

ImageSplits = Mapping[str, tuple[np.ndarray, np.ndarray]]


class _Images(tfds.core.GeneratorBasedBuilder):
  """Small images with labels, from arrays.

  Images are a Tensor feature, because the Image feature needs TensorFlow to
  encode an array.
  """

  SHAPE: tuple[int, int, int]
  NUM_CLASSES = 10

  # tfds would look here for checksums of downloads. There are no downloads, and
  # tfds finds the path with importlib_resources, which it does not install.
  code_path = None

  def __init__(self, read: Callable[[], ImageSplits], *, digest: str = '',
               **kwargs: Any):
    self._read = read
    self._digest = digest
    super().__init__(file_format='array_record', **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
        dict(
            image=tfds.features.Tensor(shape=self.SHAPE, dtype=np.uint8),
            label=tfds.features.ClassLabel(num_classes=self.NUM_CLASSES)))
    return tfds.core.DatasetInfo(
        builder=self,
        features=features,
        metadata=tfds.core.MetadataDict(digest=self._digest),
        disable_shuffling=True)  # Examples keep the order of their index.

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager  # Nothing is downloaded.
    return {
        split: self._generate_examples(images, labels)
        for split, (images, labels) in self._read().items()
    }

  def _generate_examples(self, images, labels) -> Iterator:
    for index, (image, label) in enumerate(zip(images, labels)):
      yield index, dict(image=image[..., np.newaxis], label=int(label))


# Not registered with tfds, whose list may hold data sets of the same names.
with tfds.core.registered.skip_registration():

  class Digits(_Images):
    """Handwritten digits of 8 x 8 pixels, from scikit-learn."""

    VERSION = tfds.core.Version('1.0.0')
    SHAPE = (8, 8, 1)

  class Fashion(_Images):
    """Fashion-MNIST, or any other data set in four such idx files."""

    VERSION = tfds.core.Version('1.0.0')
    SHAPE = (28, 28, 1)
