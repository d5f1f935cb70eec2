"""The data set `table`: CSV, TSV, JSON, parquet and Arrow folders."""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any, Optional, Union

import numpy as np

from haikd.core import checks
from haikd.core import notes
from haikd.core import registry
from haikd.data import arrays
from haikd.data import columns as columns_lib
from haikd.data import orders
from haikd.data import reading as reading_lib
from haikd.data import source
from haikd.data import splits as splits_lib
from haikd.data.image import decode
from haikd.data.tables import column as column_lib
from haikd.data.tables import table_files
from haikd.data.tables import table_labels

_VECTOR, _IMAGE = 'x', 'image'  # The keys of numbers together, and of an image.
_TRAIN = 'train'
_MASKS = (columns_lib.MASK, columns_lib.TARGET_MASK)
_NO_INPUTS = (columns_lib.LABEL, columns_lib.WEIGHT)
_INDEX = ('Unnamed: ', '__index_level_')  # Of columns that pandas adds.
_SORTED = ''  # The key of columns that are given keys by their kind.
_SHAPED = (column_lib.ARRAY, column_lib.IMAGE)

Names = Union[str, Sequence[str]]


class Rows:
  """A Source of rows, for columns too large for memory and rows with faults.

  Attributes:
    num_classes: V, or None.
    class_names: V names, or None.

  Args:
    columns: `{key: sequence of arrays}`.
    order: `[size]`, the rows in the order of the examples.
    num_classes: as the attribute.
    class_names: as the attribute.
    faults: what is wrong with rows that cannot be used, by their numbers.
  """

  def __init__(self, columns: Mapping[str, Any], order: np.ndarray,
               num_classes: Optional[int],
               class_names: Optional[tuple[str, ...]],
               faults: Mapping[int, checks.DataError]):
    self.num_classes = num_classes
    self.class_names = class_names
    self._columns = columns
    self._order = order
    self._faults = faults

  def __len__(self) -> int:
    return len(self._order)

  def __getitem__(self, index: int) -> dict[str, Any]:
    row = self._order[index]
    if row in self._faults:
      raise self._faults[row]
    return {key: column[row] for key, column in self._columns.items()}


@registry.register_dataset()
def table(split: str,
          *,
          inputs: Union[None, Names, Mapping[str, Names]] = None,
          label: Optional[Names] = 'label',
          weight: Optional[str] = None,
          channels: int = 3,
          source_dir: Optional[str] = None,
          reading: reading_lib.Reading = reading_lib.Reading()
          ) -> source.Source:
  """Rows of a table: CSV, TSV, JSON, parquet, or Arrow folders of `datasets`.

  Columns of numbers are one input together, the vector `x`. A column of arrays
  or lists is an input by its name, and one of images is `image`. They are
  decoded when they are read, as in `image_folder`. Every split has the rows in
  an order that is random but never changes; if the label is a class, the
  classes are in proportion in every stretch.

  Args:
    split: the name of a file or folder in `source_dir`, or a slice of one.
    inputs: the columns that are inputs; None for all but label, weight, and the
      row numbers of pandas, as the split 'train' has them. A dict `{key:
      columns}` makes several inputs: a single name keeps its column's shape and
      type, several names are a vector. `mask` and `target_mask` may be among
      its keys; `label` and `weight` may not.
    label: the column of labels: numbers of classes, names of classes, which are
      numbered by the alphabet over all splits, or floating-point numbers to
      predict. Several columns are a vector of numbers to predict, or, if they
      are 0 and 1, of classes of which several may be true; so are lists of 0
      and 1 that no input is as long as. None for no labels.
    weight: the column of the examples' weights; None for no weights.
    channels: of images: 3 for RGB, 1 for greyscale.
    source_dir: the folder of the files, or one file, which is the split
      'train'.
    reading: how much memory the columns may take.

  Returns:
    A Source.

  Raises:
    ConfigError: no folder, or an option out of its range.
    DataError: an unknown split, an unknown column, a missing value, or a column
      that holds no numbers.
  """
  decode.check_channels(channels)
  files = table_files.TableFiles(source_dir, channels, reading)
  splits_lib.check(split, files.splits)
  labels = () if label is None else _as_names('label', label)
  others = (*labels, *([] if weight is None else [weight]))
  chosen = _choose(inputs, files, split, others)
  requested = tuple(dict.fromkeys((*itertools.chain(*chosen.values()),
                                   *others)))
  columns = files.read(split, requested, labels)
  made = {key: _input(key, names, columns, inputs)
          for key, names in _by_key(chosen, columns).items()}
  num_classes, class_names = None, None
  if labels:
    made[columns_lib.LABEL], num_classes, class_names = table_labels.read(
        files, split, labels, columns)
  if weight is not None:
    made[columns_lib.WEIGHT] = _numbers(weight, columns).astype(np.float32)
  order, faults = _order(made, num_classes), _faults(columns, labels)
  if faults or not all(
      isinstance(value, np.ndarray) for value in made.values()):
    return Rows(made, order, num_classes, class_names, faults)
  opened = arrays.Arrays({key: value[order] for key, value in made.items()},
                         num_classes=num_classes)
  opened.class_names = class_names
  return opened


