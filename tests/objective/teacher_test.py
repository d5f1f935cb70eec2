"""The teacher is run no further than the layers that terms use."""

import jax
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.engine import collectives
from haikd.engine import counting
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib

BATCH, LENGTH, CLASSES = 8, 6, 16
SIZES = dict(width=16, heads=2, hidden=24)


def make_batch():
  rng = np.random.RandomState(0)
  tokens = rng.randint(0, CLASSES, (2, BATCH, LENGTH)).astype(np.int32)
  mask = np.arange(LENGTH) < rng.randint(1, LENGTH + 1, (BATCH, 1))
  return base.Batch(tokens[0], mask, labels=tokens[1])


def make_config(depth, *, alpha=0.0, scan=False, layers=(1,)):
  """A teacher of some depth; the term on features uses its layer 1."""
  config = config_lib.base()
  config.batch_size = BATCH
  config.student.model = config.teacher.model = 'llama'
  config.student.options = dict(SIZES, depth=2)
  config.teacher.options = dict(SIZES, depth=depth, scan=scan)
  config.distillation.update(dict(alpha=alpha, feature_match_layers=layers,
                                  use_feature_matching=bool(layers)))
  return config


def build(config, devices=1, has_teacher=True):
  config.mesh.update(dict(replica=1, fsdp=devices))
  mesh = mesh_lib.build_mesh(config.mesh, jax.devices()[:devices])
  spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                      make_batch())
  return program_lib.build_program(config, spec=spec, num_classes=CLASSES,
                                   mesh=mesh, has_teacher=has_teacher)


def trace(program):
  batch = collectives.shard_batch(program.mesh, make_batch())
  return program.train_step.trace(program.abstract_state,
                                  program.abstract_frozen, batch)


def compiled_flops(program):
  return trace(program).lower().compile().cost_analysis()['flops']


def counted_flops(program):
  """Counts every iteration of a loop; the compiler counts only one."""
  return counting.count(trace(program).jaxpr, program.mesh.size).flops


def test_blocks_that_no_term_uses_are_not_run():
  deep, shallow = (compiled_flops(build(make_config(n))) for n in (6, 2))
  assert deep == pytest.approx(shallow, rel=0.01)


@pytest.mark.parametrize('devices', (1, 4))
def test_loop_over_blocks_ends_with_the_last_that_a_term_uses(devices):
  deep, shallow = (
      counted_flops(build(make_config(n, scan=True), devices)) for n in (6, 2))
  assert deep == shallow


@pytest.mark.parametrize('fields', (
    dict(alpha=0.5), dict(layers=((1, 5),)), dict(layers=((0, 0), (1, -1)))))
def test_all_blocks_are_run_for_logits_or_the_last_layer(fields):
  deep, shallow = (
      counted_flops(build(make_config(n, scan=scan, **fields)))
      for n, scan in ((6, True), (6, False)))
  assert deep == shallow


def test_teacher_that_no_term_uses_is_not_run():
  with_teacher, alone = (
      build(make_config(6, layers=()), has_teacher=has_teacher)
      for has_teacher in (True, False))
  assert compiled_flops(with_teacher) == compiled_flops(alone)
  # It is not even traced, though XLA would remove it too.
  objective = with_teacher.objective
  objective = objective._replace(teacher=objective.teacher._replace(apply=None))
  state = with_teacher.abstract_state
  jax.eval_shape(objective.sums, state.params, state.net_state, None,
                 make_batch(), jax.random.key(0))


@pytest.mark.parametrize('devices', (
    pytest.param(1, marks=pytest.mark.slow), 4))
def test_shortened_teacher_teaches_the_same(devices):
  """It gives the metrics of a teacher with the same weights and no loop."""
  batch, losses = make_batch(), []
  frozen = None
  for scan in (True, False):
    program = build(make_config(6, scan=scan, layers=((0, 0), (1, 3))), devices)
    if frozen is None:
      frozen = jax.jit(program.objective.teacher.init)(jax.random.key(1), batch)
    else:
      frozen = unstacked(frozen[0]), frozen[1]
    state = program.init(jax.random.key(0))
    _, metrics = program.train_step(
        state, program.freeze(base.Variables(*frozen)),
        collectives.shard_batch(program.mesh, batch))
    losses.append(jax.device_get(metrics))
  assert losses[0]['loss/feature_matching'] > 0
  for name in losses[0]:
    np.testing.assert_allclose(losses[0][name], losses[1][name], rtol=1e-5)


def unstacked(params):
  """Returns the parameters of a loop over blocks as those of single blocks."""
  result = {}
  for module, values in params.items():
    stack, _, rest = module.rpartition('__layer_stack_no_per_layer/')
    for i in range(6 if '/block' in module else 1):
      name = stack + rest.replace('block', f'block_{i}', 1)
      result[name] = {key: x[i] if name != module else x
                      for key, x in values.items()}
  return result
