"""The labels of a table, numbered alike in all splits."""

from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.data import arrays
from haikd.data import columns as columns_lib
from haikd.data.tables import column as column_lib
from haikd.data.tables import table_files


def read(files: table_files.TableFiles, split: str, labels: Sequence[str],
         columns: table_files.Columns
         ) -> tuple[np.ndarray, Optional[int], Optional[tuple[str, ...]]]:
  """Reads the labels of a split.

  Args:
    files: the files, whose other splits have labels of the same classes.
    split: the name of the split.
    labels: the columns.
    columns: those of the split.

  Returns:
    `[size]` or `[size, ...]`, the number of classes or None, and their names or
    None.

  Raises:
    DataError: a label is missing, or splits name their classes differently.
  """
  own, names = _label(labels, columns)
  everywhere: dict[str, Any] = {split: dict(label=own)}
  for other in files.splits:
    if other == split:
      continue
    try:  # What is broken or has no labels is refused if it is used.
      if not {*labels} <= {*files.columns(other)}:
        continue
      label, others = _label(labels, files.read(other, labels, labels))
    except checks.DataError:
      continue
    if others != names:
      raise checks.DataError(
          f'column {labels[0]!r} must have the same classes in all splits; got '
          f'{_describe(names)} in {split!r} and {_describe(others)} in '
          f'{other!r}. Save them with one ClassLabel.')
    everywhere[other] = dict(label=label)
  if names is not None:
    return np.where(own < 0, base.IGNORED_LABEL, own), len(names), names
  if _are_several_of_n(everywhere, labels, columns):
    everywhere = {key: dict(label=given['label'].astype(np.float32))
                  for key, given in everywhere.items()}
  made = arrays.from_arrays(**everywhere)(split)
  class_names = made.class_names
  if len(labels) > 1 and made.num_classes is not None:
    class_names = tuple(labels)
  return made.columns[columns_lib.LABEL], made.num_classes, class_names


def _label(labels, columns):
  """Returns the labels of a split, and the names that they come with."""
  found = [columns[name] for name in labels]
  for name, column in zip(labels, found):
    if column.fault is not None and not (
        len(labels) == 1 and column.kind == column_lib.TEXT and
        len(column.values) and column.is_complete):
      raise column_lib.no_label(name, column.fault, len(labels) > 1)
    if column.kind == column_lib.IMAGE:
      raise checks.DataError(
          f'column {checks.show(name)} must hold labels; got images. Name '
          'another in config.data.options.label.')
  if len(labels) == 1:
    values = column_lib.as_array(found[0])
    if values.dtype == bool and values.ndim == 1:  # False is class 0.
      values = values.astype(np.int64)
    return values, found[0].names
  stacked = np.stack([column_lib.as_array(column) for column in found], -1)
  return stacked.astype(np.float32), None


def _are_several_of_n(everywhere, labels, columns) -> bool:
  """Returns whether labels say for each class whether it is true.

  Lists of 0 and 1 do, unless they are as long as those of an input, whose
  positions they are the classes of.
  """
  rows = [given['label'] for given in everywhere.values()]
  if not all(label.dtype.kind in 'iu' and label.ndim == 2 and
             label.shape[1] > 1 and np.isin(label, (0, 1)).all()
             for label in rows):
    return False
  lengths = {len(column.values[0]) for name, column in columns.items()
             if name not in labels and column.kind == column_lib.ARRAY}
  return rows[0].shape[1] not in lengths


def _describe(names):
  return 'no names' if names is None else checks.abbreviate(names)
