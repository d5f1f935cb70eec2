"""What a network takes and returns, kept with its weights."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional

import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import tasks
from haikd.data import batches
from haikd.data import pipeline

ALONE = ''  # The key of an input that comes without one.


class Interface(NamedTuple):
  """What a network was trained on.

  Attributes:
    inputs: `{key: (shape of one example, dtype)}`; the key '' is that of a
      single input.
    mask: the shape of one example's mask.
    is_image: whether a single input is an image.
    num_classes: the number of outputs, for a model that asks for it, or None.
    class_names: V names, or None.
  """

  inputs: Mapping[str, tuple[tuple[int, ...], str]]
  mask: tuple[int, ...]
  is_image: bool
  num_classes: Optional[int]
  class_names: Optional[tuple[str, ...]]

  @property
  def images(self) -> set[str]:
    """The keys of inputs that are images."""
    known = {'image', ALONE} if self.is_image else {'image'}
    return known & set(self.inputs)

  def view(self, inputs: Any, mask: Optional[np.ndarray],
           prepare: Callable[[Any], np.ndarray]) -> base.View:
    """Returns what the network gets for a batch of examples.

    Args:
      inputs: `[B, …]`, or a dict of such arrays, as a data set gives them.
      mask: bool, `[B]` or `[B, N]`; None for all true.
      prepare: resizes and scales a batch of images.

    Raises:
      DataError: other keys or dtypes, or another number of axes, than in
        training.
    """
    given = dict(inputs) if isinstance(inputs, Mapping) else {ALONE: inputs}
    if set(given) != set(self.inputs):
      raise checks.DataError(
          f'inputs must be {_keys(self.inputs)}; got {_keys(given)}. Give what '
          'the data set has in its examples.')
    images = self.images
    arrays = {
        key: self._checked(
            key, prepare(value) if key in images else np.asarray(value),
            key in images)
        for key, value in given.items()}
    if mask is None:
      mask = np.ones(self._mask_shape(arrays), bool)
    only = arrays[ALONE] if ALONE in arrays else arrays
    return base.View(only, np.asarray(mask, bool))

  def to_json(self) -> dict[str, Any]:
    """Returns it in types of JSON, for `from_json`."""
    return self._asdict()

  def _checked(self, key, array, is_image):
    """Returns an input in the dtype that it had in training."""
    shape, dtype = self.inputs[key]
    # Integers stand for themselves, also where training had floats.
    fits = batches.narrow(array).dtype == dtype or (
        dtype == 'float32' and array.dtype.kind in 'iu' and not is_image)
    # Positions may be fewer or more than in training.
    if (not fits or array.ndim != len(shape) + 1 or
        is_image and array.shape[1:] != shape):
      trained = ', '.join(map(str, ('B', *shape)))
      raise checks.DataError(
          f'{key or "inputs"} must be [{trained}] of {dtype}, as in training; '
          f'got {list(array.shape)} of {array.dtype}.')
    return np.ascontiguousarray(array, dtype)

  def _mask_shape(self, arrays):
    """Returns the shape of a mask: that of the input that has its axes."""
    rank = len(self.mask)
    shapes = [array.shape[:rank + 1] for key, array in arrays.items()
              if self.inputs[key][0][:rank] == self.mask]
    return shapes[0]


def of_data(data: pipeline.Data, role: str = 'student') -> Interface:
  """Returns what a network that is trained on data takes.

  Args:
    data: reads one example, unless one was read.
    role: 'teacher' or 'student', whose inputs they are.
  """
  view = data.spec.view(role)
  inputs = view.inputs if isinstance(view.inputs, dict) else {
      ALONE: view.inputs}
  return Interface(
      inputs={key: (x.shape[1:], str(x.dtype)) for key, x in inputs.items()},
      mask=view.mask.shape[1:],
      is_image=data.image_dtype is not None,
      num_classes=tasks.count_outputs(
          data.task, data.spec.labels, data.num_classes),
      class_names=data.class_names)


def from_json(saved: Mapping[str, Any]) -> Interface:
  """Returns what `Interface.to_json` was called on."""
  names = saved['class_names']
  return Interface(**{
      **saved,
      'inputs': {key: (tuple(shape), dtype)
                 for key, (shape, dtype) in saved['inputs'].items()},
      'mask': tuple(saved['mask']),
      'class_names': None if names is None else tuple(names)})


def _keys(inputs):
  if set(inputs) == {ALONE}:
    return 'one array'
  return f'a dict of {", ".join(sorted(inputs))}'
