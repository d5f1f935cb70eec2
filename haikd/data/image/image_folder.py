"""Images in folders: a folder for each class, in a folder for each split."""

from collections.abc import Iterator, Sequence
import concurrent.futures
import functools
import os
from typing import Any, Optional
import zlib

import numpy as np

from haikd.core import checks
from haikd.core import notes
from haikd.core import registry
from haikd.data import orders
from haikd.data import reading as reading_lib
from haikd.data import source
from haikd.data import splits as splits_lib
from haikd.data.image import decode
from haikd.data.records import streams
from haikd.storage import inputs
from haikd.storage import paths

_TRAIN = 'train'  # The split of a folder that has the classes in it.
_SPLITS = ('train', 'training', 'val', 'valid', 'validation', 'dev', 'test')
_THREADS = 16  # That read headers of files.

_LAYOUT = ("Put the images of each class into a folder <split>/<class>, or "
           "into a folder <class>, which are then cut, as 'train[:90%]'.")

Folders = dict[str, paths.ConcretePath]
Classes = dict[str, list[paths.ConcretePath]]


class ImageFolder:
  """A Source of images that are not decoded yet.

  Attributes:
    num_classes: the number of folders.
    class_names: their names, in the order of the classes.

  Args:
    images: the file of each image.
    labels: `[size]`, its class.
    class_names: as the attribute.
    channels: 1 or 3.
  """

  def __init__(self, images: Sequence[paths.ConcretePath], labels: np.ndarray,
               class_names: tuple[str, ...], channels: int):
    self.num_classes: Optional[int] = len(class_names)
    self.class_names: Optional[tuple[str, ...]] = class_names
    self._images = [os.fspath(image) for image in images]
    self._labels = labels
    self._channels = channels

  def __getstate__(self) -> dict[str, Any]:
    # A tenth of the bytes: a million paths begin alike.
    paths_text = '\0'.join(self._images).encode(errors='surrogateescape')
    return {**self.__dict__, '_images': zlib.compress(paths_text, 1)}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    text = zlib.decompress(state['_images']).decode(errors='surrogateescape')
    self._images = text.split('\0')

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> dict[str, Any]:
    path = paths.as_path(self._images[index])
    with (streams.explaining_read_errors(path),
          inputs.open_file(path) as file):
      content = file.read()
    return dict(image=decode.Encoded(content, repr(str(path)), self._channels),
                label=self._labels[index])


@registry.register_dataset(tasks=('classification',))
def image_folder(split: str,
                 *,
                 channels: int = 3,
                 source_dir: Optional[str] = None,
                 reading: reading_lib.Reading = reading_lib.Reading()
                 ) -> source.Source:
  """Images in folders, whose names are those of the classes.

  The files of a split are below `<source_dir>/<split>/<class>`. If they are in
  `<source_dir>/<class>`, they are the split 'train', of which slices are taken.
  A split is in an order that is random but never changes, and has the classes
  in proportion in every stretch. Classes are numbered by the alphabet; those
  of the split 'train', if there is one, are all. Where a folder with the name
  of a split, such as 'train', has classes, folders without any are left out.

  Files are .jpg, .jpeg, .png, .bmp or .webp. They are decoded when they are
  read: as people see them (their EXIF orientation is applied), with white where
  they are transparent, and from 16 bits to 8. If their sizes differ, set
  `config.data.image_size`.

  Args:
    split: the name of a folder, or a slice of one.
    channels: 3 for RGB, 1 for greyscale; all images are converted to it.
    source_dir: the folder of the splits or classes.
    reading: whether a file that is no image is refused at once, or left out
      when it is read.

  Returns:
    A Source of `image`, a `decode.Encoded`, and `label`.

  Raises:
    ConfigError: no folder, or another number of channels.
    DataError: an unknown split, a class without images, or a file that is no
      image.
  """
  decode.check_channels(channels)
  if source_dir is None:
    raise checks.ConfigError(
        'config.data.source_dir must be the folder of the images; got None. '
        f'{_LAYOUT}')
  folder = paths.as_path(os.path.expanduser(source_dir))
  folders = _find_splits(folder, split)
  splits_lib.check(split, folders)
  classes = _walk(folders[split])
  _check_classes(folders, split, classes)
  # Without a folder 'train', any split may be the one of training.
  known = [folders[_TRAIN]] if _TRAIN in folders else folders.values()
  names = sorted({name for below in known for name in _folders(below)})
  images = [image for name in names for image in classes.get(name, ())]
  labels = np.array([number for number, name in enumerate(names)
                     for _ in classes.get(name, ())], np.int32)
  _check_headers(images, reading)
  order = orders.stratified(labels)
  return ImageFolder([images[i] for i in order], labels[order], tuple(names),
                     channels)


