"""The columns of examples: their keys, and what cannot be used of them."""

from collections.abc import Iterator, Mapping
from typing import Any, Optional

import numpy as np

from haikd.core import checks
from haikd.data import labels as labels_lib

LABEL, MASK, TARGET_MASK = 'label', 'mask', 'target_mask'
WEIGHT = 'weight'
TARGETS = (LABEL, MASK, TARGET_MASK, WEIGHT)  # The keys that are not inputs.
STUDENT = 'student/'  # Begins the keys of what only the student gets.

# Keys that are taken for inputs, but mean something else to those who use them.
_MISTAKEN = {
    'labels': "Name it 'label'.",
    'sample_weight': "Name it 'weight'.",
    'sample_weights': "Name it 'weight'.",
    'weights': "Name it 'weight'.",
}

Columns = dict[str, np.ndarray]
Signature = Mapping[str, Any]  # {key: (shape, dtype)} of an example.


def find_fault(columns: Columns, num_classes: Optional[int],
               task: Optional[str]) -> Optional[labels_lib.Fault]:
  """Returns the first reason why training cannot use examples, or None.

  Args:
    columns: `{key: [rows, ...]}`.
    num_classes: of the data set; None if it has none.
    task: what labels are, one of `tasks.OF_LABELS`; None without labels.
  """
  return next(_faults(columns, num_classes, task), None)


def check_weights(columns: Columns, split: str) -> None:
  """Refuses a whole split in which no example counts.

  Args:
    columns: all of its examples.
    split: its name, for the message.
  """
  if WEIGHT in columns and not columns[WEIGHT].any():
    raise checks.DataError(
        f'split {split!r} must have an example whose weight is above 0; got 0 '
        f'for all {len(columns[WEIGHT])}. Fix the data, or give no weights.')


def signature(example: Mapping[str, Any]) -> Signature:
  """Returns `{key: (shape, dtype)}` of an example."""
  return {key: (value.shape, value.dtype) for key, value in example.items()}


def unlike(example: Signature,
           expected: Signature) -> Optional[labels_lib.Fault]:
  """Returns what is wrong with an example that is unlike others, or None."""
  if example == expected:
    return None
  return labels_lib.Fault(
      0, 'have the keys, shapes and dtypes of the others',
      f'{_describe(example)} instead of {_describe(expected)}',
      'Set config.data.image_size, to which images are then resized.'
      if example.get('image') != expected.get('image') else
      'Pad what is ragged and give a mask.')


def _describe(example):
  return ', '.join(f'{key} {dtype}{list(shape)}'
                   for key, (shape, dtype) in sorted(example.items()))


def _faults(columns, num_classes, task) -> Iterator[labels_lib.Fault]:
  if not set(columns) - set(TARGETS):
    yield labels_lib.Fault(
        0, 'hold an input', f'the keys {sorted(columns)}',
        'Add an image, tokens or another input.')
  for key in set(columns) & set(_MISTAKEN):
    yield labels_lib.Fault(
        0, 'have only inputs under keys other than label, mask, target_mask '
        'and weight', f'the key {key!r}', _MISTAKEN[key])
  for key, value in columns.items():
    if value.dtype.kind not in 'biuf':
      yield labels_lib.Fault(
          0, f'hold numbers in {key}', f'{key}.dtype={value.dtype}',
          'Number the classes from 0.' if key == LABEL else
          'Leave that key out.')
    if value.dtype.kind == 'f' and not (finite := np.isfinite(value)).all():
      place = tuple(np.argwhere(~finite)[0])
      yield labels_lib.Fault(int(place[0]), f'have a finite {key}',
                             str(value[place]), 'Fix the data.')
  yield from _faults_of_masks(columns)
  if WEIGHT in columns:
    yield from _faults_of_weights(columns[WEIGHT])
  if LABEL in columns and task is not None:
    fault = labels_lib.find_fault(columns[LABEL], num_classes, task)
    if fault:
      yield fault


def _faults_of_weights(weight):
  if weight.ndim > 1:
    yield labels_lib.Fault(
        0, 'have one number as its weight', f'weight.shape={weight.shape[1:]}',
        'Give one weight an example; mask and target_mask are for positions.')
  elif weight.dtype.kind not in 'iuf':
    yield labels_lib.Fault(0, 'have a number as its weight',
                           f'weight.dtype={weight.dtype}', 'Convert it.')
  elif (weight < 0).any():
    row = int(np.argmax(weight < 0))
    yield labels_lib.Fault(row, 'have a weight of 0 or more', str(weight[row]),
                           'Fix the data.')


def _faults_of_masks(columns):
  masks = (TARGET_MASK, MASK, f'{STUDENT}{MASK}')
  shapes = {key: columns[key].shape[1:] for key in masks if key in columns}
  for key in shapes:
    if columns[key].dtype != np.bool_:
      yield labels_lib.Fault(
          0, f'have a boolean {key}', f'{key}.dtype={columns[key].dtype}',
          'Compare it, as in `lengths > 0`.')
  if TARGET_MASK in shapes and shapes[TARGET_MASK] != shapes.get(MASK):
    yield labels_lib.Fault(
        0, 'have a target_mask of the shape of its mask', f'shapes={shapes}',
        'Give both, `[N]` each.')
