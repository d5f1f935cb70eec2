"""Tests of average pooling to a given shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import align

VALID, SAME, ADAPTIVE = align.PaddingMode
pool = align.avg_pool_array_to_target_shape


@pytest.fixture(params=['eager', 'jit'])
def variant(request):
  return jax.jit if request.param == 'jit' else lambda function: function


def count_up(*shape):
  return jnp.arange(np.prod(shape)).reshape(shape)


def random(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def pool_by_loops(array, out, mode, count_pad=False):
  """One axis in float64, each window written out."""
  size = len(array)
  if mode is VALID:
    stride = size // out
    window = size - (out - 1) * stride
    return [np.mean(array[i * stride:i * stride + window]) for i in range(out)]
  if mode is SAME:
    window = -(-size // out)
    low = (out * window - size) // 2
    padded = [None] * low + list(array) + [None] * (out * window - size - low)
    blocks = [padded[i * window:(i + 1) * window] for i in range(out)]
    sums = [sum(x for x in block if x is not None) for block in blocks]
    counts = [
        window if count_pad else sum(x is not None for x in block)
        for block in blocks
    ]
    return [s / n for s, n in zip(sums, counts)]
  # Each input is cut into `out` equal pieces; a window has `size` of them.
  return np.repeat(array, out).reshape(out, size).mean(axis=1)


@pytest.mark.parametrize('size, out, expected', [
    (10, 5, [0.5, 2.5, 4.5, 6.5, 8.5]),
    (10, 4, [1.5, 3.5, 5.5, 7.5]),
])
def test_valid_by_hand(variant, size, out, expected):
  got = variant(lambda x: pool(x, (out,)))(count_up(size))
  np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize('shape, target, first, total', [
    ((4, 5), (2, 5), 2.5, 95),
    ((8, 6, 4), (4, 3, 2), 14.5, 2292),
])
def test_valid_over_several_axes(variant, shape, target, first, total):
  got = variant(lambda x: pool(x, target))(count_up(*shape))
  assert got.shape == target
  assert got.flatten()[0] == first and got.sum() == total


@pytest.mark.parametrize('shape, target, count_pad, expected', [
    (5, 2, True, [2, 3]),
    (5, 2, False, [2, 4.5]),
])
def test_same_by_hand(variant, shape, target, count_pad, expected):
  got = variant(lambda x: pool(x, (target,), SAME, count_pad))(
      1 + count_up(shape))
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_same_pads_less_before_than_after():
  # 10 to 3: windows of 4, one zero on each side. 9 to 2: windows of 5, one zero
  # after the array.
  np.testing.assert_allclose(pool(count_up(10), (3,), SAME), [1, 4.5, 8])
  np.testing.assert_allclose(pool(count_up(9), (2,), SAME), [2, 6.5])


def test_adaptive_by_hand(variant):
  # Windows of 2.5: (0 + 1 + 2/2) / 2.5, (2/2 + 3 + 4) / 2.5, and so on.
  got = variant(lambda x: pool(x, (4,), ADAPTIVE))(count_up(10))
  np.testing.assert_allclose(got, [0.8, 3.2, 5.8, 8.2], rtol=1e-6)


@pytest.mark.parametrize('mode', [VALID, SAME, ADAPTIVE])
@pytest.mark.parametrize('size, out', [(80, 24), (7, 4), (12, 5), (24, 18),
                                       (6, 4), (9, 1), (8, 8), (12, 4)])
def test_agrees_with_windows_written_out(mode, size, out):
  if mode is SAME and -(-size // -(-size // out)) != out:
    pytest.skip('out of reach of SAME')
  array = random(3, size, 2)
  for count_pad in (False, True):
    got = pool(array, (3, out, 2), mode, count_pad)
    expected = np.apply_along_axis(
        lambda x: pool_by_loops(x, out, mode, count_pad), 1,
        array.astype(np.float64))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_same_counts_the_corners_of_several_axes():
  # [[1 2 3], [4 5 6], [7 8 9]] to 2 x 2: windows of 2, zeros after the array.
  # The last window averages 9 alone; with the zeros its average is 9 / 4.
  array = 1 + count_up(3, 3)
  np.testing.assert_allclose(pool(array, (2, 2), SAME), [[3, 4.5], [7.5, 9]])
  np.testing.assert_allclose(
      pool(array, (2, 2), SAME, True), [[3, 2.25], [3.75, 2.25]])


@pytest.mark.parametrize('target', [(7, 5), (3, 5), (7, 1), (1, 1), (4, 3)])
def test_adaptive_keeps_the_mean(target):
  array = random(7, 5)
  np.testing.assert_allclose(
      pool(array, target, ADAPTIVE).mean(), array.mean(), atol=1e-6)


def test_adaptive_gives_every_input_the_same_weight():
  grad = jax.grad(lambda x: pool(x, (24,), ADAPTIVE).sum())(jnp.ones(80))
  np.testing.assert_allclose(grad, np.full(80, 24 / 80), rtol=1e-6)


@pytest.mark.parametrize('mode', [VALID, SAME, ADAPTIVE])
def test_two_steps_that_divide_are_one(mode):
  array = random(24, 4)
  steps = pool(pool(array, (12, 4), mode), (4, 2), mode)
  np.testing.assert_allclose(steps, pool(array, (4, 2), mode), atol=1e-6)


@pytest.mark.parametrize('mode', [VALID, SAME, ADAPTIVE])
def test_what_divides_is_a_mean_without_windows(mode):
  jaxpr = str(jax.make_jaxpr(lambda x: pool(x, (4, 3), mode))(random(8, 9)))
  for primitive in ('reduce_window', 'dot_general', 'pad'):
    assert primitive not in jaxpr


def test_adaptive_matrix_is_as_small_as_the_sizes_allow():
  jaxpr = jax.make_jaxpr(lambda x: pool(x, (2, 1536), ADAPTIVE))(
      jnp.ones((2, 4096)))
  assert [const.shape for const in jaxpr.consts] == [(8, 3)]
  # Some platforms round float32 products to bfloat16 by default.
  assert 'HIGHEST' in str(jaxpr)


@pytest.mark.parametrize('mode', [VALID, SAME, ADAPTIVE])
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
def test_floating_dtype_is_kept(mode, dtype):
  pooled = pool(jnp.ones((9, 2), dtype), (5, 1), mode)
  assert pooled.dtype == dtype
  np.testing.assert_allclose(pooled.astype(jnp.float32), 1, rtol=1e-6)


@pytest.mark.parametrize('dtype', [jnp.int32, jnp.uint8, jnp.bool_])
def test_integers_become_float32(dtype):
  pooled = pool(jnp.array([1, 0, 0, 1], dtype), (1,))
  assert pooled.dtype == jnp.float32 and pooled == 0.5


@pytest.mark.parametrize('mode, size', [(VALID, 1001), (SAME, 1001),
                                        (ADAPTIVE, 1001), (VALID, 1000)])
def test_bfloat16_is_summed_in_float32(mode, size):
  # In bfloat16 a sum of ones stops at 256, which would give about 1/2 here.
  pooled = pool(jnp.ones(size, jnp.bfloat16), (2,), mode)
  np.testing.assert_allclose(pooled.astype(jnp.float32), [1, 1], atol=0.01)


@pytest.mark.parametrize('mode', [VALID, SAME, ADAPTIVE])
def test_gradient_is_the_transpose(mode):
  array = random(9, 4)
  weights = random(5, 4)
  function = lambda x: pool(x, (5, 4), mode)
  grad = jax.grad(lambda x: jnp.vdot(function(x), weights))(array)
  # Pooling is linear: <pool(x), w> = <x, grad> for every x.
  other = random(4, 9).T
  np.testing.assert_allclose(
      np.vdot(other, grad), np.vdot(function(other), weights), rtol=1e-4)


def test_mode_may_be_a_name():
  np.testing.assert_array_equal(
      pool(count_up(5), (2,), 'SAME'), pool(count_up(5), (2,), SAME))


def test_scalar_stays():
  assert pool(jnp.float32(3.0), ()) == 3.0


@pytest.mark.parametrize('mode', [VALID, SAME, ADAPTIVE])
@pytest.mark.parametrize('shape, target, match', [
    ((2,), (3,), r'must be from 1 to the size of its axis; got '
     r'target_shape\[0\]=3, '
     r'input_array.shape\[0\]=2. Legal: 1 to 2'),
    ((4, 2), (4, 0), r'must be from 1 .*shape\[1\]=0.*shape\[1\]=2. Legal: 1'),
    ((2,), (-1,), r'must be from 1 .*shape\[0\]=-1.*shape\[0\]=2. Legal: 1'),
    ((4,), (2, 2), r'must have a size for each axis of input_array; got '
     r'target_shape=\(2, 2\), input_array.shape=\(4,\)'),
    ((4, 4), (2,), r'target_shape=\(2,\), input_array.shape=\(4, 4\)'),
])
def test_size_that_cannot_be(mode, shape, target, match):
  with pytest.raises(ValueError, match=match):
    pool(count_up(*shape), target, mode)


@pytest.mark.parametrize('size, out, below, above', [(7, 5, 4, 7),
                                                     (10, 7, 5, 10),
                                                     (100, 30, 25, 34)])
def test_size_that_same_cannot_reach(size, out, below, above):
  with pytest.raises(
      ValueError,
      match=rf'that SAME can reach; got target_shape\[1\]={out}, '
      rf'input_array.shape\[1\]={size}.*1 to {size} are '
      f'{below} and {above}; ADAPTIVE'):
    pool(count_up(2, size), (2, out), SAME)


def test_size_that_is_no_integer():
  with pytest.raises(TypeError, match=r'tuple of integers; got .*2\.0'):
    pool(count_up(4), (2.0,))


def test_mode_that_does_not_exist():
  with pytest.raises(
      ValueError, match="must be a PaddingMode; got 'FULL'. Known: VALID"):
    pool(count_up(4), (2,), 'FULL')
