"""From a config to batches: sharded, shuffled, resumable, each one checked."""

from collections.abc import Iterable, Mapping
import functools
from typing import Any, Optional, Protocol

import jax
import ml_collections
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.data import batches
from haikd.data import reader as reader_lib
from haikd.data import source as source_lib
from haikd.data.image import augment as augment_lib
from haikd.data.image import normalise as normalise_lib
from haikd.data.image import resize as resize_lib

_READ_THREADS = 4  # That read ahead, where a split is not in memory.


class BatchIterator(Protocol):
  """An iterator of batches that can be saved and put back."""

  def __iter__(self) -> 'BatchIterator':
    """Returns itself."""

  def __next__(self) -> base.Batch:
    """Returns the next batch, of NumPy arrays."""

  def get_state(self) -> dict[str, int]:
    """Returns the place in the stream, as something JSON can hold."""

  def set_state(self, state: dict[str, int]) -> None:
    """Goes to a place in the stream."""


class Data:
  """The batches of one data set; made by `build_data`.

  Splits are opened when something is first asked of them, and kept.

  Attributes:
    splits: the splits of its data set, which another Data may share.
    num_classes: V; None for a data set that does not say.
    text: how texts became numbers; None for a data set of something else.
    sizes: `{split: number of examples}` of the splits that the config names.
    spec: a Batch of `jax.ShapeDtypeStruct`, the global training batch; reads
      one example.
  """

  def __init__(self, *, splits: reader_lib.Splits, train: str,
               held_out: tuple[str, ...], augment: Mapping[str, Any],
               augment_field: str, batch_size: int, eval_batch_size: int,
               shards: int, seed: int, prefetch: int,
               scale: normalise_lib.Scale, sizes: Optional[resize_lib.Sizes],
               process_index: int, process_count: int):
    self.splits = splits
    self._train = train
    self._held_out = held_out
    self._augment = augment
    self._augment_field = augment_field
    self._batch_size = batch_size
    self._evaluation = dict(batch_size=eval_batch_size, shards=shards)
    self._seed = seed
    self._prefetch = prefetch
    self._sizes = sizes
    self._common = dict(
        scale=scale,
        sizes=sizes,
        process_index=process_index,
        process_count=process_count)

  @property
  def num_classes(self) -> Optional[int]:
    """The number of classes or the size of the vocabulary."""
    return self.splits[self._train].num_classes

  @property
  def text(self) -> Optional[source_lib.TextInfo]:
    """The tokenizer of the texts, and what was kept of it."""
    return self.splits[self._train].text

  @property
  def sizes(self) -> dict[str, int]:
    """The number of examples in each split that the config names."""
    return {
        split: len(self.splits[split])
        for split in dict.fromkeys((self._train, *self._held_out))
    }

  @functools.cached_property
  def spec(self) -> base.Batch:
    """The shapes and dtypes of the global training batch."""
    return self.spec_of(self.splits[self._train])

  def spec_of(self, reader: reader_lib.Reader) -> base.Batch:
    """Returns what the global training batch of a split would be like.

    Args:
      reader: of one example or more.

    Returns:
      A Batch of `jax.ShapeDtypeStruct`.
    """
    example = self._training(reader).batch(
        np.zeros(1, int), np.random.default_rng(self._seed))
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(
            (self._batch_size, *array.shape[1:]), array.dtype), example)

  def check(self) -> None:
    """Opens, checks and decodes every split that the config names.

    What is too large to keep is checked by its first example. Nothing that this
    finds has to be found when hours of training are over.

    Raises:
      ConfigError: augmentation, mean or std that do not suit the images.
      DataError: an unknown or empty split, a training split smaller than a
        batch, or examples that cannot be used.
    """
    for split in self.sizes:
      reader = self.splits[split]
      if split == self._train:
        self._check_size(reader)
      self._load(reader)
      if split == self._train:
        self._training(reader)[0]
      if split in self._held_out:
        self._numbered(split)[0]

  def train(self) -> BatchIterator:
    """Returns an endless iterator of this process's share of training batches.

    Every epoch has an order of its own. The first call reads the split, if it
    is small enough to keep.

    Returns:
      An iterator from the first batch on, with `get_state` and `set_state`.

    Raises:
      DataError: a split smaller than a batch, or examples that cannot be used.
    """
    reader = self.splits[self._train]
    self._check_size(reader)
    self._load(reader)
    return iter(self._stream(self._training(reader), reader))

  def evaluation(self, split: str) -> Iterable[base.Batch]:
    """Returns this process's share of a split, every example exactly once.

    Args:
      split: any split of the data set.

    Returns:
      What can be iterated over, again and again. All batches of a split have
      one shape; what fills the last one up is masked, with the label -100.

    Raises:
      DataError: an unknown or empty split, or examples that cannot be used.
    """
    reader = self.splits[split]
    self._load(reader)
    return self._stream(self._numbered(split), reader)

  def _check_size(self, reader):
    if len(reader) < self._batch_size:
      raise checks.DataError(
          f'pipeline.train: split {self._train!r} must hold a batch or more; '
          f'got size={len(reader)}, config.batch_size={self._batch_size}. Set '
          f'config.batch_size to {len(reader)} or less, or train on another '
          'split.')

  def _load(self, reader):
    if self._sizes is None:  # Else images get their size each time anew.
      reader.load()

  def _numbered(self, split):
    return batches.Evaluation(
        self.splits[split], **self._evaluation, **self._common)

  def _training(self, reader):
    return batches.Training(
        reader,
        augment_lib.build_augment(
            self._augment, reader.num_classes, where=self._augment_field),
        batch_size=self._batch_size,
        seed=self._seed,
        **self._common)

  def _stream(self, numbered, reader):
    import grain  # Takes a second, which `import haikd` should not.
    threads = 1 if reader.cached else _READ_THREADS
    return grain.MapDataset.source(numbered).to_iter_dataset(
        grain.ReadOptions(
            num_threads=min(threads, self._prefetch),
            prefetch_buffer_size=self._prefetch))