def _as_names(field: str, given: Any) -> tuple[str, ...]:
  """Returns one name or several as a tuple; refuses anything else."""
  names = (given,) if isinstance(given, str) else given
  if not isinstance(names, (list, tuple)) or not names or not all(
      isinstance(name, str) for name in names) or len({*names}) < len(names):
    raise checks.ConfigError(
        f'config.data.options.{field} must name a column, or different columns '
        f"in a tuple; got {given!r}. Write 'a' or ('a', 'b').")
  return tuple(names)


def _choose(inputs, files, split, others) -> dict[str, tuple[str, ...]]:
  """Returns the columns of each input; those of '' are still to be sorted."""
  if isinstance(inputs, Mapping):
    if not inputs:
      raise checks.ConfigError(
          'config.data.options.inputs must name columns; got {}. Write '
          "dict(x=('a', 'b')), or leave it out.")
    return {key: _as_names(f'inputs.{key}', names)
            for key, names in inputs.items()}
  if inputs is not None:
    return {_SORTED: _as_names('inputs', inputs)}
  # Other splits may have their columns in another order.
  first = _TRAIN if _TRAIN in files.splits else split
  names = tuple(name for name in files.columns(first) if name not in others)
  if numbers := [name for name in names if name.startswith(_INDEX)
                 or not name]:
    notes.say(f'the column {numbers[0]!r} is left out, since pandas gives such '
              'a name to the numbers of rows (config.data.options.inputs).')
    names = tuple(name for name in names if name not in numbers)
  if not names:
    raise checks.DataError(
        f'split {first!r} must have columns beside {others}; got none. Name '
        'the columns of labels in config.data.options.label.')
  return {_SORTED: names}


def _by_key(chosen, columns) -> dict[str, tuple[str, ...]]:
  """Returns the columns of each key; numbers are together."""
  keys: dict[str, tuple[str, ...]] = {
      key: names for key, names in chosen.items() if key != _SORTED}
  for name in chosen.get(_SORTED, ()):
    kind = columns[name].kind
    # A column that cannot be used is refused as the number that it is not.
    together = kind in (column_lib.NUMBER, column_lib.TEXT)
    key = (_VECTOR if together else
           _IMAGE if kind == column_lib.IMAGE else name)
    if key in keys and not together:
      raise checks.ConfigError(
          'config.data.options.inputs must give each input a key of its own; '
          f'got {keys[key][0]!r} and {name!r} as {key!r}. Write '
          f'dict({key}={name!r}, …).')
    keys[key] = (*keys.get(key, ()), name)
  for key in filter(_NO_INPUTS.__contains__, keys):
    raise checks.ConfigError(
        'config.data.options.inputs must have other keys than label and '
        f'weight, which are no inputs; got the column {keys[key][0]!r} under '
        f"{key!r}. Write dict(the_{key}={keys[key][0]!r}, …), or name the "
        f'column in config.data.options.{key}.')
  notes.say('inputs are ' + ', '.join(
      f'{key} of {checks.abbreviate(names)}' for key, names in keys.items()) +
            ' (config.data.options.inputs).')
  return keys


def _input(key, names, columns, inputs) -> Any:
  """Returns the values of an input."""
  alone = isinstance(inputs, Mapping) and isinstance(inputs[key], str)
  if len(names) == 1 and (alone or columns[names[0]].kind in _SHAPED):
    column = _usable(names[0], columns)
    if (column.kind == column_lib.IMAGE) != (key == _IMAGE) and (
        column.kind != column_lib.ARRAY):
      raise checks.ConfigError(
          f"config.data.options.inputs must have images under the key 'image', "
          f'and nothing else; got {names[0]!r} under {key!r}. Rename the key.')
    return _as_mask(key, column) if key in _MASKS else column.values
  vector = np.stack([_numbers(name, columns) for name in names], axis=-1)
  return vector.astype(np.float32)


def _usable(name: str, columns: table_files.Columns) -> column_lib.Column:
  """Returns a column; refuses one that does not hold what it should."""
  column = columns[name]
  if column.fault is not None:
    raise column_lib.no_input(name, column.fault)
  return column


def _numbers(name, columns) -> np.ndarray:
  """Returns a column that has one number a row."""
  column = _usable(name, columns)
  if column.kind != column_lib.NUMBER:
    raise checks.DataError(
        f'column {checks.show(name)} must have one number a row; got '
        f'{column.kind}s. Give it a key of its own in '
        'config.data.options.inputs.')
  return column.values


def _as_mask(key, column) -> np.ndarray:
  """Returns a mask as truth values."""
  values = column_lib.as_array(column)
  if not np.isin(values, (0, 1)).all():
    raise checks.DataError(
        f'{key} must be 0 or 1; got {values[~np.isin(values, (0, 1))][0]}. Fix '
        'the data, or leave it out.')
  return values.astype(bool)


def _faults(columns, labels) -> dict[int, checks.DataError]:
  """Returns the error of each row that is skipped."""
  return {row: (column_lib.no_label(name, fault, len(labels) > 1)
                if name in labels else column_lib.no_input(name, fault))
          for name, column in columns.items()
          for row, fault in column.faults.items()}


def _order(made, num_classes) -> np.ndarray:
  """Returns the rows in the order of the examples."""
  labels = made.get(columns_lib.LABEL)
  if num_classes is not None and labels.ndim == 1:
    return orders.stratified(labels)
  size = len(next(iter(made.values())))
  return np.random.RandomState(0).permutation(size)
