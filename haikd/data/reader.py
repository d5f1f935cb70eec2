"""Reads examples by index and validates them.

A split that is small enough is decoded once and kept. Batches are then gathered
from one array per key, a hundred times faster than example by example.
"""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any, Optional, Union

import numpy as np

from haikd.core import tasks
from haikd.data import arrays
from haikd.data import columns as columns_lib
from haikd.data import examples as examples_lib
from haikd.data import foreign
from haikd.data import labels as labels_lib
from haikd.data import orders
from haikd.data import reading as reading_lib
from haikd.data import skipping
from haikd.data import source as source_lib
from haikd.data import spec as spec_lib
from haikd.data.image import views
from haikd.processes import watchdog

CACHE_BYTES = 2**29  # Splits up to this decoded size are kept in memory.
_CHUNK = 1024  # Examples decoded at a time.
_LABELS = 256  # Examples whose labels tell the task.

Columns = columns_lib.Columns
Indices = Union[Sequence[int], np.ndarray]
Keys = Sequence[tuple[int, ...]]


class Reader:
  """Reads examples of one split.

  Attributes:
    split: its name, for messages.
    num_classes: V, or None.
    class_names: the names of the classes, or None.
    vary: that of the source, or None.

  Args:
    source: the split.
    split: its name.
    task: `config.task`.
    reading: what is done about an example that cannot be used.
  """

  def __init__(self, source: source_lib.Source, split: str,
               task: str = tasks.AUTO,
               reading: reading_lib.Reading = reading_lib.Reading()):
    self.split = split
    self._task: Optional[str] = task
    # Numbers to predict may be integers, which a Source took for classes.
    self.num_classes = None if task == tasks.REGRESSION else source.num_classes
    names = getattr(source, 'class_names', None)
    self.class_names = None if names is None else tuple(names)
    self.vary = getattr(source, 'vary', None)
    self._source = source
    self._examples = examples_lib.Examples(source, split)
    self._skips = (skipping.Skips(split, reading.max_skipped)
                   if reading.on_error == reading_lib.SKIP else None)
    self._template: Optional[Columns] = None
    self._columns: Optional[Columns] = None
    self._growing = source_lib.growing(source)

  def __len__(self) -> int:
    return len(self._source)

  @property
  def cached(self) -> bool:
    """Whether the split is in memory."""
    return self._columns is not None

  @property
  def is_encoded(self) -> bool:
    """Whether images are decoded at each visit, and none is left out."""
    return self._skips is None and not self.cached and self._examples.is_encoded

  @property
  def task(self) -> Optional[str]:
    """What the labels are, one of `tasks.OF_LABELS`; None without labels."""
    if self._task == tasks.AUTO:
      label = self._some_labels()
      self._task = None if label is None else labels_lib.find_task(
          label, self.num_classes)
    return self._task

  def expect(self, task: str, num_classes: Optional[int]) -> None:
    """Sets what labels are as in training; `config.task` comes first."""
    if self._task == tasks.AUTO:
      self._task = task
    self.num_classes = num_classes

  def text_of(self, role: str) -> Optional[source_lib.TextInfo]:
    """Returns the TextInfo of the 'teacher' or 'student', or None."""
    return source_lib.text_of(self._source, role)

  def load(self) -> None:
    """Decodes and checks the full split if it is small enough to keep."""
    if self.cached or (
        self._growing is not None and not self._growing.is_complete):
      return
    columns = self._decoded()
    if columns is not None:
      columns_lib.check_weights(columns, self.split)
    self._columns = columns

  def say_absent_classes(self) -> None:
    """Says which classes no example has, if the split is in memory."""
    if self._columns is not None and self.task == tasks.CLASSIFICATION:
      labels_lib.say_absent(self._columns[columns_lib.LABEL], self.num_classes,
                            self.class_names, self.split)

  def order(self, batch_size: int, seed: int) -> orders.Order:
    """Returns the order in which training reads the split.

    Args:
      batch_size: examples in a batch of all processes.
      seed: the seed of the run.
    """
    if self._growing is not None:
      return orders.Growing(
          self._growing.block, batch_size=batch_size, seed=seed)
    return orders.Shuffled(len(self), batch_size=batch_size, seed=seed)

  def has(self, count: int) -> bool:
    """Returns whether the split has so many examples, without reading all."""
    if self._growing is not None:
      blocks = iter(map(self._growing.block, itertools.count()).__next__, None)
      return any(block.stop >= count for block in blocks)
    return len(self) >= count

  def gather(self,
             indices: Indices,
             template: Optional[Columns] = None,
             fit: Optional[views.Fit] = None,
             keys: Optional[Keys] = None) -> Columns:
    """Reads some examples.

    Args:
      indices: their indices in the split.
      template: columns whose keys, shapes and dtypes the examples must have,
        before labels become numbers of their task.
      fit: resizes one image, or None. With it a split is never kept.
      keys: for each example the seed of what is random in it, to which its
        index is added; None leaves examples as they are.

    Returns:
      `{key: [len(indices), ...]}`.

    Raises:
      DataError: an example that cannot be used, named by split and index.
    """
    if self._columns is not None:
      columns = {key: value[indices] for key, value in self._columns.items()}
    else:
      columns = self._gathered([int(i) for i in indices], template, fit)
    if keys is None or self.vary is None:
      return columns
    weight = ({columns_lib.WEIGHT: columns.pop(columns_lib.WEIGHT)}
              if self._skips else {})  # Not all who vary examples know of it.
    rngs = [np.random.default_rng((*key, int(i)))
            for key, i in zip(keys, indices)]
    with foreign.calling(f'examples of split {self.split!r} must be varied',
                         "Fix the data set's code"):
      return {**self.vary(columns, rngs), **weight}

  def _gathered(self, numbers: list[int], template: Optional[Columns],
                fit: Optional[views.Fit]) -> Columns:
    """Returns examples that are checked, some of them left out if so wanted."""
    if self._skips is None:
      return self._usable(numbers, template, fit)
    if template is None and fit is None:  # Images that are fit may differ.
      template = self._first()
    return self._skips.gather(
        numbers, len(self), lambda some: self._usable(some, template, fit))

  def _usable(self, numbers, template, fit) -> Columns:
    """Returns examples; refuses those that cannot be used."""
    examples = self._examples.read(numbers)
    return self._checked(
        self._examples.stack(examples, numbers, template, fit), numbers)

  def _first(self) -> Columns:
    """Returns the first example, or the first that can be read."""
    if self._template is None:
      read = lambda some: self._examples.stack(self._examples.read(some), some)
      self._template = (read([0]) if self._skips is None else
                        self._skips.first(len(self), read))
    return self._template

  def _decoded(self) -> Optional[Columns]:
    """Returns all examples, checked; None if they are too large to keep."""
    size = len(self)
    if isinstance(self._source, arrays.Arrays) and self._skips is None:
      return self._checked(self._source.columns, range(size))
    template = self._first()
    example = (self._gathered([0], template, None) if self._skips else
               self._checked(template, [0]))  # Its label may change its type.
    if size * sum(value.nbytes for value in example.values()) > CACHE_BYTES:
      return None
    columns = {key: np.empty((size, *value.shape[1:]), value.dtype)
               for key, value in example.items()}
    for start in range(0, size, _CHUNK):
      watchdog.alive()
      indices = range(start, min(start + _CHUNK, size))
      for key, value in self.gather(indices, template=template).items():
        columns[key][start:start + len(indices)] = value
    return columns

  def _is_doubtful(self, label):
    """Returns whether one label does not tell the task."""
    return label.dtype.kind == 'f' and self.num_classes is not None

  def _some_labels(self):
    """Returns as many labels as tell the task, None if there are none."""
    if isinstance(self._source, arrays.Arrays):
      return self._source.columns.get(columns_lib.LABEL)
    first = self._first()
    if columns_lib.LABEL not in first:
      return None
    labels = first[columns_lib.LABEL]
    if self._is_doubtful(labels):
      rows, read = list(range(min(_LABELS, len(self)))), self._labels
      if skips := self._skips:
        read = lambda rows: skips.gather(rows, len(self), self._labels)
      return read(rows)[columns_lib.LABEL]
    return labels

  def _labels(self, rows) -> Columns:
    """Returns the labels of some examples, whatever else they hold."""
    key, examples = columns_lib.LABEL, self._examples.read(rows)
    for row, example in zip(rows, examples):
      if not isinstance(example, Mapping) or key not in example:
        raise self._examples.bad(row, 'have a label, as the first has', 'none',
                                 'Fix the data.')
    labels = [{key: example[key]} for example in examples]
    return self._examples.stack(labels, rows)

  def _checked(self, columns: Columns, indices: Sequence[int]) -> Columns:
    """Returns columns with labels as numbers of their task.

    Raises:
      DataError: values that training cannot use.
    """
    task = None
    if columns_lib.LABEL in columns:
      label = columns[columns_lib.LABEL]
      if self._task == tasks.AUTO and not self._is_doubtful(label):
        self._task = labels_lib.find_task(label, self.num_classes)
      task = self.task
      columns = {**columns, columns_lib.LABEL: labels_lib.as_task(label, task)}
    if fault := columns_lib.find_fault(columns, self.num_classes, task):
      raise self._examples.bad(indices[fault.row], *fault[1:])
    return columns


class Splits:
  """The splits of one data set, each opened once and decoded once.

  Attributes:
    dataset: the arguments of `source.open_source`, except split and field.

  Args:
    task: `config.task`.
    **dataset: as the attribute.
  """

  def __init__(self, *, task: str = tasks.AUTO, **dataset: Any):
    self.dataset = dataset
    self._task = task
    self._readers: dict[str, Reader] = {}

  def reader(self, split: str, field: str) -> Reader:
    """Returns the reader of a split, and opens the split at the first call.

    Args:
      split: any split of the data set.
      field: the config field that holds `split`, for messages.

    Returns:
      A Reader.

    Raises:
      ConfigError: a config whose data set cannot be opened.
      DataError: an unknown or empty split, or files that cannot be used.
    """
    if split not in self._readers:
      source = source_lib.open_source(split=split, field=field, **self.dataset)
      self._readers[split] = Reader(source, split, self._task,
                                    self.dataset['reading'])
    return self._readers[split]

  def describe(self) -> Optional[spec_lib.Spec]:
    """Returns the Spec of the data set, as `source.describe` does."""
    return source_lib.describe(**self.dataset)
