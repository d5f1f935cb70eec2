"""Losses on predictions are the same on every mesh, lazy and materialised."""

import functools

import haiku as hk
import jax
import jmp
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.core import registry
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.engine import step as step_lib

BATCH, LENGTH, VOCABULARY = 16, 5, 16
ADDITIVE = dict(
    reverse_kl={}, jensen_shannon=dict(beta=0.3), skewed_kl={},
    total_variation={}, top_k_kl={}, decoupled_kd={}, universal_logit={},
    cross_entropy=dict(label_smoothing=0.1))
# dist needs all logits, so that those of the others are materialised as well.
CASES = dict(
    additive=ADDITIVE, all=dict(ADDITIVE, dist=dict(temperature=2.0)),
    unequal=dict(universal_logit={}))


@pytest.fixture(scope='module', autouse=True)
def model():
  with registry.models.temporary():

    @registry.register_model('embedded', tensor={'~/kernel': -1})
    def embedded(inputs, *, is_training, num_classes, more=0):
      del is_training
      num_classes += more
      hidden = hk.Embed(num_classes, 8)(inputs)
      kernel = hk.get_parameter(
          'kernel', (8, num_classes), init=hk.initializers.RandomNormal())
      return base.LinearLogits(hidden, kernel)

    yield


def make_batch():
  """Ragged rows, two of them empty."""
  rng = np.random.RandomState(0)
  lengths = rng.randint(0, LENGTH + 1, BATCH)
  lengths[2:4] = 0
  tokens, labels = rng.randint(0, VOCABULARY, (2, BATCH, LENGTH))
  return base.Batch(tokens.astype(np.int32), np.arange(LENGTH) <
                    lengths[:, None], labels.astype(np.int32))


def measure(case, mesh):
  """Returns each loss, and the gradient of their sum, on a mesh."""
  config, batch = config_lib.base(), make_batch()
  config.batch_size, config.mesh = BATCH, dict(zip(mesh_lib.AXES, mesh))
  config.chunk_mib = 4 * 4 * VOCABULARY / 2**20  # Of 4 positions of logits.
  config.student.model = config.teacher.model = 'embedded'
  config.distillation.alpha = None
  if case == 'unequal':
    config.teacher.options = dict(more=8)
  for name, options in CASES[case].items():
    config.losses[name] = config_lib.term(loss=name, options=options)
  mesh = mesh_lib.build_mesh(config.mesh, jax.devices()[:np.prod(mesh)])
  program = program_lib.build_program(
      config, spec=jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch),
      num_classes=VOCABULARY, mesh=mesh, has_teacher=True)
  state = program.abstract_state
  shardings = mesh_lib.shardings_of(state.params)
  function = step_lib.build_gradient(
      program.objective, program.mesh, shardings,
      mesh_lib.shardings_of(program.abstract_frozen),
      microbatches=1, seed=0)
  params, teacher = (
      base.Params(network.init(jax.random.key(seed), batch)[0], {})
      for seed, network in enumerate(
          (program.objective.student, program.objective.teacher)))
  grads, _, sums = jax.jit(function)(
      jax.device_put(jax.device_get(params), shardings), {},
      program.freeze(base.Variables(jax.device_get(teacher.student), {})),
      jmp.NoOpLossScale(), np.int32(0),
      collectives.shard_batch(program.mesh, batch))
  _, means = program.objective.combine(sums, 0)
  return jax.device_get((means, grads))


@functools.cache
def on_one_device(case):
  return measure(case, (1, 1, 1))


@pytest.mark.parametrize('case, mesh', (
    ('additive', (1, 2, 2)), ('all', (2, 2, 2)), ('unequal', (2, 1, 1))))
def test_losses_and_their_gradient_are_those_of_one_device(case, mesh):
  expected, got = on_one_device(case), measure(case, mesh)
  assert set(got[0]) == set(CASES[case])
  assert all(value > 0 for value in got[0].values())
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5,
                                 atol=1e-5), got, expected)