def build_data(config: ml_collections.ConfigDict,
               *,
               shards: int = 1,
               like: Optional[Data] = None,
               augment_field: str = 'config.data.augment',
               process_index: Optional[int] = None,
               process_count: Optional[int] = None) -> Data:
  """Returns the batches that a config describes.

  Reads nothing yet. The global batch is divided among the processes; whoever
  puts it on devices divides it further.

  Args:
    config: a config made from `haikd.config.base()`.
    shards: over how many devices a batch is split; batches of evaluation are
      made large enough to be divisible by it.
    like: shares the splits it has opened, if they are of the same data set.
    augment_field: where the user wrote the augmentations, for messages.
    process_index: which process this is; JAX's by default.
    process_count: how many there are; JAX's by default.

  Returns:
    A Data.

  Raises:
    ConfigError: a batch that the processes cannot share evenly, a seed, mean or
      std out of its range, or an unknown augmentation.
  """
  if process_index is None:
    process_index = jax.process_index()
  if process_count is None:
    process_count = jax.process_count()
  if config.batch_size % process_count:
    raise checks.ConfigError(
        'pipeline.build_data: config.batch_size must be a multiple of the '
        f'number of processes; got config.batch_size={config.batch_size}, '
        f'process_count={process_count}. The closest is '
        f'{-(-config.batch_size // process_count) * process_count}.')
  if config.seed < 0:
    raise checks.ConfigError('pipeline.build_data: config.seed must be 0 or '
                             f'more; got config.seed={config.seed}.')
  data, evaluation = config.data, config.evaluation
  augment = data.augment.to_dict()
  # Refuse now what cannot work.
  augment_lib.build_augment(augment, None, where=augment_field)
  sizes = resize_lib.build_sizes(augment, data.image_size, where=augment_field)
  splits = reader_lib.Splits(
      name=data.name,
      options=data.options.to_dict(),
      source_dir=data.source_dir,
      data_dir=data.data_dir)
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
      prefetch=data.prefetch,
      scale=normalise_lib.build_scale(data.mean, data.std),
      sizes=sizes,
      process_index=process_index,
      process_count=process_count)
