"""Images of any size are resized to one size."""

import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import registry
from haikd.data import pipeline
from haikd.data.image import augment
from haikd.data.image import resize


def rng(seed=0):
  return np.random.default_rng(seed)


def ramp(height, width):
  """Returns an image whose channels are 4 x row, 4 x column and 7."""
  rows, columns = np.mgrid[:height, :width]
  return np.stack([4 * rows, 4 * columns, np.full_like(rows, 7)],
                  axis=-1).astype(np.uint8)


@pytest.mark.parametrize('height, width', [(32, 32), (48, 32), (32, 60)])
def test_the_centre_is_seven_eighths_of_the_shorter_side(height, width):
  """28 of 32 pixels remain, and resizing to 14 averages about two by two.

  The first of the 14 pixels has its centre 1 pixel from one edge of the window,
  the last 1 pixel from the other. On a ramp bilinear averaging keeps the value
  at the centre. Input pixel i has its centre at i + 1/2, so a centre 1 pixel
  from the edge is at pixel index 1/2.
  """
  image = resize.resize_and_crop(ramp(height, width), size=14, crop=0.875)
  assert image.shape == (14, 14, 3) and image.dtype == np.uint8
  top, left = (height - 28) / 2, (width - 28) / 2
  at = np.arange(14) * 2 + 1 - 0.5
  np.testing.assert_allclose(image[:, 0, 0], 4 * (top + at), atol=1)
  np.testing.assert_allclose(image[0, :, 1], 4 * (left + at), atol=1)
  assert (image[..., 2] == 7).all()


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_small_images_are_enlarged(channels):
  image = np.full((4, 8, channels), 9, np.uint8)
  assert (resize.resize_and_crop(image, size=16, crop=0.875) == 9).all()
  out = resize.random_resized_crop(image, rng(), size=16)
  assert out.shape == (16, 16, channels) and (out == 9).all()


def windows(count=4000, height=40, width=60, **options):
  """Returns the heights and widths of random windows, and the windows.

  The size is read off a ramp: the centres of the first and the last of 8 pixels
  are 7/8 of the window apart.
  """
  generator = rng()
  image = ramp(height, width)
  out = np.stack([
      resize.random_resized_crop(image, generator, size=8, **options)
      for _ in range(count)]).astype(float)
  rows = (out[:, -1, 0, 0] - out[:, 0, 0, 0]) / 4 * 8 / 7
  columns = (out[:, 0, -1, 1] - out[:, 0, 0, 1]) / 4 * 8 / 7
  return rows, columns, out


def test_windows_have_the_requested_areas_and_proportions():
  """Only windows that fit: no square covers more than 2/3 of 40 x 60."""
  rows, columns, out = windows()
  area = rows * columns / 2400
  assert 0.06 < area.min() < 0.1 and 0.8 < area.max() < 0.95
  shape = columns / rows
  assert 0.68 < shape.min() < 0.8 and 1.25 < shape.max() < 1.5
  # Windows reach every edge, and their mean centre is that of the image.
  assert out[..., 0].min() <= 4 and out[..., 0].max() >= 4 * 38
  middle = out[..., 1].mean() / 4
  assert abs(middle - 29.5) < 1


def test_area_is_uniform_where_every_window_fits():
  """Squares of every area fit into 60 x 60: the mean is (0.2 + 1) / 2."""
  rows, columns, _ = windows(
      height=60, width=60, smallest=0.2, ratio=1.0)
  np.testing.assert_allclose(rows, columns, atol=1)
  np.testing.assert_allclose((rows * columns / 3600).mean(), 0.6, atol=0.02)
  quarter = np.quantile(rows * columns / 3600, 0.25)
  np.testing.assert_allclose(quarter, 0.4, atol=0.03)


@pytest.fixture
def cut(monkeypatch):
  """Returns a function that returns the boxes of random windows."""

  def boxes(count, height, width, **options):
    seen = []
    monkeypatch.setattr(
        resize, '_resize', lambda image, *box: seen.append(box[:4]))
    generator = rng()
    image = np.zeros((height, width, 1), np.uint8)
    for _ in range(count):
      resize.random_resized_crop(image, generator, size=2, **options)
    return np.array(seen).T

  return boxes


def test_proportions_are_log_uniform(cut):
  _, _, rows, columns = cut(8000, 1000, 1000, ratio=2.0)
  # Below 0.45 of the area every window fits: sqrt(0.45 x 2) < 1.
  shape = np.log2(columns / rows)[rows * columns < 450_000]
  assert len(shape) > 2000
  np.testing.assert_allclose(
      np.quantile(shape, (0, 0.25, 0.5, 0.75, 1)), (-1, -0.5, 0, 0.5, 1),
      atol=0.05)


def test_windows_lie_anywhere_inside_the_image(cut):
  top, left, rows, columns = cut(4000, 5, 7, smallest=0.2)
  for start, size, side in ((top, rows, 5), (left, columns, 7)):
    # A window 2 pixels shorter than the side has 3 starts, equally likely.
    starts = start[size == side - 2]
    counts = np.bincount(starts)
    assert len(counts) == 3 and len(starts) > 300
    np.testing.assert_allclose(counts / len(starts), 1 / 3, atol=0.08)
    assert (start >= 0).all() and (start + size <= side).all()


def test_no_window_is_empty(cut):
  # 0.08 to 0.25 of a pixel would round to 0 rows and 0 columns.
  _, _, rows, columns = cut(200, 1, 1)
  assert (rows == 1).all() and (columns == 1).all()


