"""Users' networks with constants in loops and branches train on any mesh.

Inside `jax.shard_map` a constant is equal on all devices, but what a loop
computes from it is not; JAX must not refuse such a loop.
"""

import functools

import haiku as hk
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.core import registry
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib

BATCH, LENGTH, WIDTH, CLASSES = 16, 4, 3, 5


def unrolled(core, x):
  """Returns the last output of a recurrent core; its first state is zeros."""
  outputs, _ = hk.dynamic_unroll(
      core, x, core.initial_state(x.shape[0]), time_major=False)
  return outputs[:, -1]


def lstm(x, is_training):
  return unrolled(hk.LSTM(WIDTH), x)


def gru(x, is_training):
  return unrolled(hk.GRU(WIDTH), x)


def haiku_scan(x, is_training):
  layer = hk.Linear(WIDTH)

  def body(carry, row):
    carry = jnp.tanh(layer(row) + carry)
    return carry, jnp.zeros(())

  carry, _ = hk.scan(
      body, jnp.zeros((x.shape[0], WIDTH)), jnp.swapaxes(x, 0, 1))
  return carry


def fori_loop(x, is_training):
  return lax.fori_loop(
      0, LENGTH, lambda i, total: jnp.tanh(total + x[:, i]),
      jnp.zeros((x.shape[0], WIDTH)))


def sum_of_rows(x):
  """Adds up the rows of `[B, N, D]` until there are none left."""

  def add(carry):
    i, total = carry
    return i + 1, total + x[:, i]

  start = jnp.int32(0), jnp.zeros((x.shape[0], WIDTH))
  return lax.while_loop(lambda carry: carry[0] < LENGTH, add, start)[1]


@jax.custom_vjp
def differentiable_sum(x):
  return sum_of_rows(x)


differentiable_sum.defvjp(
    lambda x: (sum_of_rows(x), None),
    lambda _, gradient: (jnp.repeat(gradient[:, None], LENGTH, axis=1),))


def while_loop(x, is_training):
  # JAX has no gradient of this loop: the student has a custom one, the teacher
  # needs none.
  return differentiable_sum(x) if is_training else sum_of_rows(x)


def while_loop_on_constants(x, is_training):
  return x[:, -1] + sum_of_rows(lax.stop_gradient(x))


def cond(x, is_training):
  gate = hk.get_parameter('gate', (), init=jnp.ones)
  constant = jnp.full((x.shape[0], WIDTH), 0.5)
  one = lax.cond(gate > 0, lambda: x[:, 0], lambda: constant)
  other = lax.cond(gate > 2, lambda: x[:, 0], lambda: constant)
  return one * gate + other


NETWORKS = (lstm, gru, haiku_scan, fori_loop, while_loop,
            while_loop_on_constants, cond)


@functools.cache
def make_batch():
  rng = np.random.RandomState(0)
  return base.Batch(
      inputs=rng.randn(BATCH, LENGTH, 2).astype(np.float32),
      mask=np.arange(BATCH) % 5 > 0,
      labels=rng.randint(0, CLASSES, BATCH).astype(np.int32))


def build(config, devices):
  batch = make_batch()
  mesh = mesh_lib.build_mesh(config.mesh, jax.devices()[:devices])
  return program_lib.build_program(
      config, num_classes=CLASSES, mesh=mesh, has_teacher=True,
      spec=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                        batch))


def train(program, state, frozen):
  """Returns the metrics of a step, and the state after it."""
  state = jax.device_put(state, mesh_lib.shardings_of(program.abstract_state))
  state, metrics = program.train_step(
      state, program.freeze(frozen),
      collectives.shard_batch(program.mesh, make_batch()))
  return jax.device_get((metrics, state.params, state.net_state))


@pytest.mark.parametrize('network', NETWORKS, ids=lambda x: x.__name__)
def test_network_trains_alike_on_any_number_of_devices(network):

  def model(x, *, is_training, num_classes):
    x = jnp.tanh(hk.Linear(WIDTH)(x.reshape(-1, 2)))
    x = network(x.reshape(-1, LENGTH, WIDTH), is_training)
    return hk.Linear(num_classes)(x)

  with registry.models.temporary():
    registry.register_model()(model)
    config = config_lib.base()
    config.batch_size = BATCH
    config.student.model = config.teacher.model = 'model'
    config.optimizer.update(
        dict(name='sgd', learning_rate=1.0, schedule='constant'))
    one, *others = (build(config, devices) for devices in (1, 2, 8))
    state = jax.device_get(one.init(jax.random.key(0)))
    frozen = jax.device_get(base.Variables(*jax.jit(
        one.objective.teacher.init)(jax.random.key(1), make_batch())))
    expected = train(one, state, frozen)
    assert np.isfinite(expected[0]['loss']) and expected[0]['grad_norm'] > 0.01
    for program in others:
      jax.tree.map(
          lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
          train(program, state, frozen), expected)
