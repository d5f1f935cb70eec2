"""Maps that attention has kept: when, in which dtype, and who reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import attention
from haikd.attention import blocks as blocks_lib
from haikd.attention import whole
from haikd.core import base

B, H, N, K = 3, 4, 22, 4


def draw(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=x), jnp.float32) for x in shapes]


def test_maps_of_up_to_8_mib_in_one_block_are_kept():
  shape = 16, 2, 64, 1024  # 4 bytes each.
  blocks = blocks_lib.cut(*shape, causal=False, window=None, rows_of_loop=512)
  assert whole.is_small(shape, blocks)
  assert not whole.is_small((16, 2, 64, 1025), blocks)
  assert not whole.is_small(shape, blocks._replace(examples=8))


@pytest.mark.parametrize('dtype', (jnp.bfloat16, jnp.float16))
def test_half_precision_is_summed_in_float32(dtype):
  *arguments, bias = draw(
      (B, N, H, K), (B, N, 2, K), (B, N, 2, 6), (H, 2 * N - 1))
  arguments = [x.astype(dtype) for x in (*arguments, bias)]
  weights, of_maps = draw((B, N, H, 6), (B, H, N, N), seed=1)
  blocks = blocks_lib.cut(B, H, N, N, causal=False, window=None,
                          rows_of_loop=512)

  def total(query, key, value, bias):
    outputs, maps = whole.attend(blocks, query, key, value, None, None, bias)
    assert (outputs.dtype, maps.dtype) == (value.dtype, jnp.float32)
    return jnp.sum(outputs * weights) + jnp.sum(maps * of_maps), maps

  run = jax.value_and_grad(total, range(4), has_aux=True)
  (_, maps), got = run(*arguments)
  (_, exact), expected = run(*[x.astype(jnp.float32) for x in arguments])
  assert {x.dtype for x in got} == {jnp.dtype(dtype)}
  np.testing.assert_allclose(maps, exact, rtol=1e-5, atol=1e-6)
  for x, y in zip(got, expected):
    np.testing.assert_allclose(np.float32(x), y, rtol=0.03, atol=0.05)


def test_products_are_of_one_dtype_and_in_float32():
  blocks = blocks_lib.cut(1, H, N, N, causal=False, window=None,
                          rows_of_loop=512)
  arguments = [x.astype(jnp.bfloat16) for x in draw(*[(1, N, H, K)] * 3)]
  loss = lambda *x: whole.attend(blocks, *x, None, None, None)[0].sum()
  text = jax.jit(jax.value_and_grad(loss, range(3))).lower(*arguments).as_text()
  products = [line.split(' : ')[-1].split('->') for line in text.splitlines()
              if 'stablehlo.dot_general' in line]
  # Two forward and four back of bfloat16, and the sum within the softmax.
  assert sorted(x.count('bf16') for x, _ in products) == [0] + [2] * 6
  assert not any('bf16' in result for _, result in products)


def test_the_mask_alone_may_vary_between_devices():
  """In a `jax.shard_map` of a user, which checks what varies."""
  query, key, value = draw(*[(1, N, H, K)] * 3)
  mask = jnp.asarray(np.random.default_rng(1).random((8, 1, N, N)) < 0.7)
  loss = lambda query, mask: attention.attend(
      base.QueryKey(query, key, mask), value).sum()
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  on_devices = jax.shard_map(
      lambda *x: jax.lax.psum(loss(*x), 'x'), mesh=mesh,
      in_specs=(jax.P(), jax.P('x')), out_specs=jax.P())
  got = jax.jit(jax.grad(on_devices))(query, mask)
  expected = sum(jax.grad(loss)(query, mask[i:i + 1]) for i in range(8))
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def total(maps, teacher=None, *, mask):
  """Counts every entry of the maps of a student, padding as well."""
  del teacher
  return base.LossSum(jnp.sum(maps), jnp.sum(mask, dtype=jnp.float32))


def test_maps_are_0_in_padding_for_a_loss():
  maps, = draw((B, H, N, N))
  real = jnp.arange(N) < jnp.int32([[N], [5], [1]])
  query_key = base.QueryKey(*draw((B, N, H, K), (B, N, H, K)), maps=maps)
  expected = sum(
      np.sum(np.float64(maps[i, :, :n, :n]))
      for i, n in enumerate((N, 5, 1)))
  side = attention.MeanMaps((query_key,), H)
  got = attention.compare(total, side, None, mask=real)
  np.testing.assert_allclose(got.total, expected, rtol=1e-4)
  assert got.count == N + 5 + 1


def test_kept_maps_are_read_and_not_computed_again():
  maps = jnp.ones((B, H, N, N))
  query_key = base.QueryKey(*draw((B, N, H, K), (B, N, H, K)), maps=maps)
  assert query_key.materialise() is maps
  side = attention.MeanMaps((query_key,), H)
  got = attention.compare(total, side, None, mask=jnp.ones((B, N), bool))
  assert got.total == B * H * N * N


def test_lazy_maps_beside_kept_ones_stay_lazy(monkeypatch):
  query, key = draw((B, N, H, K), (B, N, H, K))
  lazy = base.QueryKey(query, key)
  kept = lazy._replace(maps=lazy.materialise())
  monkeypatch.setattr(base.QueryKey, 'materialise', lambda self: 1 / 0)
  sides = (attention.MeanMaps((x,), H) for x in (kept, lazy))
  result = haikd.losses.attention_transfer(*sides, mask=jnp.ones((B, N), bool))
  np.testing.assert_allclose(result.total, 0.0, atol=1e-3)
