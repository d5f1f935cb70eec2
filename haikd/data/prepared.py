"""Data sets prepared by tensorflow-datasets, without TensorFlow.

They are written as array_record and read by index. Nothing is imported from
tfds before a data set is opened: that takes half a second.
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

FILE_FORMAT = 'array_record'


class Prepared:
  """A Source that reads one split of a prepared data set.

  Attributes:
    num_classes: of the feature `label`; None if it has no such thing.
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
    """Returns several examples, which is faster than one by one."""
    return [self._pick(e) for e in self._source.__getitems__(indices)]

  def _pick(self, example):
    return {key: example[key] for key in self._keys}


def named(name: str, data_dir: Optional[str] = None) -> Callable[..., Prepared]:
  """Returns the function that opens a data set of tfds.

  Args:
    name: what tfds calls it, such as 'mnist' or 'mnist:3.0.1'.
    data_dir: the folder of prepared files; None for that of tfds.

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
  """Returns the function that says what examples of a data set are like.

  Args:
    name: what tfds calls it.
    data_dir: the folder of prepared files, which need not be there.

  Returns:
    A function with the options of that which `named` returns. It returns
    `{key: shape and dtype}`, with None for sizes that differ from example to
    example, and the number of classes or None.

  Raises:
    ConfigError: a name that neither haikd nor tfds knows.
  """
  features_of = _builder(name, data_dir).info.features

  def tfds_data_set(*, features=()):
    wanted = _wanted(features_of, features)
    columns = {
        key: spec_lib.Column(features_of[key].shape, features_of[key].np_dtype)
        for key in wanted
    }
    return columns, _num_classes(features_of, wanted)

  return tfds_data_set


def is_prepared(builder: Any) -> bool:
  """Returns whether a builder's files are there; tfds's own check warns."""
  return (builder.data_path / 'dataset_info.json').exists()


def open_split(builder: Any,
               split: str,
               features: tuple[str, ...] = ()) -> Prepared:
  """Opens a split of a data set that is prepared.

  Args:
    builder: a tfds builder.
    split: one of its splits, or a slice such as 'train[:90%]'.
    features: the features to read; all that are numbers if empty.

  Returns:
    A Source.

  Raises:
    ConfigError: an unknown feature.
    DataError: an unknown split, or a file format without access by index.
  """
  wanted = _wanted(builder.info.features, features)
  source = _data_source(builder, split)
  return Prepared(source, wanted, _num_classes(builder.info.features, wanted))


def open_whole(name: str, split: str,
               data_dir: Optional[str] = None) -> tuple[Any, dict[str, Any]]:
  """Opens a split with all its features, those that are no numbers too.

  Args:
    name: what tfds calls the data set.
    split: one of its splits.
    data_dir: the folder of prepared files; None for that of tfds.

  Returns:
    Examples by index, as tfds gives them, and what tells them from others, as
    something JSON can hold.

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
  """Returns a builder of what is prepared."""
  builder = _builder(name, data_dir)
  if not is_prepared(builder):
    raise checks.DataError(
        f'prepared.named: {name!r} must be prepared in data_dir; got '
        f'data_dir={str(builder.data_dir)!r}, where it is not. Run '
        f'`tfds.builder({name!r}, data_dir=…).download_and_prepare('
        f'file_format={FILE_FORMAT!r})` once.')
  return builder


def _data_source(builder, split):
  try:
    return builder.as_data_source(split=split)
  except NotImplementedError as err:
    raise checks.DataError(
        f'prepared.open_split: {builder.name!r} must be prepared as '
        f'{FILE_FORMAT}; got {checks.one_line(err)} Prepare it again in another'
        ' data_dir.') from err
  except ValueError as err:
    raise checks.DataError(
        f'prepared.open_split: split must be one that {builder.name!r} has; '
        f'got split={split!r}. {checks.suggest(split, builder.info.splits)}'
    ) from err


def prepare(make_builder: Callable[[], Any]) -> Any:
  """Prepares a data set unless that has been done.

  The files appear in one piece, by renaming a folder. Where two processes
  prepare at once, the first to finish wins and the other reads its files.

  Args:
    make_builder: returns a tfds builder; called again when another process has
      got there first.

  Returns:
    A builder that is prepared.

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
        'prepared.prepare: data_dir must be a folder that can be written; got '
        f'{str(builder.data_dir)!r} ({checks.one_line(err)}). Set '
        'config.data.data_dir.') from err
  return builder


@contextlib.contextmanager
def _quiet():
  """Keeps tfds from printing; its progress bar is shown to a person only."""
  import tensorflow_datasets as tfds
  progress = contextlib.ExitStack()
  if not sys.stderr.isatty():
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
        'prepared.named: config.data.name must be a registered data set or one '
        f'of tfds; got {name!r}. '
        f'{checks.suggest(name, registry.datasets.names())} A plugin that '
        'brings it belongs in config.plugins.') from err
  except (ValueError, AssertionError) as err:
    raise checks.ConfigError(
        'prepared.named: config.data.name must name a data set as tfds does, '
        f'name/config:version; got {name!r} ({checks.one_line(err)}).') from err


def _wanted(known, chosen):
  """Returns which features to read: those chosen, or all that are numbers."""
  numeric = [key for key, feature in known.items() if _is_numeric(feature)]
  for feature in chosen:
    if feature not in numeric:
      raise checks.ConfigError(
          'config.data.options: features must name features that hold numbers; '
          f'got {feature!r}. {checks.suggest(feature, numeric)}')
  return tuple(chosen) or tuple(numeric)


def _num_classes(features, wanted):
  label = features['label'] if 'label' in wanted else None
  return getattr(label, 'num_classes', None)


def _is_numeric(feature):
  dtype = feature.np_dtype  # Of a nested feature a dict.
  return not isinstance(dtype, dict) and np.dtype(dtype).kind in 'biuf'
