"""Tests of policies, norms, synchronised BatchNorm and the loss scale."""

import haiku as hk
import jax
import jax.numpy as jnp
import jmp
import numpy as np
import pytest

from haikd.core import checks
from haikd.network import precision

P = jax.sharding.PartitionSpec

# With a mean far from zero, where half precision has few digits left.
INPUTS = 20 + 3 * np.random.RandomState(0).randn(2, 8, 4).astype(np.float32)

NORMS = {
    'layer_norm': lambda x: hk.LayerNorm(-1, True, True)(x),
    'layer_norm_fast': lambda x: hk.LayerNorm(
        -1, True, True, use_fast_variance=True)(x),
    'group_norm': lambda x: hk.GroupNorm(2)(x),
    'group_norm_keyword': lambda x: hk.GroupNorm(2)(x=x),
    'instance_norm': lambda x: hk.InstanceNorm(True, True)(inputs=x),
    'rms_norm': lambda x: hk.RMSNorm(-1)(x),
    'batch_norm': lambda x: hk.BatchNorm(True, True, 0.9)(x, True),
}


def apply(function, inputs, params=None, state=None):
  network = hk.transform_with_state(function)
  if params is None:
    params, state = network.init(jax.random.key(0), inputs)
  return network.apply(params, state, jax.random.key(0), inputs)


@pytest.mark.parametrize('name', ['float32', 'bfloat16', 'float16'])
def test_policy_keeps_parameters_in_float32(name):
  policy = precision.policy(name)
  tree = {'w': jnp.ones(2), 'count': jnp.ones(2, jnp.int32)}
  assert policy.cast_to_compute(tree)['w'].dtype == name
  assert policy.cast_to_compute(tree)['count'].dtype == jnp.int32
  assert policy.cast_to_param(tree)['w'].dtype == jnp.float32
  assert policy.output_dtype == policy.compute_dtype


@pytest.mark.parametrize('function',
                         [precision.policy, precision.initial_loss_scale])
def test_unknown_precision_names_the_closest(function):
  text = "^precision must be a known name; got 'bf16'.*Known: bfloat16"
  with pytest.raises(checks.ConfigError, match=text):
    function('bf16')


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_norms_compute_in_float32_and_return_their_input_dtype(norm, dtype):
  inputs = jnp.asarray(INPUTS, dtype)

  def widened(x):
    with precision.norms_in_float32():
      return NORMS[norm](x)

  actual, _ = apply(widened, inputs)
  expected, _ = apply(NORMS[norm], inputs.astype(jnp.float32))
  assert actual.dtype == dtype
  # Equal exactly: only the result is rounded.
  np.testing.assert_array_equal(
      np.asarray(actual, np.float32),
      np.asarray(expected.astype(dtype), np.float32))
  plain, _ = apply(NORMS[norm], inputs)
  assert not np.array_equal(
      np.asarray(plain, np.float32), np.asarray(actual, np.float32))


def test_other_modules_keep_their_dtype():
  def function(x):
    with precision.norms_in_float32():
      return hk.Linear(3)(x)

  outputs, _ = apply(function, jnp.ones((2, 4), jnp.bfloat16))
  assert outputs.dtype == jnp.bfloat16


def test_moving_statistics_stay_in_float32():
  def function(x):
    with precision.norms_in_float32():
      return hk.BatchNorm(True, True, 0.9)(x, is_training=True)

  inputs = jnp.asarray(INPUTS, jnp.bfloat16)
  _, state = apply(function, inputs)
  assert {x.dtype for x in jax.tree.leaves(state)} == {
      jnp.dtype('float32'), jnp.dtype('int32')}
  # Debiased, so that after one batch the average is that batch's mean.
  np.testing.assert_allclose(
      state['batch_norm/~/mean_ema']['average'],
      np.mean(np.asarray(inputs, np.float64), (0, 1), keepdims=True),
      rtol=1e-6)


def test_batch_norm_keeps_the_axis_its_author_chose():
  def function(x):
    norm = hk.BatchNorm(True, True, 0.9, cross_replica_axis='mine')
    with precision.synchronised_batch_norm(('batch',)):
      outputs = norm(x, is_training=True)
    assert norm.cross_replica_axis == 'mine'
    plain = hk.BatchNorm(True, True, 0.9)
    with precision.synchronised_batch_norm(('mine',)):
      plain(x, is_training=True)
    assert plain.cross_replica_axis is None
    return outputs

  # Only 'mine' is bound here, so any other axis would fail.
  jax.vmap(lambda x: apply(function, x)[0], axis_name='mine')(INPUTS)


