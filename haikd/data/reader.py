"""Reads examples by index and validates them.

A split that is small enough is decoded once and kept. Batches are then gathered
from one array per key, a hundred times faster than example by example.
"""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any, Optional, Union

import numpy as np

from haikd.core import checks
from haikd.core import tasks
from haikd.data import arrays
from haikd.data import columns as columns_lib
from haikd.data import foreign
from haikd.data import labels as labels_lib
from haikd.data import orders
from haikd.data import source as source_lib
from haikd.data import spec as spec_lib
from haikd.data.image import views

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
  """

  def __init__(self, source: source_lib.Source, split: str,
               task: str = tasks.AUTO):
    self.split = split
    self._task: Optional[str] = task
    # Numbers to predict may be integers, which a Source took for classes.
    self.num_classes = None if task == tasks.REGRESSION else source.num_classes
    names = getattr(source, 'class_names', None)
    self.class_names = None if names is None else tuple(names)
    self.vary = getattr(source, 'vary', None)
    self._source = source
    self._columns: Optional[Columns] = None
    self._growing = source_lib.growing(source)

  def __len__(self) -> int:
    return len(self._source)

  @property
  def cached(self) -> bool:
    """Whether the split is in memory."""
    return self._columns is not None

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
      numbers = [int(i) for i in indices]
      columns = self._checked(
          self._stack(self._read(numbers), numbers, template, fit), numbers)
    if keys is None or self.vary is None:
      return columns
    rngs = [np.random.default_rng((*key, int(i)))
            for key, i in zip(keys, indices)]
    with foreign.calling(f'examples of split {self.split!r} must be varied',
                         "Fix the data set's code"):
      return self.vary(columns, rngs)

  def _decoded(self) -> Optional[Columns]:
    """Returns all examples, checked; None if they are too large to keep."""
    size = len(self)
    if isinstance(self._source, arrays.Arrays):
      return self._checked(self._source.columns, range(size))
    template = self._stack(self._read([0]), [0], None, None)
    example = self._checked(template, [0])  # Its label may be of another type.
    if size * sum(value.nbytes for value in example.values()) > CACHE_BYTES:
      return None
    columns = {key: np.empty((size, *value.shape[1:]), value.dtype)
               for key, value in example.items()}
    for start in range(0, size, _CHUNK):
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
    first = self._read([0])[0]
    if not isinstance(first, Mapping) or columns_lib.LABEL not in first:
      return None
    labels = [np.asarray(first[columns_lib.LABEL])]
    if self._is_doubtful(labels[0]):
      rows = list(range(min(_LABELS, len(self))))
      labels = [np.asarray(x[columns_lib.LABEL]) for x in self._read(rows)]
    return np.stack(labels)

  def _read(self, indices: list[int]) -> Sequence[Mapping[str, Any]]:
    if hasattr(self._source, '__getitems__'):
      with self._reading(indices[0]):
        return self._source.__getitems__(indices)
    examples = []
    for index in indices:
      with self._reading(index):
        examples.append(self._source[index])
    return examples

  def _reading(self, index):
    return foreign.calling(
        f'example {index} of split {self.split!r} must be readable',
        "Fix the data or the data set's code")

  def _stack(self, examples: Sequence[Mapping[str, Any]],
             indices: Sequence[int], template: Optional[Columns],
             fit: Optional[views.Fit]) -> Columns:
    """Stacks examples; refuses one with other shapes than the first."""
    for index, example in zip(indices, examples):
      if not isinstance(example, Mapping):
        raise self._bad(index, 'be a dict', type(example).__name__,
                        'Return dict(image=…, label=…), for example.')
    examples = [{key: np.asarray(value)
                 for key, value in example.items()}
                for example in examples]
    if fit is not None:
      for index, example in zip(indices, examples):
        self._fit(index, example, fit)
    expected = columns_lib.signature(examples[0]) if template is None else {
        key: (value.shape[1:], value.dtype) for key, value in template.items()}
    for index, example in zip(indices, examples):
      if fault := columns_lib.unlike(columns_lib.signature(example), expected):
        raise self._bad(index, *fault[1:])
    return {key: np.stack([example[key] for example in examples])
            for key in expected}

  def _fit(self, index, example, fit):
    if 'image' not in example:
      raise self._bad(
          index, 'hold an image, since config.data.image_size is set',
          f'the keys {sorted(example)}', 'Set config.data.image_size to None.')
    rule = f'image of example {index} of split {self.split!r} must be resizable'
    with foreign.calling(
        f'the {rule}', 'Fix the data or the augmentation that resizes it'):
      example |= fit(example['image'])

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
      raise self._bad(indices[fault.row], *fault[1:])
    return columns

  def _bad(self, index, rule, value, remedy):
    """Returns the error 'example … must {rule}; got {value}. {remedy}'."""
    return checks.DataError(
        f'example {index} of split {self.split!r} must {rule}; got {value}. '
        f'{remedy}')


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
      self._readers[split] = Reader(source, split, self._task)
    return self._readers[split]

  def describe(self) -> Optional[spec_lib.Spec]:
    """Returns the Spec of the data set, as `source.describe` does."""
    return source_lib.describe(**self.dataset)
