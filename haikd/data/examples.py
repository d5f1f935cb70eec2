"""Reads examples of a Source, and stacks them to columns."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from haikd.core import checks
from haikd.data import columns as columns_lib
from haikd.data import foreign
from haikd.data import source as source_lib
from haikd.data.image import decode
from haikd.data.image import views

Columns = columns_lib.Columns


class Examples:
  """The examples of one split.

  Args:
    source: the split.
    split: its name, for messages.
  """

  def __init__(self, source: source_lib.Source, split: str):
    self._source = source
    self._split = split

  def read(self, indices: list[int]) -> Sequence[Mapping[str, Any]]:
    """Returns some examples as the Source gives them.

    Raises:
      DataError: it raises anything.
    """
    if hasattr(self._source, '__getitems__'):
      with self._reading(indices[0]):
        return self._source.__getitems__(indices)
    examples = []
    for index in indices:
      with self._reading(index):
        examples.append(self._source[index])
    return examples

  @property
  def is_encoded(self) -> bool:
    """Whether the first example has an image that is not decoded yet."""
    first, = self.read([0])
    return isinstance(first, Mapping) and isinstance(
        first.get('image'), decode.Encoded)

  def stack(self, examples: Sequence[Mapping[str, Any]],
            indices: Sequence[int], template: Optional[Columns] = None,
            fit: Optional[views.Fit] = None) -> Columns:
    """Stacks examples; refuses one with other shapes than the first.

    Args:
      examples: what `read` has returned.
      indices: theirs.
      template: columns whose keys, shapes and dtypes they must have instead.
      fit: resizes one image, or None.

    Raises:
      DataError: an example that is no dict, or has other keys, shapes or
        dtypes; it is named by split and index.
    """
    for index, example in zip(indices, examples):
      if not isinstance(example, Mapping):
        raise self.bad(index, 'be a dict', type(example).__name__,
                       'Return dict(image=…, label=…), for example.')
    # What is cut from an image is known before it is decoded.
    is_kept = lambda value: fit and isinstance(value, decode.Encoded)
    examples = [{key: value if is_kept(value) else np.asarray(value)
                 for key, value in example.items()}
                for example in examples]
    if fit is not None:
      for index, example in zip(indices, examples):
        self._fit(index, example, fit)
    expected = columns_lib.signature(examples[0]) if template is None else {
        key: (value.shape[1:], value.dtype) for key, value in template.items()}
    for index, example in zip(indices, examples):
      if fault := columns_lib.unlike(columns_lib.signature(example), expected):
        raise self.bad(index, *fault[1:])
    return {key: np.stack([example[key] for example in examples])
            for key in expected}

  def bad(self, index: int, rule: str, value: str,
          remedy: str) -> checks.DataError:
    """Returns the error 'example … must {rule}; got {value}. {remedy}'."""
    return checks.DataError(
        f'example {index} of split {self._split!r} must {rule}; got {value}. '
        f'{remedy}')

  def _reading(self, index):
    return foreign.calling(
        f'example {index} of split {self._split!r} must be readable',
        "Fix the data or the data set's code")

  def _fit(self, index, example, fit):
    if 'image' not in example:
      raise self.bad(
          index, 'hold an image, since config.data.image_size is set',
          f'the keys {sorted(example)}', 'Set config.data.image_size to None.')
    rule = (f'image of example {index} of split {self._split!r} must be '
            'resizable')
    with foreign.calling(
        f'the {rule}', 'Fix the data or the augmentation that resizes it'):
      example |= fit(example['image'])
