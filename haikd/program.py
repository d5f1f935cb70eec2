"""Everything that is compiled for a run, built from its config in one place.

Training, evaluation, the plan and the benchmark all start from here, so that
what is measured is what runs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jmp

from haikd import base
from haikd import config as config_lib
from haikd import objective as objective_lib
from haikd import optimizer as optimizer_lib
from haikd import precision
from haikd import sharding
from haikd import step as step_lib


class Program(NamedTuple):
  """The functions of a run. Built by `build_program`.

  Attributes:
    objective: what is minimised.
    init: `(rng, frozen) -> TrainState`, on the mesh.
    abstract_state: what `init` returns, as ShapeDtypeStructs with shardings.
    train_step: `(state, frozen, batch) -> (state, metrics)`.
    eval_step: `(own, frozen, batch) -> {metric: LossSum}` for the student.
    is_finite: `state -> bool`, whether what is trained is finite.
    mesh: where they run.
  """

  objective: objective_lib.Objective
  init: Callable[..., base.TrainState]
  abstract_state: base.TrainState
  train_step: step_lib.TrainStep
  eval_step: Callable[..., Any]
  is_finite: Callable[[base.TrainState], jax.Array]
  mesh: jax.sharding.Mesh


def build_program(config: config_lib.ConfigDict, *, spec: base.Batch,
                  num_classes: int, mesh: jax.sharding.Mesh,
                  has_teacher: bool,
                  optimizer_field: str = 'config.optimizer') -> Program:
  """Builds the functions of a run, without touching a device.

  Args:
    config: a validated config, its plugins imported.
    spec: the global training batch as ShapeDtypeStructs.
    num_classes: of the data.
    mesh: where to run.
    has_teacher: whether the student learns from `config.teacher`, or from the
      labels alone.
    optimizer_field: where the user set the optimizer, for messages.

  Returns:
    A Program.

  Raises:
    ConfigError: the config cannot work.
  """
  sharding.check_batch_size(mesh, config.batch_size, config.microbatches)
  objective = objective_lib.build_objective(
      config, spec=spec, num_classes=num_classes, has_teacher=has_teacher)
  optimizer = optimizer_lib.build_optimizer(
      config.optimizer, config.steps, where=optimizer_field)
  schedule = optimizer_lib.build_schedule(
      config.optimizer, config.steps, where=optimizer_field)
  ema_decay = config.optimizer.ema_decay

  def init(rng, frozen):
    return step_lib.init_state(
        objective,
        optimizer,
        rng=rng,
        batch=_one_example(spec),
        frozen=frozen,
        loss_scale=precision.initial_loss_scale(config.student.precision),
        with_ema=ema_decay > 0)

  replicated = jax.sharding.NamedSharding(mesh, sharding.REPLICATED)
  frozen = None
  if has_teacher:
    frozen = abstract_network(objective.teacher, spec)
  abstract = jax.eval_shape(init, jax.random.key(0), frozen)
  return Program(
      objective=objective,
      init=jax.jit(init, out_shardings=replicated),
      abstract_state=jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
          abstract),
      train_step=step_lib.build_train_step(
          objective,
          optimizer,
          schedule,
          mesh,
          microbatches=config.microbatches,
          ema_decay=ema_decay,
          seed=config.seed),
      eval_step=step_lib.build_eval_step(objective.student, objective.teacher,
                                         mesh),
      is_finite=jax.jit(lambda state: jmp.all_finite(
          (state.params, state.ema))),
      mesh=mesh)


def abstract_network(network, spec: base.Batch) -> base.Frozen:
  """Returns a network's parameters and state as ShapeDtypeStructs."""
  return base.Frozen(*jax.eval_shape(
      network.init, jax.random.key(0), _one_example(spec, abstract=True)))


def trained_network(state: base.TrainState) -> base.Frozen:
  """Returns the student to use: the running mean, where one is kept.

  Its state, such as BatchNorm's own running means, is that of the newest
  parameters in either case.
  """
  params = state.params.student if state.ema is None else state.ema
  return base.Frozen(params, state.net_state)


def _one_example(spec, *, abstract=False):
  make = jax.ShapeDtypeStruct if abstract else jnp.zeros
  return jax.tree.map(lambda x: make((1,) + x.shape[1:], x.dtype), spec)
