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
  made = arrays.from_arrays(**everywhere)(split)
  class_names = made.class_names
  if len(labels) > 1 and made.num_classes is not None:
    class_names = tuple(labels)
  return made.columns[columns_lib.LABEL], made.num_classes, class_names


def _label(labels, columns):
  """Returns the labels of a split, and the names that they come with."""
  found = [columns[name] for name in labels]
  for name, column in zip(labels, found):
    may_be_text = len(labels) == 1 and column.kind == column_lib.TEXT
    if column.fault is not None and not (may_be_text and column.is_complete):
      raise column_lib.unusable(name, column.fault)
    if column.kind == column_lib.IMAGE:
      raise checks.DataError(
          f'column {name!r} must hold labels; got images. Name another in '
          'config.data.options.label.')
  if len(labels) == 1:
    return column_lib.as_array(found[0]), found[0].names
  stacked = np.stack([column_lib.as_array(column) for column in found], -1)
  return stacked.astype(np.float32), None


def _describe(names):
  return 'no names' if names is None else checks.abbreviate(names)
