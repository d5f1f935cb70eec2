"""What the labels of a data set are, and which of them can be used."""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.core import tasks

# Rows of probabilities sum to 1 within this; float16 has three digits.
_TOLERANCE = 2e-3

_SEVERAL = ("If several classes may be true at once, set config.task="
            "'multilabel'; otherwise give one class, or probabilities.")


class Fault(NamedTuple):
  """A label that cannot be used: it must `rule`; got `value`. `remedy`.

  Attributes:
    row: its row among the labels that were checked.
  """

  row: int
  rule: str
  value: str
  remedy: str


def find_task(labels: np.ndarray, num_classes: Optional[int]) -> str:
  """Returns what labels are, judged by their values.

  Args:
    labels: of some examples, `[rows, ...]`.
    num_classes: of the data set; None if it has none.
  """
  if labels.dtype.kind != 'f':
    return tasks.CLASSIFICATION
  if num_classes is None:
    return tasks.REGRESSION
  are_shares = (labels >= 0) & (labels <= 1)
  has_all_classes = labels.ndim > 1 and labels.shape[-1] == num_classes
  if (has_all_classes and are_shares.all() and
      not sum_to_1(labels).all()):
    return tasks.MULTILABEL
  return tasks.CLASSIFICATION


def as_task(labels: np.ndarray, task: Optional[str]) -> np.ndarray:
  """Returns labels in the kind of number that the task has."""
  is_real = task in (tasks.REGRESSION, tasks.MULTILABEL)
  if is_real and labels.dtype.kind in 'biu':
    return labels.astype(np.float32)
  return labels


def find_fault(labels: np.ndarray, num_classes: Optional[int],
               task: str) -> Optional[Fault]:
  """Returns the first label that cannot be used, or None.

  Args:
    labels: of some examples, `[rows, ...]`; numbers, and finite.
    num_classes: of the data set; None if it has none.
    task: what they are, one of `tasks.OF_LABELS`.
  """
  if task == tasks.REGRESSION:
    return None if labels.dtype.kind == 'f' else Fault(
        0, 'have numbers to predict as its label', str(labels.dtype),
        'Convert them to floating point.')
  if num_classes is None:
    return Fault(0, 'have no label unless num_classes is known',
                 'num_classes=None',
                 'Give the Source a num_classes, or numbers to predict as '
                 'floating point.')
  if labels.dtype.kind == 'f':
    return _fault_of_shares(labels, num_classes, task)
  wrong = (labels < 0) | (labels >= num_classes)
  if labels.dtype.kind == 'i':
    wrong &= labels != base.IGNORED_LABEL
  return _first(
      wrong, labels, f'have a label below num_classes={num_classes}, or '
      f'{base.IGNORED_LABEL} for none', 'Fix num_classes or the labels.')


def _fault_of_shares(labels, num_classes, task):
  """Returns the first row that holds no probabilities, or no shares."""
  if labels.ndim < 2 or labels.shape[-1] != num_classes:
    several = task == tasks.MULTILABEL
    return Fault(0, 'have one number per class as its label' if several else
                 'have one probability per class as its label',
                 f'label.shape={labels.shape[1:]}, num_classes={num_classes}',
                 'Give 1 for each class that is true and 0 for the others, and '
                 'num_classes, their number.' if several else
                 'Give integers, or a trailing axis of classes; for numbers to '
                 'predict, num_classes=None.')
  wrong = (labels < 0) | (labels > 1)
  if task == tasks.MULTILABEL:
    return _first(wrong, labels, 'have labels from 0 to 1',
                  'Give 1 for true and 0 for not true.')
  fault = _first(wrong, labels, 'have probabilities as its label',
                 'Give numbers from 0 to 1 that sum to 1.')
  if fault is None:
    fault = _first(~sum_to_1(labels), labels.sum(axis=-1),
                   'have probabilities that sum to 1 as its label', _SEVERAL)
  return fault


def _first(wrong, values, rule, remedy) -> Optional[Fault]:
  if not wrong.any():
    return None
  place = tuple(np.argwhere(wrong)[0])
  return Fault(int(place[0]), rule, str(values[place]), remedy)


def sum_to_1(labels: np.ndarray) -> np.ndarray:
  """Returns for each row whether it sums to 1, rounding allowed for."""
  return np.abs(labels.sum(axis=-1, dtype=np.float64) - 1) < _TOLERANCE


def say_absent(labels: np.ndarray, num_classes: Optional[int],
               names: Optional[Sequence[str]], split: str) -> None:
  """Says which classes no example has.

  A sorted split that is cut loses some; integers that are no classes, such as
  prices, leave most out.

  Args:
    labels: of all examples of a split; nothing is said of positions.
    num_classes: of the data set; None if it has none.
    names: of the classes, or None.
    split: its name, for the message.
  """
  if labels.dtype.kind not in 'iu' or labels.ndim > 1 or num_classes is None:
    return
  present = np.unique(labels[labels >= 0])
  count = num_classes - len(present)
  if names is None and (2 * count > num_classes or num_classes > len(labels)):
    notes.say(
        f'split {split!r} has no example of {count} of {num_classes} classes. '
        "If its labels are numbers to predict, set config.task='regression'; "
        'if its examples are sorted by class, shuffle them before they are '
        'cut.')
  elif count:
    absent = np.setdiff1d(np.arange(num_classes), present)
    named = [str(x if names is None else names[x]) for x in absent]
    notes.say(
        f'split {split!r} has no example of {count} of {num_classes} '
        f'classes: {checks.abbreviate(named)}. If its examples are sorted by '
        'class, shuffle them before they are cut.')
