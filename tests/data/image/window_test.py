"""What is cut from an encoded image, and how it is resized."""

from importlib import metadata
import io
import logging
import operator
import pickle

import numpy as np
from PIL import Image
import pytest

from haikd import config as config_lib
from haikd.core import registry
from haikd.data import pipeline
from haikd.data.image import decode
from haikd.data.image import image_folder
from haikd.data.image import resize
from haikd.data.image import window
from haikd.run import versions


def photo(width, height):
  """Returns a smooth image in colour, as photos are."""
  y, x = np.mgrid[:height, :width] / 40
  waves = [np.sin(x + y), np.sin(x * y / 9), np.cos(x - 2 * y)]
  return Image.fromarray(np.uint8(127.5 + 127 * np.stack(waves, axis=-1)))


def jpeg(image, **options):
  content = io.BytesIO()
  image.save(content, 'jpeg', quality=95, **options)
  return content.getvalue()


def by_pillow(content, box, size):
  with Image.open(io.BytesIO(content)) as image:
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR,
                                   box=box), int)


@pytest.fixture(name='decoded')
def _decoded(monkeypatch):
  """The sizes of images as they are decoded."""
  sizes, load = [], decode.Encoded._decoded

  def loading(self, reduction):
    image = load(self, reduction)
    sizes.append(image.size)
    return image

  monkeypatch.setattr(decode.Encoded, '_decoded', loading)
  return sizes


BOX = (30.0, 10.0, 350.0, 290.0)


@pytest.mark.parametrize('size, expected', [
    (224, (401, 303)),  # A window of 280 is no twice of it.
    (71, (401, 303)), (70, (201, 152)), (35, (101, 76)), (8, (51, 38))])
def test_a_jpeg_is_decoded_no_smaller_than_twice_of_what_is_asked(
    decoded, size, expected):
  content = jpeg(photo(401, 303))
  image = decode.Encoded(content, 'x.jpg').resized(BOX, size)
  assert decoded == [expected] and image.dtype == np.uint8
  difference = np.abs(image - by_pillow(content, BOX, size))
  reduced = expected != (401, 303)
  assert difference.max() <= 12 * reduced and difference.mean() <= 2 * reduced


