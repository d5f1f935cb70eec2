"""From a config to batches: sharded, shuffled, resumable and validated."""

from collections.abc import Iterable, Mapping
import functools
from typing import Any, Optional

import jax
import numpy as np

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import memory
from haikd.data import ahead as ahead_lib
from haikd.data import batches
from haikd.data import mixture as mixture_lib
from haikd.data import orders
from haikd.data import source as source_lib
from haikd.data.image import augment as augment_lib
from haikd.data.image import views as views_lib
from haikd.processes import watchdog


class Data:
  """The batches of one data set; made by `build_data`.

  A split is opened when it is first needed, and kept.

  Attributes:
    splits: those of its data set, which another Data may share.
    views: how the networks see its images.
    num_classes: V; None if the data set does not give it.
    sizes: `{split: number of examples}` of the splits that the config names.
    spec: the global training batch, as a Batch of `jax.ShapeDtypeStruct`; reads
      one example.
  """

  def __init__(self, *, splits: mixture_lib.AnySplits, train: str,
               held_out: tuple[str, str], augment: Mapping[str, Any],
               augment_field: str, batch_size: int, eval_batch_size: int,
               shards: int, seed: int, ahead: ahead_lib.Ahead,
               views: views_lib.Views, process_index: int,
               process_count: int, records: Optional[batches.Records] = None):
    self.splits = splits
    self._train, self._held_out = train, held_out
    self._named = tuple(dict.fromkeys((train, *held_out)))
    evaluated, final = held_out
    # For messages. If several fields hold one split, the last of these counts.
    self._fields = {final: 'config.evaluation.final',
                    evaluated: 'config.evaluation.split',
                    train: 'config.data.train'}
    self._augment, self._augment_field = augment, augment_field
    self._batch_size = batch_size
    self._evaluation = dict(batch_size=eval_batch_size, shards=shards)
    self._seed = seed
    self._ahead = ahead
    self.views = views
    self._records = records
    self._common = dict(views=views, process_index=process_index,
                        process_count=process_count)

  @property
  def num_classes(self) -> Optional[int]:
    """The number of classes or the size of the vocabulary."""
    return self._reader(self._train).num_classes

  @property
  def class_names(self) -> Optional[tuple[str, ...]]:
    """The names of the classes, or None."""
    return self._reader(self._train).class_names

  @property
  @watchdog.during(watchdog.DATA, 'the check of the data')
  def image_dtype(self) -> Optional[np.dtype]:
    """The dtype of images in the data set, None without; reads an example."""
    image = self._reader(self._train).gather([0]).get('image')
    return None if image is None else image.dtype

  @property
  def varies(self) -> bool:
    """Whether an example is not the same in each epoch of training."""
    return bool(self._augment or self._reader(self._train).vary)

  @property
  @watchdog.during(watchdog.DATA, 'the check of the data')
  def task(self) -> Optional[str]:
    """What the labels are, one of `tasks.OF_LABELS`; None without labels.

    If the training split has none, those of the held-out splits decide.
    """
    return next(
        filter(None, (self._reader(x).task for x in self._named)), None)

  def text_of(self, role: str) -> Optional[source_lib.TextInfo]:
    """Returns the tokenizer of a network's texts, and the ids that it keeps.

    Args:
      role: 'teacher' or 'student'.

    Returns:
      A TextInfo; None for a data set that is not one of texts.
    """
    return self._reader(self._train).text_of(role)

  @property
  def sizes(self) -> dict[str, int]:
    """The number of examples in each split that the config names."""
    return {split: len(self._opened(split)) for split in self._named}

  @functools.cached_property
  def spec(self) -> base.Batch:
    """The shapes and dtypes of the global training batch."""
    return self.spec_of(self._reader(self._train))

  @watchdog.during(watchdog.DATA, 'the check of the data')
  def spec_of(self, reader: mixture_lib.AnyReader) -> base.Batch:
    """Returns the shapes and dtypes of a global training batch.

    Args:
      reader: reads the examples of the batch; one is enough.

    Returns:
      A Batch of `jax.ShapeDtypeStruct`.
    """
    first = orders.Picks(np.zeros(1, int), np.zeros(1, int))
    example = self._training(reader).batch(
        first, np.random.default_rng(self._seed))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        (self._batch_size, *x.shape[1:]), x.dtype), example)

  @watchdog.during(watchdog.DATA, 'the check of the data')
  def check(self) -> None:
    """Opens, checks and decodes every split that the config names.

    Only the first example of a split too large to keep is checked.

    Raises:
      ConfigError: batches that take too much memory, or augmentation, mean or
        std that do not suit the images.
      DataError: a split or examples that cannot be used.
    """
    for split in self._named:
      reader = self._reader(split)
      self._load(reader)
      if split == self._train:
        self._check_size(reader)
        self._training(reader)[0]
        self._ahead.made(None, self._training(reader), reader)
        reader.say_absent_classes()
      if split in self._held_out:
        memory.check_batch(
            'config.evaluation.batch_size', self.evaluation_spec(split))
        self.pick(split)[0]
        self._ahead.made(split, self.pick(split), reader)

  def train(self) -> batches.BatchIterator:
    """Returns an endless iterator of this process's share of training batches.

    Every epoch has its own order. It has `get_state` and `set_state`.

    Raises:
      DataError: a split smaller than a batch, or examples that cannot be used.
    """
    reader = self._reader(self._train)
    self._check_size(reader)
    self._load(reader)
    return iter(self._ahead.stream(None, self._training(reader), reader))

  def evaluation(self, split: str) -> Iterable[base.Batch]:
    """Returns this process's share of a split, every example exactly once.

    Args:
      split: any split of the data set.

    Returns:
      An iterable of batches of one shape, as often as you like; padding in the
      last one is masked and has the label -100.

    Raises:
      DataError: an unknown or empty split, or examples that cannot be used.
    """
    reader = self._reader(split)
    self._load(reader)
    return self._ahead.stream(split, self.pick(split), reader)

  def evaluation_spec(self, split: str) -> base.Batch:
    """Returns the shapes and dtypes of a global batch of `evaluation(split)`.

    Args:
      split: any split of the data set; one example is read.
    """
    return self.pick(split).spec

  def pick(self, split: str, **options: Any) -> batches.Evaluation:
    """Returns the batches of a split by number, as `evaluation` has them.

    Args:
      split: any split of the data set.
      **options: of `batches.Evaluation`, such as `indices`, in place of these.
    """
    options = {**self._evaluation, **self._common, **options}
    return batches.Evaluation(self._reader(split), **options)

  def _reader(self, split):
    reader = self._opened(split)
    # Labels are alike in all splits; those of training say what they are.
    if split != self._train and (task := self._reader(self._train).task):
      reader.expect(task, self.num_classes)
    return reader

  def _opened(self, split):
    return self.splits.reader(split, self._fields.get(split, 'split'))

  def _check_size(self, reader):
    if not reader.has(self._batch_size):
      raise checks.DataError(
          'config.data.train must name a split of at least one batch; got '
          f'{self._train!r} of size={len(reader)}, '
          f'config.batch_size={self._batch_size}. Set config.batch_size to '
          f'{len(reader)} or less, or train on another split.')

  def _load(self, reader):
    if self.views.cut is None:  # Else images are resized at each visit.
      reader.load()

  def _training(self, reader):
    return batches.Training(
        reader,
        augment_lib.build_augment(
            self._augment, reader.num_classes, field=self._augment_field),
        batch_size=self._batch_size,
        seed=self._seed,
        records=self._records,
        **self._common)


