"""Batches by number: which examples are in one, and how they are transformed.

Both classes are random-access sources for Grain: batch b depends on b alone,
not on the order, the thread or the process in which batches are made.
"""

import math
import sys
from typing import Any, Optional, Protocol

import jax
import numpy as np

from haikd.core import base
from haikd.core import pixels
from haikd.data import columns as columns_lib
from haikd.data import mixture as mixture_lib
from haikd.data import orders
from haikd.data.image import augment as augment_lib
from haikd.data.image import views as views_lib

# Part of a seed: what its random numbers are for. Others are in `orders`.
_AUGMENT, _VARY, _VARY_EVALUATION = 1, 5, 6


class BatchIterator(Protocol):
  """An iterator of batches whose position can be saved and restored."""

  def __iter__(self) -> 'BatchIterator':
    """Returns itself."""

  def __next__(self) -> base.Batch:
    """Returns the next batch, of NumPy arrays."""

  def get_state(self) -> dict[str, int]:
    """Returns the position in the stream, in types of JSON."""

  def set_state(self, state: dict[str, int]) -> None:
    """Moves to a position in the stream."""


class Records(Protocol):
  """What was recorded of the teacher."""

  def join(self, batch: base.Batch, epochs: np.ndarray) -> base.Batch:
    """Returns a batch with what was recorded of its rows."""


class Training:
  """One process's share of an endless stream of training batches.

  Each process takes a contiguous share of every batch of the reader's order. So
  the global batch does not depend on the number of processes. (Its augmentation
  does.) `records` adds what was recorded of the teacher.
  """

  def __init__(self, reader: mixture_lib.AnyReader,
               augment: augment_lib.Augment, *, batch_size: int, seed: int,
               views: views_lib.Views, process_index: int, process_count: int,
               records: Optional[Records] = None):
    self._reader = reader
    self._records = records
    self._augment = augment
    self._order = reader.order(batch_size, seed)
    self._seed = seed
    self._views = views
    self._process_index = process_index
    self._share = batch_size // process_count

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, number: int) -> base.Batch:
    return self.finish(number, self.make(number))

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_records': None}  # They are for `finish`.

  def make(self, number: int) -> base.Batch:
    """Returns a batch without what was recorded of the teacher."""
    rng = np.random.default_rng(
        (self._seed, _AUGMENT, number, self._process_index))
    return self._made(self._picks(number), rng)

  def finish(self, number: int, batch: base.Batch) -> base.Batch:
    """Returns the batch of that number, made by `make`, with all there is."""
    return self._joined(batch, self._picks(number)) if self._records else batch

  def batch(self, picks: orders.Picks, rng: np.random.Generator) -> base.Batch:
    """Returns a batch of the given examples, each as in its epoch."""
    return self._joined(self._made(picks, rng), picks)

  def _picks(self, number):
    start = self._process_index * self._share
    share = slice(start, start + self._share)
    picks = self._order.batch(number)
    return orders.Picks(picks.indices[share], picks.epochs[share])

  def _joined(self, batch, picks):
    return self._records.join(batch, picks.epochs) if self._records else batch

  def _made(self, picks, rng):
    keys = [(self._seed, _VARY, epoch) for epoch in picks.epochs.tolist()]
    examples = self._reader.gather(
        picks.indices, fit=self._views.fit_training(rng), keys=keys)
    examples = self._augment(examples, rng)
    return _to_batch(self._views.inputs(examples), np.ones(len(keys), bool))


