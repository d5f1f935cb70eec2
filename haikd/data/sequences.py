"""Data sets that only have a length and items, such as a grain.MapDataset."""

from collections.abc import Callable, Mapping, Sequence
import functools
import sys
from typing import Any, Optional

import numpy as np

from haikd.core import checks
from haikd.core import notes
from haikd.data import arrays
from haikd.data import columns as columns_lib
from haikd.data import foreign
from haikd.data import splits as splits_lib

_ALONE = 'train'  # The split of a data set that is given without splits.


class Counted:
  """A Source of any sequence of examples, whose classes follow from them.

  Attributes:
    num_classes: V, or None; all examples are read if they have a label.

  Args:
    examples: has a length and items.
    split: its name, for messages.
  """

  def __init__(self, examples: Sequence[Any], split: str):
    if len(examples) == sys.maxsize:
      raise checks.DataError(
          f'split {split!r} must have an end; got a data set that repeats '
          'without one. Leave out `repeat`: training begins anew by itself.')
    self._examples = examples
    self._split = split

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Any:
    return self._examples[index]

  @functools.cached_property
  def num_classes(self) -> Optional[int]:
    """The number of classes, as `from_arrays` takes it from labels."""
    if not len(self):
      return None
    labels = []
    for index in range(len(self)):
      with foreign.calling(
          f'example {index} of split {self._split!r} must be readable',
          "Fix the data or the data set's code"):
        example = self[index]
      if not isinstance(example, Mapping):
        raise checks.DataError(
            f'example {index} of split {self._split!r} must be a dict; got '
            f'{type(example).__name__}. Return dict(image=…, label=…), for '
            'example, and filter examples before the data set is made.')
      if columns_lib.LABEL not in example:
        return None
      labels.append(np.asarray(example[columns_lib.LABEL]))
    if len({label.shape for label in labels}) > 1:
      return None  # The reader names the example.
    count = arrays.count_classes([np.stack(labels)])
    notes.say(
        f'num_classes is {count}, by the labels of the {len(self)} examples of '
        f'split {self._split!r}, all of which were read for it. Set it as an '
        'attribute of the data set to save that.')
    return count


def by_split(data: Any) -> Callable[[str], Any]:
  """Returns a function of the name of a split, as data sets are registered.

  Args:
    data: such a function; or a dict `{split: Source}`; or a Source, which is
      the split 'train'. A Source may lack `num_classes`.

  Raises:
    ConfigError: columns instead of examples, or something without items.
  """
  if callable(data):
    return data
  sources = data if isinstance(data, Mapping) else {_ALONE: data}
  for split, source in sources.items():
    if isinstance(source, (Mapping, np.ndarray)):
      raise checks.ConfigError(
          f'data must have examples in its split {split!r}; got '
          f'{type(source).__name__}. For arrays, give '
          'haikd.data.from_arrays(train=dict(x=…, label=…)).')

  def given(split: str) -> Any:
    splits_lib.check(split, sources)
    return sources[split]

  return given
