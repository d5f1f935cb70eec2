"""Mean and standard deviation: one number, or one for each channel."""

import numpy as np
import pytest

from haikd.core import checks
from haikd.data.image import normalise

IMAGES = np.array([[0.5, 1.0]], np.float32).reshape(1, 1, 1, 2)


def test_numbers_for_each_channel():
  # (.5 - .5) / 1 and (1 - .25) / .5.
  scaled = normalise.build_scale((0.5, 0.25), (1.0, 0.5))(IMAGES)
  assert scaled.ravel().tolist() == [0, 1.5] and scaled.dtype == np.float32


def test_number_for_all_channels():
  # (.5 - .5) / .25 and (1 - .5) / .25.
  assert normalise.build_scale(0.5, 0.25)(IMAGES).ravel().tolist() == [0, 2]


@pytest.mark.parametrize('identity', [(0, 1), ((0.0, 0.0), (1.0, 1.0))])
def test_images_may_stay_as_they_are(identity):
  assert normalise.build_scale(*identity)(IMAGES) is IMAGES


@pytest.mark.parametrize('field', ['mean', 'std'])
@pytest.mark.parametrize('numbers', [(0.5,), (0.5, 0.5, 0.5)])
def test_numbers_for_another_number_of_channels_are_refused(field, numbers):
  # NumPy would broadcast one number over both channels, and refuse three.
  built = normalise.build_scale(**{'mean': 0.0, 'std': 1.0, field: numbers})
  with pytest.raises(
      checks.ConfigError,
      match=rf'config.data.{field} must be a number, or one for each channel.*'
      rf'got {len(numbers)} numbers, image.shape=\(1, 1, 2\)'):
    built(IMAGES)


@pytest.mark.parametrize('std', [0, 0.0, -1.0, (0.5, 0.0)])
def test_std_must_be_positive(std):
  with pytest.raises(checks.ConfigError,
                     match='config.data.std must be positive; got '):
    normalise.build_scale(0.0, std)


@pytest.mark.parametrize('value', [
    np.nan, np.inf, (0.5, np.nan), '0.5', None, True, (), ((1.0, 2.0),),
    ((1.0,), 2.0), ('a', 'b')])
@pytest.mark.parametrize('field', ['mean', 'std'])
def test_anything_but_finite_numbers_is_refused(field, value):
  with pytest.raises(checks.ConfigError,
                     match=f'config.data.{field} must be a finite number'):
    normalise.build_scale(**{'mean': 0.0, 'std': 1.0, field: value})
