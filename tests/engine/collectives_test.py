"""Parameters are gathered where they are used, their gradients scattered."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib

P = jax.sharding.PartitionSpec


def make_mesh(replica=1, fsdp=8, tensor=1):
  config = config_lib.base()
  config.mesh = dict(replica=replica, fsdp=fsdp, tensor=tensor)
  return mesh_lib.build_mesh(config.mesh)


@pytest.mark.parametrize('axis', (0, 1))
@pytest.mark.parametrize('dtype', ('float32', 'bfloat16'))
@pytest.mark.parametrize('rows', (None, 2, 4))
@pytest.mark.parametrize('shape', ((16, 24), (8, 1152)))
def test_gather_returns_the_parameter_and_its_gradient_is_the_sum(
    axis, dtype, rows, shape, monkeypatch):
  mesh = make_mesh()
  if rows:
    monkeypatch.setattr(collectives, 'turns_of',
                        lambda mesh: collectives.two_turns(8, rows))
  gather = collectives.build_gather(mesh)
  rng = np.random.RandomState(0)
  # Small integers: exact in bfloat16, as is their sum.
  parameter = rng.randint(-4, 5, shape).astype(np.float32)
  cotangents = rng.randint(-4, 5, (8, *shape)).astype(np.float32)
  spec = P(*(mesh_lib.FSDP if i == axis else None for i in range(2)))

  def run(part, cotangent):
    value, back = jax.vjp(
        lambda part: gather(part, parameter.shape, jnp.dtype(dtype)), part)
    gradient, = back(cotangent[0].astype(value.dtype))
    return value[None], collectives.sum_gradient(gradient, spec)

  values, gradient = jax.jit(
      collectives.over_shards(
          run, mesh, in_specs=(spec, P(mesh_lib.BATCH_AXES)),
          out_specs=(P(mesh_lib.BATCH_AXES), spec)))(parameter, cotangents)
  assert values.dtype == dtype and gradient.dtype == jnp.float32
  for value in values:  # One from each device.
    np.testing.assert_array_equal(np.float32(value), parameter)
  np.testing.assert_array_equal(gradient, cotangents.sum(0))


def test_gradient_in_bfloat16_is_summed_in_float32():
  mesh = make_mesh()
  gather = collectives.build_gather(mesh)
  # In bfloat16, 256 + 1 is 256: the sum would never grow.
  cotangents = np.ones((8, 8), np.float32)
  cotangents[0] = 256

  def run(part, cotangent):
    _, back = jax.vjp(lambda part: gather(part, (8,), jnp.bfloat16), part)
    gradient, = back(cotangent[0].astype(jnp.bfloat16))
    return collectives.sum_gradient(gradient, P('fsdp'))

  gradient = jax.jit(
      collectives.over_shards(
          run, mesh, in_specs=(P('fsdp'), P(mesh_lib.BATCH_AXES)),
          out_specs=P('fsdp')))(np.zeros(8, np.float32), cotangents)
  np.testing.assert_array_equal(gradient, np.full(8, 263))


def test_complete_parameters_are_cast_and_not_gathered():
  gather = collectives.build_gather(make_mesh())
  text = str(jax.make_jaxpr(
      lambda x: gather(x, (3,), jnp.bfloat16))(jnp.ones(3)))
  assert 'all_gather' not in text and 'bf16[3]' in text
  assert collectives.build_gather(make_mesh(replica=8, fsdp=1)) is None


def test_two_turns_are_columns_and_rows():
  # Indices 0 to 5 in two rows: 0 1 2 above 3 4 5.
  assert collectives.two_turns(6, 2) == (((0, 3), (1, 4), (2, 5)),
                                         ((0, 1, 2), (3, 4, 5)))


def test_one_scatter_is_enough_off_tpus():
  assert collectives.turns_of(make_mesh()) == (None,)


@pytest.mark.parametrize('fsdp, tensor, rows', (
    (16, 1, 4), (12, 1, 3), (512, 1, 16), (7, 1, None), (8, 2, None)))
def test_tpus_scatter_over_a_grid_that_is_nearly_square(fsdp, tensor, rows):
  # One scatter if there is no grid, or if `tensor` is automatic.
  tpus = np.array([types.SimpleNamespace(platform='tpu')] * fsdp * tensor)
  mesh = types.SimpleNamespace(
      shape=dict(fsdp=fsdp, tensor=tensor), devices=tpus)
  assert collectives.turns_of(mesh) == (
      collectives.two_turns(fsdp, rows) if rows else (None,))


@pytest.mark.parametrize('shape, axis, scattered', (
    ((16, 1152), 0, (2, 9, 128)),  # 9 rows of a TPU do not fill tiles.
    ((1152, 16), 1, (2, 9, 128)),
    ((16, 3, 384), 0, (2, 9, 128)),
    ((16, 2048), 0, (2, 2048)),  # Two tiles.
    ((16, 384), 0, (2, 384)),  # Less than a tile.
    ((16, 1100), 0, (2, 1100)),  # Does not fill rows.
))
def test_gradient_is_scattered_along_its_first_axis_in_full_tiles(
    shape, axis, scattered):
  mesh = make_mesh()
  gather = collectives.build_gather(mesh)
  spec = P(*(mesh_lib.FSDP if i == axis else None for i in range(len(shape))))

  def run(part):
    loss = lambda part: jnp.sum(gather(part, shape, jnp.float32)**2)
    gradient = jax.grad(loss)(part)
    return collectives.sum_gradient(gradient, spec)

  step = collectives.over_shards(run, mesh, in_specs=spec, out_specs=spec)
  text = str(jax.make_jaxpr(step)(jnp.ones(shape)))
  shape_sent, = re.findall(r':f32\[([\d,]+)\]\S* = reduce_scatter', text)
  assert shape_sent == ','.join(map(str, scattered))


def test_gradient_of_a_replicated_parameter_is_summed_over_all_shards():
  mesh = make_mesh(replica=2, fsdp=4)

  def run(x):
    number = collectives.shard_index().astype(jnp.float32)
    part = x[:2] * 0 + number
    return collectives.sum_gradient([part, part], [P(), P('fsdp')])

  replicated, split = jax.jit(
      collectives.over_shards(
          run, mesh, in_specs=P(), out_specs=[P(), P('fsdp')]))(np.ones(2))
  np.testing.assert_array_equal(replicated, [28, 28])  # 0 + 1 + … + 7.
  # At index f along `fsdp`, replica 0 has f and replica 1 has 4 + f.
  np.testing.assert_array_equal(split, [4, 4, 6, 6, 8, 8, 10, 10])


@pytest.mark.parametrize('mesh', ((8, 1, 1), (2, 2, 2), (1, 1, 8)))
def test_batch_is_split_over_replica_and_fsdp(mesh):
  mesh = make_mesh(*mesh)
  batch = base.Batch(
      inputs=np.arange(16.0).reshape(8, 2), mask=np.ones(8, bool))
  placed = collectives.shard_batch(mesh, batch)
  np.testing.assert_array_equal(placed.inputs, batch.inputs)
  shards = mesh_lib.batch_shards(mesh)
  assert {s.data.shape for s in placed.inputs.addressable_shards} == {
      (8 // shards, 2)}
