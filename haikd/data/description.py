"""The shapes and dtypes of a batch, known without the data where possible."""

from typing import NamedTuple, Optional

import ml_collections
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import tasks
from haikd.data import arrays
from haikd.data import pipeline
from haikd.data import reader as reader_lib
from haikd.data import spec as spec_lib


class Description(NamedTuple):
  """What is known of a data set before it is read.

  Attributes:
    spec: the global training batch as `jax.ShapeDtypeStruct`.
    num_classes: V, or None.
    task: what labels are, one of `tasks.OF_LABELS`; None without labels, and
      where `config.task` leaves it to labels that were not read.
  """

  spec: base.Batch
  num_classes: Optional[int]
  task: Optional[str]


def describe(config: ml_collections.ConfigDict) -> Description:
  """Describes the data of training.

  Nothing is read of a data set of tfds, or of one registered with a `spec`. Of
  any other one example is read.

  Args:
    config: a config made from `haikd.config.base()`.

  Returns:
    A Description.

  Raises:
    ConfigError: a config that cannot work, or images of different sizes without
      `config.data.image_size`.
    DataError: a data set that must be read and cannot be.
  """
  data = pipeline.build_data(config, process_index=0, process_count=1)
  spec = data.splits.describe()
  if spec is None:
    return Description(data.spec, data.num_classes, data.task)
  # An example of zeros goes through the pipeline in place of a real one.
  columns = {
      key: np.zeros((1, *_shape(key, column, config)), column.dtype)
      for key, column in spec.columns.items()
  }
  example = arrays.Arrays(columns, num_classes=spec.num_classes)
  reader = reader_lib.Reader(example, config.data.train, config.task)
  known_task = None if config.task == tasks.AUTO else config.task
  return Description(data.spec_of(reader), reader.num_classes, known_task)


def _shape(key: str, column: spec_lib.Column,
           config: ml_collections.ConfigDict) -> tuple[int, ...]:
  """Returns the shape of one example's column, where every size is known."""
  free = config.data.image_size if key == 'image' else None
  shape = [free if size is None else size for size in column.shape]
  known = tuple(size for size in shape if size is not None)
  if len(known) != len(shape):
    raise checks.ConfigError(
        f'{key} must have one size in all examples of {config.data.name!r}; got'
        f' shape={tuple(shape)}. Set config.data.image_size for images, or '
        f'leave {key} out with config.data.options.features.')
  return known