def build_data(config: config_lib.ConfigDict,
               *,
               shards: int = 1,
               like: Optional[Data] = None,
               augment_field: str = 'config.data.augment',
               records: Optional[batches.Records] = None,
               process_index: Optional[int] = None,
               process_count: Optional[int] = None) -> Data:
  """Returns the Data that a config describes; reads nothing yet.

  Args:
    config: a config made from `haikd.config.base()`.
    shards: the number of devices that a batch is split over; evaluation batches
      are rounded up to a multiple of it.
    like: a Data whose opened splits are shared if the data set is the same.
    augment_field: the config field that holds the augmentations, for messages.
    records: what was recorded of the teacher.
    process_index: of this process; JAX's by default.
    process_count: JAX's by default.

  Returns:
    A Data.

  Raises:
    ConfigError: a batch that the processes cannot share evenly, or that takes
      too much memory, an unknown augmentation, or a mean or std out of range.
  """
  if process_index is None:
    process_index = jax.process_index()
  if process_count is None:
    process_count = jax.process_count()
  if config.batch_size % process_count:
    raise checks.ConfigError(
        'config.batch_size must be a multiple of the number of processes; got '
        f'{config.batch_size}, process_count={process_count}. The next multiple'
        f' is {-(-config.batch_size // process_count) * process_count}.')
  data, evaluation = config.data, config.evaluation
  augment = config_lib.plain(data.augment)
  # Refuses unknown augmentations at once; the classes are not known yet.
  augment_lib.build_augment(augment, None, field=augment_field)
  views = views_lib.build_views(config, augment_field)
  share = config.batch_size // process_count
  views.check_memory(share, ahead=2 * (data.workers or 0))
  splits = mixture_lib.build_splits(config)
  if like is not None and like.splits.dataset == splits.dataset:
    splits = like.splits
  return Data(
      splits=splits,
      train=data.train,
      held_out=(evaluation.split, evaluation.final),
      augment=augment,
      augment_field=augment_field,
      batch_size=config.batch_size,
      eval_batch_size=evaluation.batch_size,
      shards=shards,
      seed=config.seed,
      ahead=ahead_lib.Ahead(
          data.prefetch, data.workers, views=views,
          batch_size=max(share, evaluation.batch_size // process_count)),
      views=views,
      records=records,
      process_index=process_index,
      process_count=process_count)
