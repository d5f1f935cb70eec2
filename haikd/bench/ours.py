"""haikd's side of a case, built from a config as in a run."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haikd import config as config_lib
from haikd.bench import cases
from haikd.bench import ends  # noqa: F401  Registers its models.
from haikd.bench import host
from haikd.core import base
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.objective import recorded


def build(case: cases.Case, path: pathlib.Path) -> tuple:
  """Builds the training step, and writes its parameters and batch.

  Args:
    case: a complete case.
    path: the file to write, which the other side reads.

  Returns:
    The jitted step, or evaluation, its state, and its other arguments.
  """
  if case['kind'] in (cases.DECODING, cases.PREPARATION):
    return host.build(case, path)
  config = config_of(case)
  config_lib.validate(config)
  batch = cases.batch_of(case)
  known = None
  if 'records' in case:
    known = recorded.Recorded(case['records'], case['classes'])
    batch = batch._replace(teacher=_records(known, batch))
  mesh = mesh_lib.build_mesh(config.mesh, jax.devices()[:1])
  program = program_lib.build_program(
      config,
      spec=jax.eval_shape(lambda: jax.tree.map(jnp.asarray, batch)),
      num_classes=case['classes'],
      mesh=mesh,
      has_teacher=True,
      recorded=known)
  network = program.objective.teacher
  assert network is not None
  teacher = jax.jit(network.init)(jax.random.key(1), batch)
  frozen = program.freeze(base.Variables(*map(_as_if_trained, teacher)))
  state = program.init(jax.random.key(0))
  arrays: dict[str, Any] = {
      f'{part}:{name}': value for part, tree in dict(
          student=state.params.student,
          student_state=state.net_state,
          teacher=frozen.params,
          teacher_state=frozen.state,
          batch=dict(batch=batch._replace(teacher=None)._asdict())).items()
      for name, value in _flat(tree).items()
  }
  np.savez(path, **arrays)
  batch = collectives.shard_batch(mesh, batch)
  if case['kind'] == cases.EVALUATION:
    student = program_lib.trained_network(state)
    return _evaluation(program.eval_step), (), (student, frozen, batch)
  step: Any = program.train_step
  if case.get('fed'):
    step = host.fed(step, mesh, case, path.parent)
  return step, state, (frozen, batch)


def _evaluation(eval_step):
  """Returns an evaluation as a function of a state, which there is none of."""

  def evaluate(state, *arguments):
    sums, _ = eval_step(*arguments)
    return state, dict(loss=jax.tree.leaves(sums)[0])

  return jax.jit(evaluate)


def config_of(case: cases.Case) -> config_lib.ConfigDict:
  """Returns the config of a case."""
  config = config_lib.base()
  config.batch_size = case['shape'][0]
  for side in ('student', 'teacher'):
    config[side].model, config[side].options = case[side]
  config.distillation.temperature = case['temperature']
  config.distillation.alpha = case['alpha']
  if 'loss' in case:
    config.distillation.alpha = None
    config.losses.alone = dict(
        loss=case['loss'], options=dict(temperature=case['temperature']))
  config.distillation.use_attention_transfer = case['attention']
  config.optimizer.name, config.optimizer.learning_rate = case['optimizer']
  config.distillation.use_feature_matching = case['features']
  return config


def _records(known, batch):
  """Returns records like those of a teacher: what they hold takes no time."""
  spec = known.with_targets(batch).teacher
  rng: Any = np.random.RandomState(0)
  ids = rng.randint(0, known.classes, spec.ids.shape).astype(np.int32)
  weights = np.full(ids.shape, 1 / ids.shape[-1], np.float32)
  return spec._replace(ids=ids, weights=weights,
                       entropy=np.zeros(spec.entropy.shape, np.float32))


def _as_if_trained(tree):
  """Returns a network's arrays with moving variances of 1 in place of 0."""
  return {
      module: {
          name: jnp.ones_like(value) if module.endswith('var_ema') and
          name == 'average' else value for name, value in values.items()
      } for module, values in tree.items()
  }


def _flat(tree: Any) -> dict[str, np.ndarray]:
  return {
      (name if module == 'batch' else f'{module}/{name}'): np.asarray(value)
      for module, values in tree.items() for name, value in values.items()
      if value is not None
  }