def _find_splits(folder: paths.ConcretePath, split: str) -> Folders:
  """Returns the folder of the classes of each split."""
  below = _folders(folder)
  if not below:
    raise checks.DataError(
        f'config.data.source_dir must have folders in it; got {str(folder)!r}, '
        f'which has none or is not there. {_LAYOUT}')
  flat = [name for name, path in below.items()
          if any(map(_is_image, inputs.entries(path)))]
  if not flat:
    return below
  if not any(_has_classes(below[name]) for name in _SPLITS if name in below):
    if not {*flat} <= {*_SPLITS}:
      return {_TRAIN: folder}
    raise _without_classes(below[flat[0]])
  folders = {name: path for name, path in below.items() if _has_classes(path)}
  others = [name for name in flat if name not in folders]
  if split in others:
    raise _without_classes(below[split])
  if others:
    notes.say(f'{str(folder)!r} has folders of images beside those of splits, '
              f'which are left out: {checks.abbreviate(others)}.')
  return folders


def _without_classes(folder):
  return checks.DataError(
      'config.data.source_dir must have a folder for each class; got images in '
      f'{str(folder)!r} itself. {_LAYOUT}')


def _has_classes(folder):
  """Returns whether the folders in a folder have images, however deep."""
  return any(_is_image(entry) for path in _folders(folder).values()
             for entry in _below(path))


def _folders(folder):
  """Returns `{name: path}` of the folders in a folder, but hidden ones."""
  return {entry.path.name: entry.path for entry in inputs.entries(folder)
          if entry.is_folder and not _is_hidden(entry)}


def _is_hidden(entry):
  return entry.path.name.startswith(('.', '__MACOSX'))


def _is_image(entry):
  return not entry.is_folder and not _is_hidden(entry) and (
      entry.path.name.lower().endswith(decode.SUFFIXES))


def _walk(folder: paths.ConcretePath) -> Classes:
  """Returns the images of each class; says what was left out."""
  classes, others = {}, []
  for name, path in _folders(folder).items():
    entries = list(_below(path))
    classes[name] = [entry.path for entry in entries if _is_image(entry)]
    others += [entry.path for entry in entries if not _is_image(entry)]
  others += [entry.path for entry in inputs.entries(folder)
             if not entry.is_folder and not _is_hidden(entry)]
  if others:
    names = [path.name for path in others]
    notes.say(f'{str(folder)!r} has files that are no image of a class, which '
              f'are left out: {checks.abbreviate(names)}.')
  return classes


def _below(folder) -> Iterator[inputs.Entry]:
  """Yields the files below a folder, however deep, but hidden ones."""
  for entry in inputs.entries(folder):
    if _is_hidden(entry):
      continue
    if entry.is_folder:
      yield from _below(entry.path)
    else:
      yield entry


def _check_classes(folders: Folders, split: str, classes: Classes) -> None:
  """Refuses classes without images, and those that training does not have."""
  folder = folders[split]
  for name, images in classes.items():
    if not images:
      raise checks.DataError(
          f'{str(folder / name)!r} must have images of its class; got none '
          f'with a suffix among {", ".join(decode.SUFFIXES)}. Remove that '
          'folder, or convert its images.')
  if _TRAIN not in folders:
    return
  surplus = sorted(set(classes) - set(_folders(folders[_TRAIN])))
  if surplus:
    raise checks.DataError(
        f'{str(folder)!r} must have the classes of {_TRAIN!r}; got the folder '
        f'{surplus[0]!r}, which is not in {str(folders[_TRAIN])!r}. '
        'Rename it, or move it away.')


def _check_headers(images: Sequence[paths.ConcretePath],
                   reading: reading_lib.Reading) -> None:
  """Refuses files that are no images before training, if they are here.

  What is damaged behind its header shows when it is decoded, and so does a file
  that is to be skipped.
  """
  if any(paths.is_remote(path) for path in images[:1]):
    return
  read = (_try_header if reading.on_error == reading_lib.SKIP else _read_header)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    headers = [x for x in pool.map(read, map(os.fspath, images)) if x]
  deep = sum(header.is_deep for header in headers)
  if deep:
    notes.say(f'images of 16 bits a pixel, {deep} of {len(images)}, are scaled '
              'to 8.')
  transparent = sum(header.is_transparent for header in headers)
  if transparent:
    notes.say(f'transparent pixels become white; {transparent} of '
              f'{len(images)} images may have some.')


def _try_header(path: str) -> Optional[decode.Header]:
  try:
    return _read_header(path)
  except checks.DataError:
    return None


@functools.lru_cache(maxsize=2**20)
def _read_header(path: str) -> decode.Header:
  with (streams.explaining_read_errors(path),
        inputs.open_file(path) as file):
    return decode.read_header(file, repr(path))
