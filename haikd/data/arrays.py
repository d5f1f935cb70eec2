"""Data sets in memory, from NumPy arrays."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Optional

import numpy as np

from haikd.core import checks
from haikd.data import labels as labels_lib
from haikd.data import splits as splits_lib

_LABEL = 'label'


class Arrays:
  """A Source in memory, with one array for every key.

  Attributes:
    num_classes: V, or None.
    class_names: V names of classes, or None.
    columns: `{key: array}`, `[size, ...]` each.
  """

  class_names: Optional[tuple[str, ...]] = None

  def __init__(self, columns: Mapping[str, Any], *,
               num_classes: Optional[int] = None):
    self.num_classes = num_classes
    self.columns = {key: np.asarray(value) for key, value in columns.items()}
    sizes = {key: len(value) for key, value in self.columns.items()}
    if len(set(sizes.values())) != 1:
      raise checks.DataError(
          'columns must have the same number of examples; got '
          f'{sizes or "no columns"}. Give every key one entry per example.')
    self._size = min(sizes.values())

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return {key: value[index] for key, value in self.columns.items()}


def from_arrays(*, num_classes: Optional[int] = None,
                **splits: Mapping[str, Any]) -> Callable[[str], Arrays]:
  """Makes a data set from arrays in memory.

  Register it, or give it to `haikd.train`:

    data = haikd.data.from_arrays(train=dict(x=…, label=…), test=dict(…))
    haikd.register_dataset('mine')(data)
    haikd.train(config, workdir, data=data)

  Labels that are text are the names of classes, which get their numbers in
  alphabetical order over all splits.

  Args:
    num_classes: V. By default it follows from the labels of all splits: one
      more than the largest integer, the number of names, or the width of
      floating-point labels that are probabilities, or 0 and 1. It stays None
      for other floating-point labels, which are numbers to predict.
    **splits: the columns of each split, `{key: [size, …]}`; the keys are those
      of `Source`.

  Returns:
    A function of the name of a split, to be registered as a data set.

  Raises:
    ConfigError: no split is given.
    DataError: columns of different lengths.
  """
  if not splits:
    raise checks.ConfigError(
        'splits must have the columns of one split or more; got none. Give '
        'train=dict(x=…, label=…).')
  columns = {split: {key: np.asarray(value) for key, value in given.items()}
             for split, given in splits.items()}
  labels = {split: _readable(given[_LABEL])
            for split, given in columns.items() if _LABEL in given}
  names = _names(labels.values())
  for split, label in labels.items():
    columns[split][_LABEL] = (
        label if names is None else np.searchsorted(names, label))
  if num_classes is None:
    num_classes = (count_classes(labels.values()) if names is None else
                   len(names))
  sources = {split: Arrays(given, num_classes=num_classes)
             for split, given in columns.items()}
  if names is not None:
    for source in sources.values():
      source.class_names = tuple(names.tolist())

  def arrays(split: str) -> Arrays:
    splits_lib.check(split, sources)
    return sources[split]

  return arrays


def _readable(label):
  """Returns labels with text as text, and truth values as 0.0 and 1.0."""
  if label.dtype.kind == 'S':
    return np.char.decode(label, 'utf-8')
  if label.dtype == object and all(isinstance(x, str) for x in label.flat):
    return label.astype(str)
  # A row of truth values says for each class whether it is true.
  if label.dtype == bool and label.ndim > 1:
    return label.astype(np.float32)
  return label


def _names(labels):
  """Returns the sorted names of classes; None if labels are no text."""
  kinds = {label.dtype.kind == 'U' for label in labels}
  if kinds == {True, False}:
    raise checks.DataError(
        'label must be text in all splits or in none; got both. Give names, or '
        'numbers, everywhere.')
  if kinds != {True}:
    return None
  return np.unique(np.concatenate([label.ravel() for label in labels]))


def count_classes(labels: Iterable[np.ndarray]) -> Optional[int]:
  """Returns the number of classes of labels; None if they are numbers.

  Args:
    labels: of each split, `[size, ...]`.
  """
  labels = [label for label in labels if label.size]
  if not labels:
    return None
  if all(label.dtype.kind in 'biu' for label in labels):
    largest = int(max(label.max() for label in labels))
    return None if largest < 0 else largest + 1  # Negative ones mark no class.
  widths = {label.shape[1:] for label in labels}
  if len(widths) > 1 or labels[0].ndim < 2 or labels[0].shape[-1] < 2:
    return None
  are_shares = all(
      np.isin(label, (0, 1)).all() or
      (label >= 0).all() and labels_lib.sum_to_1(label).all()
      for label in labels)
  return labels[0].shape[-1] if are_shares else None