class Evaluation:
  """One process's share of one pass over a split.

  The split is cut into as few batches as possible, all of one shape and as
  small as that number allows: 600 examples in batches of up to 512 make two of
  300. Masked examples pad the last batch. Every process has the same number of
  batches. `indices` are the examples to visit, in their order; None for all.
  """

  def __init__(self, reader: mixture_lib.AnyReader, *, batch_size: int,
               shards: int, views: views_lib.Views, process_index: int,
               process_count: int, indices: Optional[np.ndarray] = None):
    self._reader = reader
    self._indices = indices
    self._size = len(reader) if indices is None else len(indices)
    self._views = views
    unit = math.lcm(shards, process_count)  # Divides every batch.
    self._count = math.ceil(self._size / _round_up(batch_size, unit))
    self._batch_size = _round_up(math.ceil(self._size / self._count), unit)
    self._share = self._batch_size // process_count
    self._process_index = process_index

  def __len__(self) -> int:
    return self._count

  @property
  def spec(self) -> base.Batch:
    """The shapes and dtypes of the global batch; reads one example."""
    example = _to_batch(self._gather(np.zeros(1, int)), np.ones(1, bool))
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(
            (self._batch_size, *array.shape[1:]), array.dtype), example)

  def __getitem__(self, number: int) -> base.Batch:
    return self.make(number)

  def finish(self, number: int, batch: base.Batch) -> base.Batch:
    """Returns the batch as it is."""
    del number
    return batch

  def make(self, number: int) -> base.Batch:
    """Returns a batch."""
    start = number * self._batch_size + self._process_index * self._share
    places = np.arange(start, start + self._share)
    last = self._size - 1
    columns = self._gather(np.minimum(places, last))
    return _to_batch(columns, places <= last)

  def _gather(self, places):
    indices = places if self._indices is None else self._indices[places]
    return self._views.inputs(self._reader.gather(
        indices, fit=self._views.fit_evaluation(),
        keys=[(_VARY_EVALUATION,)] * len(indices)))


def _round_up(number, unit):
  return math.ceil(number / unit) * unit


def _to_batch(examples: columns_lib.Columns, real: np.ndarray) -> base.Batch:
  """Sorts columns into the fields of a Batch.

  Args:
    examples: `{key: [B, ...]}`; `source.Source` says what the keys mean.
    real: bool `[B]`, false for padding.

  Returns:
    A Batch of float32, int32 and bool; images may be Pixels.
  """
  weight = examples.get(columns_lib.WEIGHT)
  if weight is not None:
    weight = np.where(real, weight, 0).astype(np.float32)
    real = weight > 0  # What does not count is padding, whatever it holds.
  student = {key.removeprefix(columns_lib.STUDENT): value
             for key, value in examples.items()
             if key.startswith(columns_lib.STUDENT)}
  examples = {key: value for key, value in examples.items()
              if not key.startswith(columns_lib.STUDENT)}
  return base.Batch(
      *_view(examples, real),
      labels=_labels(examples.get('label'), real),
      target_mask=_mask_padding(examples.get('target_mask'), real),
      weight=weight,
      student=_view(student, real) if student else None)


def _view(examples, real) -> base.View:
  """Returns what a network gets of examples."""
  inputs: Any = {key: narrow(value) for key, value in examples.items()
                 if key not in columns_lib.TARGETS}
  if len(inputs) == 1:
    inputs, = inputs.values()
  return base.View(inputs, _mask_padding(examples.get('mask', real), real))


def narrow(values: Any) -> Any:
  """Returns values as bool, float32 or int32, by their kind; or Pixels."""
  if isinstance(values, pixels.Pixels):
    return values
  dtype = dict(b=np.bool_, f=np.float32).get(values.dtype.kind, np.int32)
  return np.ascontiguousarray(values, dtype)


def _mask_padding(mask: Optional[np.ndarray], real: np.ndarray) -> Any:
  if mask is None:
    return None
  return mask & _expand(real, mask.ndim)


def _labels(label, real):
  if label is None:
    return None
  label = narrow(label)
  if label.dtype == np.int32 and not real.all():
    label = np.where(
        _expand(real, label.ndim), label, np.int32(base.IGNORED_LABEL))
  return label


def _expand(real, rank):
  return real.reshape(-1, *(1,) * (rank - 1))
