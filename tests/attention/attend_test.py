"""Tests of attention in blocks, against materialised maps."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import attention
from haikd.core import attention_mask
from haikd.core import base

B, H, N, K, E = 3, 4, 22, 4, 6  # Of the masks in conftest.
MASKS = ('none', 'causal', 'right', 'left', 'both_ways', 'window',
         'traced_window', 'local', 'segments', 'keys_array', 'array',
         'shared_array')


def draw(groups=2, batch=B, length=N):
  rng = np.random.default_rng(0)
  shapes = ((H, K), (groups, K), (groups, E), (H, E))
  return [jnp.asarray(rng.normal(size=(batch, length, *x)), jnp.float32)
          for x in shapes]


def materialised(masks, allowed, soft_cap=None):

  def attend(query, key, value, bias=None):
    maps = masks.by_hand(query, key, allowed, soft_cap, bias)
    value = jnp.repeat(value, H // value.shape[2], axis=2)
    return jnp.einsum('bhnm,bmhe->bnhe', maps, value)

  return attend


def results(function, arguments, weights):
  """Returns a function's outputs, and the gradients of their weighted sum."""

  def total(*arguments):
    outputs = function(*arguments)
    return jnp.sum(outputs * weights), outputs

  argnums = tuple(range(len(arguments)))
  (_, outputs), gradients = jax.jit(
      jax.value_and_grad(total, argnums, has_aux=True))(*arguments)
  return outputs, gradients


def assert_close(left, right, rtol=1e-5, atol=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), left,
               right)


def in_blocks(mask, soft_cap=None):
  return lambda query, key, value, bias=None: attention.attend(
      base.QueryKey(query, key, mask, soft_cap, bias), value)


@pytest.mark.parametrize('name', MASKS)
def test_blocks_agree_with_materialised_maps(name, small_blocks, masks):
  mask, real, allowed = masks.MASKS[name]
  *arguments, weights = draw()
  if real is not None:  # Outputs at padding must not be used.
    weights *= real[..., None, None]
  got = results(in_blocks(mask), arguments, weights)
  expected = results(materialised(masks, allowed), arguments, weights)
  keep = 1 if real is None else real[..., None, None]
  assert_close((got[0] * keep, got[1]), (expected[0] * keep, expected[1]))


@pytest.mark.parametrize('name', ('none', 'traced_window', 'array'))
def test_scores_are_capped(name, small_blocks, masks):
  """Scores of up to 6 are bounded by 1.5."""
  mask, _, allowed = masks.MASKS[name]
  *arguments, weights = draw()
  got = results(in_blocks(mask, jnp.float32(1.5)), arguments, weights)
  assert_close(got, results(
      materialised(masks, allowed, 1.5), arguments, weights))


@pytest.mark.parametrize('groups', (1, 4))
def test_key_heads_serve_their_query_heads(groups, masks):
  mask, _, allowed = masks.MASKS['causal']
  *arguments, weights = draw(groups)
  assert_close(results(in_blocks(mask), arguments, weights),
               results(materialised(masks, allowed), arguments, weights))


def test_queries_and_keys_may_differ_in_number(small_blocks, masks):
  (query, _, _, weights), (_, key, value, _) = draw(), draw(length=9)
  allowed = masks.DRAWN[:, :1, :, :9]
  got = results(in_blocks(jnp.asarray(allowed)), (query, key, value), weights)
  assert_close(got, results(materialised(masks, allowed), (query, key, value),
                            weights))


@pytest.mark.parametrize('name, keys, soft_cap', (
    ('left', N, None), ('local', N, 1.5), ('none', 9, None)))
def test_bias_by_distance_is_added_to_scores(name, keys, soft_cap, small_blocks,
                                             masks):
  mask, real, allowed = masks.MASKS[name]
  (query, _, _, weights), (_, key, value, _) = draw(), draw(length=keys)
  if real is not None:
    weights *= real[..., None, None]
  bias = np.random.default_rng(1).normal(size=(H, N + keys - 1))
  arguments = query, key, value, jnp.asarray(bias, jnp.float32)
  cap = soft_cap and jnp.float32(soft_cap)
  got = results(in_blocks(mask, cap), arguments, weights)
  expected = results(materialised(masks, allowed[..., :keys], soft_cap),
                     arguments, weights)
  keep = 1 if real is None else real[..., None, None]
  assert_close((got[0] * keep, got[1]), (expected[0] * keep, expected[1]))
  maps = base.QueryKey(query, key, mask, cap, arguments[3]).materialise()
  assert_close(maps, masks.by_hand(
      query, key, allowed[..., :keys], soft_cap, arguments[3]))


