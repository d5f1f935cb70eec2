"""Gradients are added up over the devices exactly once, after microbatches.

JAX does not track which arrays differ between devices (`check_vma=False`), so
that these tests take the place of its check.
"""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.core import registry
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.engine import step as step_lib

BATCH, FEATURES, CLASSES = 16, 6, 5
MESHES = ((8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2))


def network(x, *, is_training, num_classes):
  """Has kernels that `fsdp` splits, and a scale that it cannot split."""
  x = jnp.tanh(hk.Linear(16)(x))
  x = x * hk.get_parameter('scale', (), init=jnp.ones)
  return hk.Linear(num_classes)(x)


@functools.cache
def make_batch():
  rng = np.random.RandomState(0)
  return base.Batch(
      inputs=rng.randn(BATCH, FEATURES).astype(np.float32),
      mask=np.arange(BATCH) % 5 > 0,
      labels=rng.randint(0, CLASSES, BATCH).astype(np.int32))


def build(shape, microbatches):
  """Returns a function that gives the gradient, and its arguments."""
  batch = make_batch()
  config = config_lib.base()
  config.batch_size = BATCH
  config.mesh = dict(zip(mesh_lib.AXES, shape))
  config.student.model = config.teacher.model = 'network'
  config.student.placement = {'linear/w': 1}
  mesh = mesh_lib.build_mesh(config.mesh, jax.devices()[:np.prod(shape)])
  with registry.models.temporary():
    registry.register_model()(network)
    program = program_lib.build_program(
        config, num_classes=CLASSES, mesh=mesh, has_teacher=True,
        spec=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                          batch))
  state = program.init(jax.random.key(0))
  frozen = program.freeze(base.Variables(
      *jax.jit(program.objective.teacher.init)(jax.random.key(1), batch)))
  function = step_lib.build_gradient(
      program.objective, mesh,
      *mesh_lib.shardings_of((state.params, frozen)),
      microbatches=microbatches, seed=0)
  return function, (state.params, state.net_state, frozen, state.loss_scale,
                    state.step, collectives.shard_batch(mesh, batch))


def gradient(shape, microbatches):
  function, args = build(shape, microbatches)
  return jax.device_get(jax.jit(function)(*args)[0].student)


@functools.cache
def expected():
  return gradient((1, 1, 1), 1)


@pytest.mark.parametrize('shape', MESHES)
@pytest.mark.parametrize('microbatches', (1, 2))
def test_gradient_is_summed_once(shape, microbatches):
  assert all(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(expected()))
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      gradient(shape, microbatches), expected())


def equations(jaxpr, in_loop=False):
  """Yields (equation, whether it is inside a loop), nested ones as well."""
  for eqn in jaxpr.eqns:
    yield eqn, in_loop
    inside = in_loop or eqn.primitive.name in ('scan', 'while')
    for value in jax.tree.leaves(
        eqn.params, is_leaf=lambda x: hasattr(x, 'jaxpr')):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from equations(inner, inside)


@pytest.mark.parametrize('shape', MESHES)
def test_no_microbatch_waits_for_a_sum_of_replicated_gradients(shape):
  function, args = build(shape, microbatches=2)
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  sums = [(in_loop, x.aval.shape) for eqn, in_loop in equations(jaxpr)
          if eqn.primitive.name.startswith('psum') for x in eqn.invars]
  assert sums and not [shape for in_loop, shape in sums if in_loop]
  lengths = [eqn.params['length'] for eqn, _ in equations(jaxpr)
             if eqn.primitive.name == 'scan']
  assert lengths.count(2) == 2  # To count, and for the gradient.


def test_states_of_shards_come_to_agree():
  mesh = mesh_lib.build_mesh(dict(replica=2, fsdp=4, tensor=1))

  def run():
    shard = collectives.shard_index()
    key = jax.random.wrap_key_data(jnp.array([3, 4], jnp.uint32))
    tree = dict(mean=jnp.float32(shard) ** 2, count=shard, key=key)
    agreed = collectives.agree_over_batch(tree)
    return jax.tree.map(lambda x: x[None], agreed)

  agreed = jax.jit(collectives.over_shards(
      run, mesh, in_specs=(), out_specs=mesh_lib.BATCH_SPEC))()
  # (0 + 1 + 4 + 9 + 16 + 25 + 36 + 49) / 8.
  np.testing.assert_array_equal(agreed['mean'], [17.5] * 8)
  np.testing.assert_array_equal(agreed['count'], [7] * 8)
  np.testing.assert_array_equal(
      jax.random.key_data(agreed['key']), [[3, 4]] * 8)
