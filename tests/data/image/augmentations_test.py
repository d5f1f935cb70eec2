"""Augmentations on images small enough to write out."""

import numpy as np
import pytest

from haikd.core import checks
from haikd.data.image import augmentations


def rng(seed=0):
  return np.random.default_rng(seed)


def batch(*rows, **more):
  """Returns images of one channel, each given as its rows."""
  return dict(image=np.array(rows, np.float32)[..., np.newaxis], **more)


def repeated(rows, size=200):
  return batch(*[rows] * size)


def distinct(examples):
  """Returns the set of different images, as nested tuples."""
  return {tuple(map(tuple, image.tolist()))
          for image in examples['image'][..., 0]}


ALL = [augmentations.shift, augmentations.flip, augmentations.rotate,
       augmentations.crop, augmentations.erase, augmentations.noise]


@pytest.mark.parametrize('function', ALL)
def test_shape_and_dtype_stay_and_the_input_is_not_changed(function):
  image = rng(1).random((5, 6, 4, 3), np.float32)
  before = image.copy()
  after = function(dict(image=image), rng())['image']
  assert after.shape == image.shape and after.dtype == np.float32
  np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize('function', ALL)
def test_the_same_generator_makes_the_same_view(function):
  examples = dict(image=rng(1).random((5, 6, 4, 3), np.float32))
  first, again, other = (function(examples, rng(seed))['image']
                         for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


@pytest.mark.parametrize('function', ALL)
def test_other_keys_are_passed_on(function):
  examples = batch([[1, 2], [3, 4]], label=np.array([7]))
  assert function(examples, rng())['label'] == [7]


@pytest.mark.parametrize('function', [*ALL, augmentations.mixup])
@pytest.mark.parametrize('examples', [
    dict(tokens=np.zeros((2, 3))),
    dict(image=np.zeros((2, 3, 3))),
    dict(image=np.zeros((2, 3, 3, 1)), mask=np.ones((2, 9), bool)),
])
def test_examples_without_images_are_refused(function, examples):
  options = dict(num_classes=3) if function is augmentations.mixup else {}
  with pytest.raises(
      checks.DataError,
      match=r'examples must hold image \[B, height, width, channels\] and no '
      rf'mask for {function.__name__}; got \{{'):
    function(examples, rng(), **options)


@pytest.mark.parametrize('function, options, message', [
    (augmentations.shift, dict(pixels=-1),
     'shift.pixels must be at least 0; got -1'),
    (augmentations.erase, dict(pixels=-1),
     'erase.pixels must be at least 0; got -1'),
    (augmentations.noise, dict(std=-0.1),
     'noise.std must be at least 0; got -0.1'),
    (augmentations.flip, dict(probability=2),
     'flip.probability must lie between 0 and 1; got 2'),
    (augmentations.erase, dict(probability=-1),
     'erase.probability must lie between 0 and 1; got -1'),
    (augmentations.crop, dict(smallest=1.5),
     'crop.smallest must lie between 0 and 1; got 1.5'),
    (augmentations.mixup, dict(alpha=0, num_classes=2),
     'mixup.alpha must be positive; got 0'),
])
def test_options_out_of_range_are_refused(function, options, message):
  with pytest.raises(checks.ConfigError, match=f'augment.{message}'):
    function(batch([[1, 2], [3, 4]]), rng(), **options)


def test_shift_by_one_pixel_has_nine_outcomes():
  # Every move of [[1, 2], [3, 4]] by -1, 0 or 1 along both axes, zeros outside.
  expected = {
      ((1, 2), (3, 4)), ((0, 1), (0, 3)), ((2, 0), (4, 0)),
      ((0, 0), (1, 2)), ((0, 0), (0, 1)), ((0, 0), (2, 0)),
      ((3, 4), (0, 0)), ((0, 3), (0, 0)), ((4, 0), (0, 0)),
  }
  moved = augmentations.shift(repeated([[1, 2], [3, 4]]), rng(), pixels=1)
  assert distinct(moved) == expected


def test_shift_moves_channels_together():
  image = np.arange(2 * 2 * 3, dtype=np.float32).reshape(1, 2, 2, 3) + 1
  for seed in range(9):
    moved = augmentations.shift(dict(image=image), rng(seed))['image']
    blue_and_red = moved[..., 2] - moved[..., 0]
    assert set(blue_and_red.ravel().tolist()) <= {0, 2}


def test_shift_by_nothing_changes_nothing():
  examples = batch([[1, 2], [3, 4]])
  moved = augmentations.shift(examples, rng(), pixels=0)['image']
  np.testing.assert_array_equal(moved, examples['image'])


def test_flip_mirrors_left_and_right():
  examples = batch([[1, 2, 3], [4, 5, 6]])
  flipped = augmentations.flip(examples, rng(), probability=1.0)
  assert flipped['image'][0, ..., 0].tolist() == [[3, 2, 1], [6, 5, 4]]
  kept = augmentations.flip(examples, rng(), probability=0.0)
  np.testing.assert_array_equal(kept['image'], examples['image'])


def test_flip_chooses_for_each_image():
  flipped = augmentations.flip(repeated([[1, 2]]), rng(), probability=0.25)
  share = np.mean(flipped['image'][:, 0, 0, 0] == 2)
  assert 0.15 < share < 0.35  # 200 draws of 0.25: 3 standard deviations.


class Fixed:
  """A generator that returns given numbers."""

  def __init__(self, uniform=0.0, random=0.0):
    self._uniform, self._random = uniform, random

  def uniform(self, low, high, size):
    return np.full(size, self._uniform)

  def random(self, size):
    return np.full(size, self._random)


@pytest.mark.parametrize('degrees, expected', [
    (0, [[1, 2], [3, 4]]),
    (90, [[3, 1], [4, 2]]),
    (-90, [[2, 4], [1, 3]]),
    (180, [[4, 3], [2, 1]]),
])
def test_rotate_by_right_angles_permutes_pixels(degrees, expected):
  turned = augmentations.rotate(batch([[1, 2], [3, 4]]), Fixed(uniform=degrees))
  np.testing.assert_allclose(turned['image'][0, ..., 0], expected, atol=1e-5)


def test_rotate_keeps_the_centre_and_fills_corners_with_zero():
  turned = augmentations.rotate(batch(np.ones((5, 5))), Fixed(uniform=45))
  turned = turned['image'][0, ..., 0]
  assert turned[2, 2] == pytest.approx(1)
  # A corner is taken from 2 * sqrt(2) = 2.83 off the centre along one axis:
  # between 1 at 2 and 0 at 3, that is 0.17.
  assert turned[0, 0] == pytest.approx(3 - 2 * np.sqrt(2), abs=1e-5)


def test_rotate_stays_within_its_angle():
  # 10 degrees move a point 10 pixels above the centre sideways by
  # 10 * sin(10°) = 1.74: nothing arrives 3 columns away.
  image = np.zeros((21, 21))
  image[0, 10] = 1
  examples = repeated(image, 50)
  turned = augmentations.rotate(examples, rng(), degrees=10.0)['image']
  assert turned[:, :, :8].max() == turned[:, :, 13:].max() == 0
  assert turned[:, :, (8, 9, 11, 12)].max() > 0


def test_crop_of_the_full_image_changes_nothing():
  examples = batch([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
  cropped = augmentations.crop(examples, rng(), smallest=1.0)['image']
  np.testing.assert_allclose(cropped, examples['image'], rtol=1e-6)


@pytest.mark.parametrize('place, expected', [
    (0.0, [[0, 0.5, 1], [1.5, 2, 2.5], [3, 3.5, 4]]),
    (1.0, [[4, 4.5, 5], [5.5, 6, 6.5], [7, 7.5, 8]]),
])
def test_crop_enlarges_a_window(place, expected):
  # A quarter of the area is half the side. The crop has the pixels 0, 1/2 and 1
  # (or 1, 3/2 and 2) along both axes; the image's value is 3 * row + column.
  examples = batch(np.arange(9).reshape(3, 3))
  fixed = Fixed(uniform=0.25, random=place)
  window = augmentations.crop(examples, fixed)['image']
  np.testing.assert_allclose(window[0, ..., 0], expected, atol=1e-6)


def test_erase_makes_a_square_hole_anywhere_inside():
  holes = augmentations.erase(repeated(np.ones((3, 3))), rng(), pixels=2)
  expected = set()
  for top in (0, 1):
    for left in (0, 1):
      image = np.ones((3, 3))
      image[top:top + 2, left:left + 2] = 0
      expected.add(tuple(map(tuple, image.tolist())))
  assert distinct(holes) == expected


def test_erase_leaves_other_images_alone():
  examples = repeated(np.ones((3, 3)))
  spared = augmentations.erase(examples, rng(), probability=0.0)['image']
  np.testing.assert_array_equal(spared, examples['image'])


def test_erase_of_more_than_the_image_leaves_nothing():
  erased = augmentations.erase(batch(np.ones((3, 3))), rng(), pixels=9)['image']
  assert not erased.any()


def test_noise_has_the_given_spread_and_no_bias():
  noisy = augmentations.noise(repeated(np.full((10, 10), 0.5)), rng(), std=0.2)
  # 20,000 draws: standard errors of 0.0014 and 0.001.
  assert noisy['image'].mean() == pytest.approx(0.5, abs=0.006)
  assert noisy['image'].std() == pytest.approx(0.2, abs=0.004)


def one_hot_images(labels):
  """Returns images that show their label in one-hot form."""
  eye = np.eye(3, dtype=np.float32)[np.array(labels)]
  return dict(image=eye[:, np.newaxis, :, np.newaxis], label=np.array(labels))


def test_mixup_mixes_labels_as_it_mixes_images():
  mixed = augmentations.mixup(
      one_hot_images([0, 1, 2, 1] * 10), rng(), num_classes=3, alpha=1.0)
  np.testing.assert_allclose(mixed['image'][:, 0, :, 0], mixed['label'])
  np.testing.assert_allclose(mixed['label'].sum(-1), 1, rtol=1e-6)
  assert mixed['label'].dtype == np.float32
  assert ((mixed['label'] > 0).sum(-1) == 2).any()


def test_mixup_accepts_probabilities_as_labels():
  examples = one_hot_images([0, 1, 2])
  soft = dict(examples, label=np.eye(3))
  np.testing.assert_array_equal(
      augmentations.mixup(soft, rng(), num_classes=3)['label'],
      augmentations.mixup(examples, rng(), num_classes=3)['label'])


def test_mixup_without_labels_mixes_images():
  examples = one_hot_images([0, 1, 2])
  image = augmentations.mixup(examples, rng(), num_classes=3)['image']
  images = dict(image=examples['image'])
  mixed = augmentations.mixup(images, rng(), num_classes=None)
  np.testing.assert_array_equal(mixed['image'], image)
  assert 'label' not in mixed


def test_mixup_weights_are_of_the_beta_distribution():
  # Beta(1, 1) is uniform: mean 1/2, variance 1/12.
  class Recorded:

    def __init__(self):
      self.rng = rng()

    def beta(self, *args):
      self.args, self.weights = args[:2], self.rng.beta(*args)
      return self.weights

    def permutation(self, size):
      return np.arange(size)[::-1]

  recorded = Recorded()
  mixed = augmentations.mixup(
      one_hot_images([0, 1]), recorded, num_classes=3, alpha=1.0)
  assert recorded.args == (1.0, 1.0)
  first, second = recorded.weights
  np.testing.assert_allclose(
      mixed['label'], [[first, 1 - first, 0], [1 - second, second, 0]],
      rtol=1e-6)


def test_mixup_refuses_a_batch_with_unlabelled_examples():
  examples = one_hot_images([0, 1])
  examples['label'] = np.array([0, -100])
  with pytest.raises(
      checks.DataError,
      match='examples must all have a label for mixup, or none of them; got the'
      ' label -100. Leave the key label out'):
    augmentations.mixup(examples, rng(), num_classes=3)