def test_batch_norm_agrees_with_a_single_device():
  axes = ('replica', 'fsdp')
  mesh = jax.make_mesh(
      (4, 2), axes, axis_types=(jax.sharding.AxisType.Auto,) * 2)

  def build(axes):
    def forward(x, is_training):
      with precision.synchronised_batch_norm(axes):
        x = hk.Linear(5)(x)
        x = hk.BatchNorm(True, True, 0.9)(x, is_training)
        return hk.Linear(2)(jax.nn.relu(x))
    return hk.transform_with_state(forward)

  # The means of shards are far apart, and so are their statistics.
  x = np.random.RandomState(0).randn(16, 3).astype(np.float32)
  x += 3 * np.repeat(np.arange(8), 2)[:, None]
  params, state = build(()).init(jax.random.key(0), x, True)
  params = jax.tree.map(
      lambda p: p + 0.1 * np.arange(p.size).reshape(p.shape), params)

  def loss(params, state, x, axes):
    y, state = build(axes).apply(params, state, None, x, True)
    total = jnp.sum(jnp.sin(y))
    return jax.lax.psum(total, axes) if axes else total, state

  def sharded(params, state, x):
    return jax.value_and_grad(loss, has_aux=True)(params, state, x, axes)

  sharded = jax.jit(jax.shard_map(
      sharded, mesh=mesh, in_specs=(P(), P(), P(axes)), out_specs=P(),
      check_vma=True))
  single = jax.value_and_grad(loss, has_aux=True)(params, state, x, ())
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
      sharded(params, state, x), single)

  evaluate = jax.shard_map(
      lambda p, s, x: build(axes).apply(p, s, None, x, False)[0],
      mesh=mesh, in_specs=(P(), P(), P(axes)), out_specs=P(axes))
  np.testing.assert_allclose(
      evaluate(params, single[0][1], x),
      build(()).apply(params, single[0][1], None, x, False)[0], rtol=1e-4)


@pytest.mark.parametrize('jit', [False, True])
def test_loss_scale_follows_the_gradients(jit):
  adjust = lambda scale, finite: scale.adjust(finite)
  adjust = jax.jit(adjust) if jit else adjust
  scale = precision.initial_loss_scale('float16')
  assert scale.loss_scale == 32768
  # An overflow halves the scale, down to 1.
  for expected in [2.0**k for k in range(14, -1, -1)] + [1.0, 1.0]:
    scale = adjust(scale, jnp.array(False))
    assert scale.loss_scale == expected
  # 2000 finite steps double the scale.
  scale = precision.DynamicLossScale(jnp.float32(8), jnp.int32(1998))
  scale = adjust(scale, jnp.array(True))
  assert (scale.loss_scale, scale.counter) == (8, 1999)
  scale = adjust(scale, jnp.array(True))
  assert (scale.loss_scale, scale.counter) == (16, 0)
  assert isinstance(scale, precision.DynamicLossScale)


def test_loss_scale_may_hold_shardings():
  scale = precision.initial_loss_scale('float16')
  specs = jax.tree.map(lambda x: jax.sharding.PartitionSpec(), scale)
  assert specs.loss_scale == jax.sharding.PartitionSpec()


@pytest.mark.parametrize('name', ['float32', 'bfloat16'])
def test_wide_exponents_need_no_loss_scale(name):
  assert precision.initial_loss_scale(name) == jmp.NoOpLossScale()


@pytest.mark.parametrize('jit', [False, True])
def test_keep_if_drops_a_step_that_overflowed(jit):
  def step(params, grads):
    new = {'w': params['w'] - grads, 'n': params['n'] + 1, 'none': None}
    return precision.keep_if(jmp.all_finite(grads), new, params)

  step = jax.jit(step) if jit else step
  params = {'w': jnp.ones(2), 'n': jnp.int32(3), 'none': None}
  same = step(params, jnp.array([jnp.nan, 1.0]))
  np.testing.assert_array_equal(same['w'], [1, 1])
  assert same['n'] == 3
  moved = step(params, jnp.array([2.0, 1.0]))
  np.testing.assert_array_equal(moved['w'], [-1, 0])
  assert moved['n'] == 4
