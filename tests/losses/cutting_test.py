"""Tests of the sizes of chunks, computed by hand."""

import pytest

from haikd.losses import cutting


@pytest.mark.parametrize('platform, expected', [
    # A group has 2^18 logits: 5 rows of 50,257 classes, or one of 262,208.
    ('cpu', {(10**6, 8192, None): (256, 8),
             (131, 8192, None): (160, 5),
             (20, 8192, None): (20, 1),
             (10**6, 50257, None): (130, 26),
             # Four chunks of equal size, and eleven.
             (512, 49152, None): (130, 26),
             (1024, 151936, None): (94, 94),
             (512, 50257, 2**23): (40, 8),
             (205, 50257, 2**23): (35, 7),
             (0, 50257, None): (1, 1),
             (10**6, 50257, 2**23): (40, 8),
             (10**6, 50257, 2**18): (1, 1),
             (10**6, 151936, None): (96, 96),
             (10**6, 262208, None): (96, 96)}),
    ('tpu', {(10**6, 8192, None): (2**28 // 4 // 8192, 1),
             (131, 8192, None): (131, 1),
             # Two chunks, of multiples of 128.
             (8193, 8192, None): (4224, 1),
             (10**6, 50257, 2**23): (41, 1),
             (10**6, 262208, None): (128, 1)}),
])
def test_chunk_has_a_whole_number_of_groups(platform, expected, compiled_for):
  with compiled_for(platform):
    for (positions, classes, chunk_bytes), size in expected.items():
      sizes = cutting.ChunkSizes(chunk_bytes)
      rows = sizes.rows(positions, classes)
      assert (rows, sizes.groups(rows, classes)) == size