def test_query_that_attends_to_no_key_gives_0_and_has_no_gradient(
    small_blocks, masks):
  allowed = np.ones((N, N), bool)
  allowed[7] = False
  *arguments, weights = draw()
  outputs, gradients = results(in_blocks(jnp.asarray(allowed)), arguments,
                               weights)
  assert not outputs[:, 7].any() and not gradients[0][:, 7].any()
  assert np.isfinite(outputs).all() and all(map(np.any, gradients))


@pytest.mark.parametrize('dtype', (jnp.bfloat16, jnp.float16))
def test_half_precision_is_summed_in_float32(dtype, small_blocks, masks):
  mask, _, allowed = masks.MASKS['causal']
  *arguments, weights = draw()
  arguments = [x.astype(dtype) for x in arguments]
  got = results(in_blocks(mask), arguments, weights)
  assert all(x.dtype == dtype for x in jax.tree.leaves(got))
  expected = results(materialised(masks, allowed),
                     [x.astype(jnp.float32) for x in arguments], weights)
  assert_close(jax.tree.map(np.float32, got), expected, 0.03, 0.05)


def test_eager_agrees_with_compiled(small_blocks, masks):
  mask, _, allowed = masks.MASKS['right']
  *arguments, _ = draw()
  got = in_blocks(mask)(*arguments)
  expected = materialised(masks, allowed)(*arguments)
  assert_close(got[masks.RIGHT], expected[masks.RIGHT])


def test_on_eight_devices_with_heads_split_by_the_compiler(
    small_blocks, masks):
  mesh = jax.make_mesh((4, 2), ('fsdp', 'tensor'),
                       axis_types=(jax.sharding.AxisType.Auto,) * 2)
  P = jax.sharding.PartitionSpec
  real = np.concatenate([masks.RIGHT, masks.LEFT, masks.RIGHT[:2]])
  *arguments, weights = draw(batch=8)
  weights *= real[..., None, None]
  allowed = real[:, None, None] & (masks.BEHIND >= 0)
  split = lambda x: jax.device_put(
      x, jax.sharding.NamedSharding(mesh, P('fsdp', None, 'tensor')))

  def local(real, *arguments):
    mask = attention_mask.AttentionMask(real, causal=True)
    return in_blocks(mask)(*arguments)

  spec = P('fsdp')
  sharded = jax.shard_map(
      local, mesh=mesh, in_specs=(spec,) * 4, out_specs=spec,
      axis_names={'fsdp'})
  outputs, gradients = results(
      lambda *x: sharded(jnp.asarray(real), *x), list(map(split, arguments)),
      weights)
  expected, by_hand = results(
      materialised(masks, allowed), arguments, weights)
  assert_close((outputs[real], gradients), (expected[real], by_hand))


def test_keys_may_be_the_same_on_all_devices(masks):
  mesh = jax.make_mesh((8,), ('fsdp',),
                       axis_types=(jax.sharding.AxisType.Auto,))
  P = jax.sharding.PartitionSpec
  query, key, value, weights = draw(batch=8)
  one = key[:1], value[:1]
  sharded = jax.shard_map(
      in_blocks(None), mesh=mesh, in_specs=(P('fsdp'), P(), P()),
      out_specs=P('fsdp'))
  repeated = lambda query, *others: materialised(masks, np.ones((N, N), bool))(
      query, *(jnp.repeat(x, 8, axis=0) for x in others))
  assert_close(results(sharded, (query, *one), weights),
               results(repeated, (query, *one), weights))


@pytest.mark.parametrize('loop', (False, True))
@pytest.mark.parametrize('remat', (False, True))
def test_mask_is_carried_out_of_haiku_loops(loop, remat, masks):
  """In the Haiku state, as capture does it, with a window for each layer."""
  real = jnp.asarray(masks.RIGHT)
  windows = np.array([2, 5], np.int32)

  def layer(x, window):
    mask = attention_mask.AttentionMask(real, causal=True, window=window)
    query_key = base.QueryKey(x, x, mask)
    hk.set_state('maps', query_key)
    return x + attention.attend(query_key, x)

  def network(x):
    one = hk.remat(layer) if remat else layer
    if loop:
      stack = hk.layer_stack(2, with_per_layer_inputs=True)
      return stack(lambda x, w: (one(x, w), None))(x, jnp.asarray(windows))[0]
    return one(x, jnp.int32(windows[0]))

  x = draw()[0]
  net = hk.transform_with_state(network)
  _, state = jax.jit(net.apply)({}, {}, None, x)
  (query_key,), = (module.values() for module in state.values())
  assert query_key.mask.causal
  np.testing.assert_array_equal(query_key.mask.window,
                                windows if loop else windows[0])


def test_memory_grows_with_the_length_and_not_its_square():

  def temporary(length):
    shape = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
    total = lambda *x: jnp.sum(in_blocks(None)(*x))
    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(
        shape, shape, shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(8192) < 2.5 * temporary(4096)
