"""Data sets prepared by tensorflow-datasets, without TensorFlow.

They are stored as array_record and read by index. tfds is imported only when a
data set is opened, because importing it takes half a second.
"""

from collections.abc import Callable, Sequence
import contextlib
import io
import sys
from typing import Any, Optional

import numpy as np

from haikd.core import checks
from haikd.core import registry
from haikd.data import spec as spec_lib
from haikd.data import splits

FILE_FORMAT = 'array_record'


class Prepared:
  """A Source that reads one split of a prepared data set.

  Attributes:
    num_classes: V, of the feature `label`; None if it is no class label.
  """

  def __init__(self, source: Any, keys: Sequence[str],
               num_classes: Optional[int]):
    self.num_classes = num_classes
    self._source = source
    self._keys = keys

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._pick(self._source[index])

  def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
    """Returns several examples at once, which is faster than one by one."""
    return [self._pick(e) for e in self._source.__getitems__(indices)]

  def _pick(self, example):
    return {key: example[key] for key in self._keys}


def named(name: str, data_dir: Optional[str] = None) -> Callable[..., Prepared]:
  """Returns the function that opens a data set of tfds.

  Args:
    name: its name in tfds, such as 'mnist' or 'mnist:3.0.1'.
    data_dir: the folder of prepared files; None for the default of tfds.

  Returns:
    A function like those that are registered.

  Raises:
    ConfigError: a name that neither haikd nor tfds knows.
    DataError: a data set that is not prepared.
  """
  builder = _ready(name, data_dir)

  def tfds_data_set(split, *, data_dir=None, features=()):
    del data_dir  # The builder has it.
    return open_split(builder, split, features)

  return tfds_data_set


def described(name: str, data_dir: Optional[str] = None) -> Callable:
  """Returns the function that returns the Spec of a data set of tfds.

  Args:
    name: its name in tfds.
    data_dir: the folder of prepared files, which need not exist.

  Returns:
    A function `(**options) -> Spec` that takes the same options as the one that
    `named` returns.

  Raises:
    ConfigError: a name that neither haikd nor tfds knows.
  """
  known = _builder(name, data_dir).info.features

  def tfds_data_set(*, features=()):
    keys = _keys(known, features)
    columns = {
        key: spec_lib.Column(known[key].shape, known[key].np_dtype)
        for key in keys
    }
    return spec_lib.Spec(columns, _num_classes(known, keys))

  return tfds_data_set


def is_prepared(builder: Any) -> bool:
  """Returns whether a builder's files exist; unlike tfds, it never warns."""
  return (builder.data_path / 'dataset_info.json').exists()


def open_split(builder: Any,
               split: str,
               features: tuple[str, ...] = ()) -> Prepared:
  """Opens a split of a prepared data set.

  Args:
    builder: a tfds builder.
    split: one of its splits, or a slice such as 'train[:90%]'.
    features: the features to read; all numeric ones if empty.

  Returns:
    A Source.

  Raises:
    ConfigError: an unknown feature.
    DataError: an unknown split, or a file format without access by index.
  """
  known = builder.info.features
  keys = _keys(known, features)
  return Prepared(
      _data_source(builder, split), keys, _num_classes(known, keys))


def open_whole(name: str, split: str,
               data_dir: Optional[str] = None) -> tuple[Any, dict[str, Any]]:
  """Opens a split with all its features, numeric or not.

  Args:
    name: the name of the data set in tfds.
    split: one of its splits.
    data_dir: the folder of prepared files; None for the default of tfds.

  Returns:
    A sequence of examples as tfds returns them, and a dict, in types of JSON,
    that identifies them.

  Raises:
    ConfigError: a name that tfds does not know.
    DataError: a data set that is not prepared, an unknown split, or a file
      format without access by index.
  """
  builder = _ready(name, data_dir)
  source = _data_source(builder, split)
  info = builder.info.splits[split]
  return source, dict(name=builder.info.full_name, split=split,
                      sizes=list(info.shard_lengths), bytes=info.num_bytes)


def _ready(name, data_dir):
  """Returns the builder of a data set; refuses one that is not prepared."""
  builder = _builder(name, data_dir)
  if not is_prepared(builder):
    raise checks.DataError(
        f'config.data.data_dir must hold {name!r}, prepared by tfds; got '
        f'{str(builder.data_dir)!r}, which does not. Run '
        f'`tfds.builder({name!r}, data_dir=…).download_and_prepare('
        f'file_format={FILE_FORMAT!r})` once.')
  return builder


def _data_source(builder, split):
  try:
    return builder.as_data_source(split=split)
  except NotImplementedError as err:
    raise checks.DataError(
        f'{builder.name!r} must be prepared as {FILE_FORMAT}; got '
        f'{checks.describe(err)}. Prepare it again in another data_dir.'
    ) from err
  except ValueError as err:
    raise splits.UnknownSplitError(split, builder.info.splits) from err


def prepare(make_builder: Callable[[], Any]) -> Any:
  """Prepares a data set unless it is prepared already.

  The files appear all at once, by renaming a folder. If two processes prepare
  at the same time, the first to finish wins and the other reads its files.

  Args:
    make_builder: returns a tfds builder; called again if another process
      finished first.

  Returns:
    The builder of a prepared data set.

  Raises:
    DataError: `data_dir` cannot be written.
  """
  builder = make_builder()
  if is_prepared(builder):
    return builder
  try:
    with _quiet():
      builder.download_and_prepare(file_format=FILE_FORMAT)
  except OSError as err:
    other = make_builder()
    if is_prepared(other):
      return other
    raise checks.DataError(
        'config.data.data_dir must be a folder that can be written; got '
        f'{str(builder.data_dir)!r} ({checks.describe(err)}). Choose another.'
    ) from err
  return builder


@contextlib.contextmanager
def _quiet():
  """Silences tfds; its progress bar is shown on a terminal only."""
  import tensorflow_datasets as tfds
  progress = contextlib.ExitStack()
  if not (sys.stderr and sys.stderr.isatty()):
    tfds.disable_progress_bar()
    progress.callback(tfds.enable_progress_bar)
  with progress, contextlib.redirect_stdout(io.StringIO()):
    yield


def _builder(name, data_dir):
  import tensorflow_datasets as tfds
  try:
    return tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as err:
    raise checks.ConfigError(
        'config.data.name must be a registered data set or one of tfds; got '
        f'{name!r}. {checks.suggest(name, registry.datasets.names())} If a '
        'plugin registers it, add that to config.plugins.') from err
  except (ValueError, AssertionError) as err:
    raise checks.ConfigError(
        'config.data.name must name a data set as tfds does, '
        f'name/config:version; got {name!r} ({checks.describe(err)}).') from err


def _keys(known, requested):
  """Returns the features to read: those requested, or all numeric ones."""
  numeric = [key for key, feature in known.items() if _is_numeric(feature)]
  for key in requested:
    if key not in numeric:
      raise checks.ConfigError(
          'config.data.options.features must name features that hold numbers; '
          f'got {key!r}. {checks.suggest(key, numeric)}')
  return tuple(requested) or tuple(numeric)


def _num_classes(features, keys):
  label = features['label'] if 'label' in keys else None
  return getattr(label, 'num_classes', None)


def _is_numeric(feature):
  dtype = feature.np_dtype  # A dict for a nested feature.
  return not isinstance(dtype, dict) and np.dtype(dtype).kind in 'biuf'