def test_a_turned_jpeg_is_cut_as_people_see_it(decoded):
  exif = Image.Exif()
  exif[0x0112] = 6  # Turned by a quarter.
  image = photo(400, 300)
  encoded = decode.Encoded(jpeg(image, exif=exif), 'x.jpg')
  assert encoded.shape == (400, 300, 3)
  seen = jpeg(image.transpose(Image.Transpose.ROTATE_270))
  found = encoded.resized((0, 0, 300, 100), 20)
  assert decoded == [(150, 200)]
  difference = np.abs(found - by_pillow(seen, (0, 0, 300, 100), 20))
  assert difference.mean() < 4


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('width, height', [(401, 303), (649, 866)])
def test_a_smaller_jpeg_is_cut_where_the_whole_is(
    decoded, orientation, width, height):
  exif = Image.Exif()
  exif[0x0112] = orientation
  # A ramp shows a shift by a part of a pixel, and smoothing does not change it.
  y, x = np.mgrid[:height, :width]
  ramp = np.stack([x * 250 / width, y * 250 / height, 0 * x], axis=-1)
  content = jpeg(Image.fromarray(np.uint8(ramp)), exif=exif, subsampling=0)
  encoded = decode.Encoded(content, 'x.jpg')
  full = Image.fromarray(np.asarray(encoded))
  assert full.size == encoded.shape[1::-1]
  box = (3.0, 5.0, full.width - 4.0, full.height - 2.0)
  found = encoded.resized(box, 16)
  assert decoded[-1] == (-(-full.width // 8), -(-full.height // 8))
  expected = full.resize((16, 16), Image.Resampling.BILINEAR, box=box)
  difference = found.astype(int) - np.asarray(expected, int)
  assert np.abs(difference.mean(axis=(0, 1))).max() < 0.4
  assert np.abs(difference).max() <= 3


@pytest.mark.parametrize('use', [
    lambda x: 255 - x, lambda x: x / 2 + x, lambda x: x[::2, 1:, 0],
    lambda x: np.flip(x, axis=1), lambda x: x.astype(np.float32).mean((0, 1)),
    lambda x: np.stack([x, x]), lambda x: x.transpose(2, 0, 1), lambda x: x > 9,
    lambda x: np.maximum(x, 7), lambda x: np.transpose(x).copy(), list,
    lambda x: np.add.reduce(x), operator.iadd, lambda x: x.size + len(x)])
def test_an_encoded_image_is_used_as_an_array(use):
  content = jpeg(photo(12, 9))
  image = decode.Encoded(content, 'x.jpg')
  with Image.open(io.BytesIO(content)) as expected:
    array = np.array(expected)
  assert (image.shape, image.ndim, image.dtype) == (
      array.shape, array.ndim, array.dtype)
  arguments = (1,) if use is operator.iadd else ()
  found = use(pickle.loads(pickle.dumps(image)), *arguments)
  np.testing.assert_array_equal(found, use(array, *arguments), strict=True)


def test_images_of_a_data_set_within_another(tmp_path, fresh):
  (tmp_path / 'ant').mkdir()
  photo(13, 9).save(tmp_path / 'ant' / '0.png')

  class Inverted:
    num_classes = 1

    def __init__(self, inner):
      self._inner = inner

    def __len__(self):
      return len(self._inner)

    def __getitem__(self, index):
      example = self._inner[index]
      return dict(example, image=255 - example['image'])

  @registry.register_dataset()
  def inverted(split, source_dir=None):
    return Inverted(image_folder.image_folder(split, source_dir=source_dir))

  config = config_lib.base()
  config.batch_size = 1
  config.data.update(dict(name='inverted', source_dir=str(tmp_path),
                          image_size=6, crop=1.0))
  batch = next(pipeline.build_data(config).train())
  expected = 255 - np.asarray(photo(13, 9))[:, 2:11]
  shrunk = np.asarray(Image.fromarray(np.ascontiguousarray(expected)).resize(
      (6, 6), Image.Resampling.BILINEAR), int)
  assert np.abs(batch.inputs.values[0] - shrunk).max() <= 2  # Or 0, by Pillow.


def test_what_is_cut_is_that_of_the_array():
  content = jpeg(photo(120, 90))
  crops = [resize.random_resized_crop(image, np.random.default_rng(1), size=64)
           for image in (decode.Encoded(content, 'x.jpg'),
                         np.asarray(decode.Encoded(content, 'x.jpg')))]
  np.testing.assert_array_equal(*crops)


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('size', [20, 224])
def test_the_fast_package_resizes_as_pillow_does(monkeypatch, mode, size):
  pytest.importorskip('cykooz_resizer')
  monkeypatch.setattr(window, 'is_fast', lambda: True)
  image = photo(401, 303).convert(mode)
  expected = image.resize((size, size), Image.Resampling.BILINEAR, box=BOX)
  difference = np.abs(window.resized(image, BOX, size) - np.asarray(expected,
                                                                    int))
  assert 0 < difference.max() <= 2  # It did so, and rounds otherwise.


def test_what_is_missing_is_said(caplog):
  with caplog.at_level(logging.INFO):
    window.say_how()
  assert '`pip install haikd[images]`' in caplog.text


@pytest.mark.parametrize('is_fast, name', [
    (False, 'Pillow'), (True, 'cykooz-resizer')])
def test_a_report_names_what_resizes_images(monkeypatch, is_fast, name):
  monkeypatch.setattr(window, 'is_fast', lambda: is_fast)
  monkeypatch.setattr(metadata, 'version', lambda package: f'1.2 of {package}')
  assert versions.versions()['images resized by'] == f'{name} 1.2 of {name}'
