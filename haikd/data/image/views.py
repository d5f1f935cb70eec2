"""How each network sees the images of a data set: cut, resized and scaled.

In training an image is cut and augmented once, so that both networks see the
same: at the larger of their sizes, from which the smaller one is resized then.
In evaluation the image of each network is resized from the original.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import numpy as np

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import memory
from haikd.data import columns as columns_lib
from haikd.data.image import normalise
from haikd.data.image import resize as resize_lib

_IMAGE = 'image'
_FIELD = 'config.teacher.view'
_SHARED = (columns_lib.LABEL, columns_lib.TARGET_MASK, columns_lib.WEIGHT)

Fit = Callable[[np.ndarray], columns_lib.Columns]


class ImageView(NamedTuple):
  """How one network sees images; made by `build_view`.

  Attributes:
    size: height and width that images are resized to; None to keep the size.
    crop: the share of the shorter side that evaluation uses, if it resizes.
    scale: standardises images in [0, 1].
  """

  size: Optional[int]
  crop: float
  scale: normalise.Scale

  def fit(self, image: np.ndarray) -> np.ndarray:
    """Returns one image, `[height, width, C]`, resized as in evaluation."""
    if self.size is None:
      return image
    return resize_lib.resize_and_crop(image, size=self.size, crop=self.crop)

  def inputs(self, images: np.ndarray) -> Any:
    """Returns what a batch carries for the network.

    Args:
      images: `[B, height, width, C]`, uint8, or floating in [0, 1]; resized
        already, by `fit` or for a network that sees larger ones.

    Returns:
      `[B, size, size, C]` floating, or Pixels where the images are uint8.
    """
    if self.size is not None and images.shape[1] != self.size:
      images = np.stack([
          resize_lib.resize_and_crop(image, size=self.size, crop=1.0)
          for image in images])
    return self.scale.inputs(images)


class Views(NamedTuple):
  """How both networks see images; made by `build_views`.

  Attributes:
    teacher: what the teacher sees; the student too, if it has no view.
    student: what the student sees; None if that is the same.
    cut: `(image, rng) -> image` cuts and resizes an image in training; None to
      keep the size.
  """

  teacher: ImageView
  student: Optional[ImageView]
  cut: Optional[resize_lib.Cut]

  @property
  def example_bytes(self) -> int:
    """The bytes that the images of an example take, 0 if they keep their size.

    Three float32 a pixel, the most that there are.
    """
    sizes = [view.size for view in (self.teacher, self.student)
             if view is not None and view.size is not None]
    return sum(12 * size**2 for size in sizes)

  def check_memory(self, count: int, ahead: int = 0) -> None:
    """Refuses a size at which there is no room for images.

    Args:
      count: how many are read at a time.
      ahead: how many times as many wait at once for the step, each pixel of
        three bytes at least.

    Raises:
      ConfigError: there is no room.
    """
    size = count * self.example_bytes
    memory.check('config.data.image_size', size + size // 4 * ahead,
                 f'the images of {ahead + 1} batches take' if ahead else
                 'the images of a batch take')

  def fit_training(self, rng: np.random.Generator) -> Optional[Fit]:
    """Returns what makes columns of the image of an example; None for none."""
    cut = self.cut
    return cut and (lambda image: {_IMAGE: cut(image, rng=rng)})

  def fit_evaluation(self) -> Optional[Fit]:
    """Returns what makes columns of the image of an example; None for none."""
    if self.cut is None:
      return None
    views = {_IMAGE: self.teacher}
    if self.student is not None and self._sizes_differ():
      views[columns_lib.STUDENT + _IMAGE] = self.student
    return lambda image: {key: view.fit(image) for key, view in views.items()}

  def inputs(self, examples: columns_lib.Columns) -> columns_lib.Columns:
    """Returns columns with the images that each network gets.

    Args:
      examples: `{key: [B, …]}`, read with one of the above.

    Returns:
      The columns; where the networks see different images, with those of the
      student, which begin with `columns.STUDENT`.

    Raises:
      ConfigError: the teacher has a view, but the data has no images.
    """
    if _IMAGE not in examples:
      if self.student is not None:
        raise checks.ConfigError(
            f'{_FIELD} must be left out unless examples have the key image; '
            f'got the keys {sorted(examples)}. Leave it out.')
      return examples
    image = self.teacher.inputs(examples[_IMAGE])
    if self.student is None:
      return {**examples, _IMAGE: image}
    key = columns_lib.STUDENT + _IMAGE
    own = [name for name in examples
           if name.startswith(columns_lib.STUDENT) and name != key]
    if own:
      raise checks.ConfigError(
          f'{_FIELD} must be left out where the data itself has what only the '
          f'student gets; got the keys {own}. Leave it out.')
    shared = {columns_lib.STUDENT + name: value
              for name, value in examples.items()
              if name not in _SHARED and name != key}
    seen = self.student.inputs(examples.get(key, examples[_IMAGE]))
    return {**examples, **shared, _IMAGE: image, key: seen}

  def _sizes_differ(self):
    return self.student is not None and (
        self.teacher.size, self.teacher.crop) != (
            self.student.size, self.student.crop)


def of_teacher(config: config_lib.ConfigDict) -> dict[str, Any]:
  """Returns the fields of `config.data` that the teacher's view replaces.

  Args:
    config: a config made from `haikd.config.base()`.
  """
  return {name: value for name, value in config.teacher.view.items()
          if value is not None and value != config.data[name]}


def build_view(data: config_lib.ConfigDict,
               field: str = 'config.data') -> ImageView:
  """Returns how a network sees images.

  Args:
    data: `config.data`, or a copy with the fields of another view.
    field: the config field that holds mean and std, for messages.

  Raises:
    ConfigError: a mean or std out of its range.
  """
  return ImageView(data.image_size, data.crop,
                   normalise.build_scale(data.mean, data.std, field))


def build_views(config: config_lib.ConfigDict,
                augment_field: str = 'config.data.augment') -> Views:
  """Returns how the networks of a config see images.

  Args:
    config: a config made from `haikd.config.base()`.
    augment_field: the config field that holds the augmentations, for messages.

  Raises:
    ConfigError: a mean or std out of its range, augmentations that cannot
      resize images, or a size for the teacher alone.
  """
  data, replaced = config.data, of_teacher(config)
  size = replaced.get('image_size')
  if size is not None and data.image_size is None:
    raise checks.ConfigError(
        f'{_FIELD}.image_size must be None unless config.data.image_size is '
        f'set, the size that the student sees; got {size}. Set both.')
  largest = max(filter(None, (size, data.image_size)), default=None)
  cut = resize_lib.build_cut(config_lib.plain(data.augment), largest,
                             crop=data.crop, field=augment_field)
  student = build_view(data)
  if not replaced:
    return Views(student, None, cut)
  seen: Any = config_lib.ConfigDict(dict(data.items()))
  with seen.ignore_type():  # A number may be replaced by a tuple.
    seen.update(replaced)
  return Views(build_view(seen, _FIELD), student, cut)
