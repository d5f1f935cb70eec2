"""What a batch is like, said without the data if that can be."""

from typing import Optional

import ml_collections
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.data import pipeline
from haikd.data import reader as reader_lib
from haikd.data import source


def describe(
    config: ml_collections.ConfigDict
) -> tuple[base.Batch, Optional[int]]:
  """Says what a training batch is like, without the data if that can be.

  Args:
    config: a config made from `haikd.config.base()`.

  Returns:
    The global training batch as `jax.ShapeDtypeStruct`, and the number of
    classes V or None. One example is read of a data set that was registered
    without a `spec`.

  Raises:
    ConfigError: a config that cannot work, or images of different sizes that
      nothing makes one.
    DataError: a data set that has to be read and cannot be.
  """
  data = pipeline.build_data(config, process_index=0, process_count=1)
  described = source.describe(**data.splits.dataset)
  if described is None:
    return data.spec, data.num_classes
  columns = {}
  for key, column in described.columns.items():
    shape = column.shape
    if key == 'image':
      shape = tuple(config.data.image_size if n is None else n for n in shape)
    if None in shape:
      raise checks.ConfigError(
          f'description.describe: {key} must have one size in all examples of '
          f'{config.data.name!r}; got shape={shape}. Set config.data.image_size'
          ' for images, or leave it out with config.data.options.features.')
    columns[key] = np.zeros((1, *shape), column.dtype)
  example = source.Arrays(columns, num_classes=described.num_classes)
  reader = reader_lib.Reader(example, config.data.train)
  return data.spec_of(reader), described.num_classes