def test_an_image_too_narrow_for_any_window_gives_its_centre():
  """A window of 0.34 · 60 · 6 at ratio 2 is at least 7.8 wide: none fits.

  The largest within the ratio is 12 x 6, which begins at row 24.
  """
  out = resize.random_resized_crop(
      ramp(60, 6), rng(), size=12, smallest=0.34, ratio=2.0)
  np.testing.assert_allclose(out[:, 0, 0], 4 * (24 + np.arange(12)), atol=1)


def test_the_same_generator_makes_the_same_view():
  first, again, other = (
      resize.random_resized_crop(ramp(40, 60), rng(seed), size=8)
      for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


@pytest.mark.parametrize('options, text', [
    (dict(smallest=0.0), 'smallest must be above 0 and at most 1; got 0.0'),
    (dict(smallest=1.5), 'smallest must be above 0 and at most 1; got 1.5'),
    (dict(ratio=0.5), 'ratio must be at least 1; got 0.5'),
])
def test_options_out_of_range_are_refused(options, text):
  with pytest.raises(checks.ConfigError,
                     match=f'augment.random_resized_crop.{text}'):
    resize.random_resized_crop(ramp(4, 4), rng(), size=2, **options)


@pytest.mark.parametrize('image', [np.zeros((4, 4), np.uint8),
                                   np.zeros((4, 4, 1), int)])
def test_what_cannot_be_resized_is_refused(image):
  with pytest.raises(checks.DataError,
                     match='image must be uint8 or floating .* to be resized;'):
    resize.resize_and_crop(image, size=2, crop=0.875)


def test_crop_needs_an_image_size():
  with pytest.raises(checks.ConfigError, match=(
      'config.data.image_size must be set for random_resized_crop; got None. '
      'Set it, .* or leave config.x.random_resized_crop out')):
    resize.build_cut(
        dict(random_resized_crop={}), None, crop=1.0, field='config.x')


def test_at_most_one_augmentation_resizes():
  known = augment.augmentations
  with known.temporary():
    augment.register_augmentation('other', stage='size')(lambda image, rng: 1)
    with pytest.raises(
        checks.ConfigError,
        match='config.data.augment must hold at most one augmentation of the '
        'stage `size`; got random_resized_crop, other'):
      resize.build_cut(
          dict(random_resized_crop={}, other={}), 8, crop=1.0)


class Pictures(list):
  """Images of different sizes, each of one colour."""
  num_classes = 3


@pytest.fixture
def config():
  examples = Pictures(
      dict(image=np.full((4 + i, 9 - i % 4, 3), i, np.uint8), label=i % 3)
      for i in range(20))
  with registry.datasets.temporary():
    registry.register_dataset('pictures')(lambda split: examples)
    config = config_lib.base()
    config.batch_size = 8
    config.data.name = 'pictures'
    config.data.image_size = 6
    config_lib.validate(config)
    yield config


@pytest.mark.parametrize('augmentations', [
    {}, dict(random_resized_crop={}, flip={}, mixup={})])
def test_training_batches_have_the_size_of_the_config(config, augmentations):
  config.data.augment = augmentations
  data = pipeline.build_data(config)
  data.check()
  batch = next(data.train())
  assert batch.inputs.shape == data.spec.inputs.shape == (8, 6, 6, 3)
  again = next(pipeline.build_data(config).train())
  np.testing.assert_array_equal(batch.inputs, again.inputs)


def test_every_visit_uses_another_window(config):
  config.data.augment = dict(random_resized_crop={})
  config.batch_size = 20
  with registry.datasets.temporary():
    one = Pictures([dict(image=ramp(60, 60), label=0)] * 20)
    registry.register_dataset('pictures', replace=True)(lambda split: one)
    batch = next(pipeline.build_data(config).train())
  assert len(np.unique(batch.inputs, axis=0)) == 20


def test_evaluation_uses_the_centre_whatever_training_uses(config):
  config.data.augment = dict(random_resized_crop={})
  batch, = pipeline.build_data(config).evaluation('test')
  assert batch.inputs.shape == (20, 6, 6, 3)
  expected = np.arange(20, dtype=np.float32) / 255
  np.testing.assert_allclose(np.asarray(batch.inputs)[:, 3, 3, 0], expected)


def test_images_of_many_sizes_are_refused_without_an_image_size(config):
  config.data.image_size = None
  with pytest.raises(checks.DataError, match='keys, shapes and dtypes of the'):
    next(pipeline.build_data(config).train())


def test_data_without_images_has_no_image_size():
  config = config_lib.base()
  config.data.name, config.data.options = 'synthetic', dict(kind='tokens')
  config.data.image_size = 6
  with pytest.raises(
      checks.DataError,
      match='must hold an image, since config.data.image_size is set; got'):
    pipeline.build_data(config).spec


@pytest.mark.parametrize('size', [0, -1, 2.5, True])
def test_image_size_must_be_a_positive_number(size):
  config = config_lib.base()
  with pytest.raises((checks.ConfigError, TypeError)):
    config.data.image_size = size
    config_lib.validate(config)


@pytest.mark.parametrize('size', [5, 40])
def test_colours_are_resized_at_once_as_one_by_one(size):
  image = np.random.default_rng(0).integers(0, 256, (17, 23, 3), np.uint8)
  whole = resize.resize_and_crop(image, size=size, crop=0.9)
  single = [resize.resize_and_crop(image[..., i:i + 1], size=size, crop=0.9)
            for i in range(3)]
  np.testing.assert_array_equal(whole, np.concatenate(single, axis=-1))
  whole[0, 0] = 0  # An augmentation may write into it.
