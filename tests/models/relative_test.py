"""Tests of relative positions in buckets."""

import numpy as np
import pytest

from haikd.core import checks
from haikd.models import relative


# The distances at which the next bucket begins, as T5Attention of transformers
# 5.24 computes them with PyTorch; those before and after a query are alike.
@pytest.mark.parametrize('buckets, max_distance, starts', [
    (32, 128, (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91)),
    (32, 256, (1, 2, 3, 4, 5, 6, 7, 8, 13, 20, 30, 46, 70, 108, 166)),
    (16, 64, (1, 2, 3, 4, 8, 16, 32)),
    (8, 6, (1, 2, 4)),
    (4, 2, (1,)),
])
def test_buckets_begin_where_they_do_in_transformers(
    buckets, max_distance, starts):
  away = np.arange(1500)
  expected = np.searchsorted(starts, away, side='right')
  np.testing.assert_array_equal(
      relative.bucket(-away, buckets, max_distance), expected)
  np.testing.assert_array_equal(
      relative.bucket(away[1:], buckets, max_distance),
      expected[1:] + buckets // 2)


@pytest.mark.parametrize('options, text', [
    (dict(relative_buckets=0), 'relative_buckets must be a positive integer'),
    (dict(relative_buckets=6), 'relative_buckets must be a multiple of 4; got'),
    (dict(max_distance=8), 'max_distance must be above relative_buckets / 4; '
     'got 8, relative_buckets=32'),
])
def test_other_options_are_refused(options, text):
  with pytest.raises(checks.ConfigError, match=text):
    relative.check(**dict(relative_buckets=32, max_distance=128) | options)
