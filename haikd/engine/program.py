"""Everything that is compiled for a run, built from its config in one place.

Training, evaluation, the plan and the benchmark all use it, so that they plan
and measure the program that runs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import jax

from haikd import config as config_lib
from haikd import metrics as metrics_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import garbage
from haikd.engine import abstract
from haikd.engine import draws
from haikd.engine import evaluate
from haikd.engine import guarding
from haikd.engine import mesh as mesh_lib
from haikd.engine import stages as stages_lib
from haikd.engine import state as state_lib
from haikd.engine import step as step_lib
from haikd.metrics import own as own_lib
from haikd.network import network as network_lib
from haikd.network import precision
from haikd.objective import balance as balance_lib
from haikd.objective import build as build_lib
from haikd.objective import objective as objective_lib
from haikd.objective import recorded as recorded_lib

# On CPU, a call with a donated argument waits for the previous step. That costs
# 15 % of a step of 7 ms and next to nothing of one of 150 ms. Without donation
# 43 million parameters with Adam's moments take 0.8 GB more.
_DONATED_ON_CPU = 2**24  # Parameters, at least: 200 MB with the moments.


class Program(NamedTuple):
  """The functions of a run. Built by `build_program`.

  Attributes:
    objective: what is minimised, in the first stage.
    compared: what is minimised in the first stage that learns from
      `config.teacher`, which the student is compared with in evaluations.
    init: `(rng) -> TrainState`, on the mesh; no device holds all of it.
    abstract_frozen: likewise the teacher, in its compute dtype, or None.
    stages: of the run, at least one.
    eval_step: `(evaluated, frozen, batch) -> (sums, columns)` of the student;
      see `evaluate`.
    teacher_eval_step: `(frozen, None, batch) -> (sums, columns)` of the
      teacher, compared with itself; None without a teacher.
    not_finite: `state -> [leaves]` bool, in the order of the state's arrays:
      whether each has a number that is not finite.
    own_metrics: the user's own, which evaluation reports besides.
    balance: of the losses.
    mesh: where they run.
  """

  objective: objective_lib.Objective
  compared: objective_lib.Objective
  init: Callable[[jax.Array], base.TrainState]
  abstract_frozen: Optional[base.Variables]
  stages: tuple[stages_lib.Stage, ...]
  eval_step: Callable[..., Any]
  teacher_eval_step: Optional[Callable[..., Any]]
  not_finite: Callable[[base.TrainState], jax.Array]
  own_metrics: tuple[own_lib.Own, ...]
  balance: balance_lib.Balance
  mesh: jax.sharding.Mesh

  @property
  def abstract_state(self) -> base.TrainState:
    """What `init` returns, as ShapeDtypeStructs with shardings."""
    return self.stages[0].abstract_state

  @property
  def train_step(self) -> step_lib.TrainStep:
    """The training step of the first stage."""
    return self.stages[0].train_step

  def stage_of(self, step: int) -> int:
    """Returns the number of the stage that takes a step, counted from 1."""
    return max(sum(step > stage.start for stage in self.stages) - 1, 0)

  def of_stage(self, number: int) -> 'Program':
    """Returns a program whose objective and teacher are those of a stage."""
    stage = self.stages[number]
    return self._replace(
        objective=stage.objective, abstract_frozen=stage.abstract_frozen)

  def freeze(self, network: base.Variables) -> base.Variables:
    """Returns the teacher in its compute dtype, on the mesh."""
    assert self.abstract_frozen is not None, 'there is one'
    return abstract.freeze(network, self.abstract_frozen)


@garbage.uncollected()
def build_program(config: config_lib.ConfigDict, *, spec: base.Batch,
                  num_classes: Optional[int], mesh: jax.sharding.Mesh,
                  has_teacher: bool,
                  recorded: Optional[recorded_lib.Recorded] = None,
                  optimizer_field: str = 'config.optimizer') -> Program:
  """Builds the functions of a run, without touching a device.

  Args:
    config: a validated config, its plugins imported.
    spec: the global training batch as ShapeDtypeStructs.
    num_classes: the number of classes of the data; None if it has none.
    mesh: where to run.
    has_teacher: whether the student learns from `config.teacher`, or from the
      labels alone.
    recorded: what takes the place of the teacher, except in evaluations.
    optimizer_field: the config field of the optimizer, for messages.

  Returns:
    A Program.

  Raises:
    ConfigError: the config cannot work on this mesh. That the batch divides is
      checked by `mesh_lib.check_batch_size`: evaluation does not need it.
  """
  stages, objectives = config_lib.stages_of(config), []
  for stage in stages:
    with stages_lib.errors_of(stage):
      objectives.append(build_lib.build_objective(
          stage.config, spec=spec, num_classes=num_classes,
          has_teacher=has_teacher, recorded=recorded))
  objective = objectives[0]
  optimizers = stages_lib.build_optimizers(stages, optimizer_field)
  guard = guarding.Guard(config.guard.nonfinite, config.guard.max_grad_norm)
  balance = balance_lib.build_balance(
      config.balance, [len(x.terms) for x in objectives])
  learns = [stage.config.teacher == config.teacher for stage in stages]
  compared = objectives[learns.index(True)]
  teacher = compared.teacher
  frozen = abstract.frozen_of(config, teacher, spec, mesh)
  all_frozen = [
      frozen if is_compared else
      abstract.frozen_of(stage.config, x.teacher, spec, mesh)
      for stage, x, is_compared in zip(stages, objectives, learns)]

  def init(rng):
    return state_lib.init_state(
        objectives,
        optimizers[0].update,
        rng=rng,
        batch=abstract.one_example(spec),
        frozen=all_frozen,
        loss_scale=precision.initial_loss_scale(config.student.precision),
        with_ema=config.optimizer.ema_decay > 0,
        balance=balance)

  traced_init = draws.trace(init, mesh)
  states: list[base.TrainState] = []
  for optimizer in optimizers:
    states.append(abstract.place_state(
        traced_init.results._replace(opt_state=jax.eval_shape(
            optimizer.update.init, traced_init.results.params)),
        objective.student, mesh) if optimizer.begins else states[-1])
  state = states[0]
  student = trained_network(state)
  _check_tensor(mesh, [(objective.student, student), *(
      (x.teacher, y) for x, y in zip(objectives, all_frozen))])
  layout = mesh_lib.shardings_of(
      dict(state=state, frozen=frozen, student=student))

  own_metrics = own_lib.build(config.evaluation.metrics)

  live = None if recorded else teacher

  def eval_step(network, evaluated, frozen, has_labels=True):
    return evaluate.build_eval_step(
        network, live, mesh, evaluated, frozen, task=compared.task,
        has_labels=has_labels, own=own_metrics,
        rows=evaluated_rows(config, mesh), chunk_bytes=chunk_bytes(config))

  return Program(
      objective=objective,
      compared=compared,
      init=jax.jit(traced_init, out_shardings=layout['state']),
      abstract_frozen=frozen,
      stages=stages_lib.build_stages(
          stages, objectives, optimizers, states, all_frozen,
          compared=frozen,
          mesh=mesh,
          optimizer_field=optimizer_field,
          balance=balance,
          guard=guard,
          microbatches=config.microbatches,
          seed=config.seed,
          chunk_bytes=chunk_bytes(config),
          donate=_is_donated(state, mesh)),
      eval_step=eval_step(objective.student, layout['student'],
                          layout['frozen']),
      teacher_eval_step=(
          eval_step(live, layout['frozen'], None, predict_the_same(
              *compared.outputs)) if live else None),
      not_finite=jax.jit(
          guarding.not_finite, out_shardings=mesh_lib.replicated(mesh)),
      own_metrics=own_metrics,
      balance=balance,
      mesh=mesh)


def predict_the_same(student: network_lib.NetworkOutput,
                     teacher: Optional[network_lib.NetworkOutput]) -> bool:
  """Returns whether the labels of the student are those of the teacher.

  The logits of a teacher with other classes are not compared with them. Vectors
  of another width are.

  Args:
    student: its output, or shapes.
    teacher: likewise; None if there is none.
  """
  if teacher is None:
    return False
  logits, target = student.logits, teacher.logits
  return (isinstance(target, base.Embedding) or
          metrics_lib.are_comparable(logits, target))


def chunk_bytes(config: config_lib.ConfigDict) -> Optional[int]:
  """Returns the bytes of logits that a device holds at once; None for any.

  Args:
    config: of the run.
  """
  return config.chunk_mib and int(config.chunk_mib * 2**20)


def evaluated_rows(config: config_lib.ConfigDict,
                   mesh: jax.sharding.Mesh) -> Optional[int]:
  """Returns the most examples that a device evaluates at once; None for all.

  If training needs microbatches, that is no more than one microbatch.

  Args:
    config: of the run.
    mesh: the devices.
  """
  if config.microbatches == 1:
    return None
  rows = config.batch_size // config.microbatches
  return max(rows // mesh_lib.batch_shards(mesh), 1)


def _is_donated(state, mesh):
  """Returns whether a training step writes its state over the old one."""
  on_cpu = mesh.devices.flat[0].platform == 'cpu'
  size = network_lib.count_parameters(state.params)
  return size >= _DONATED_ON_CPU or not on_cpu


def _check_tensor(mesh, networks):
  """Refuses a `tensor` that splits no network, or rules that one can't keep.

  Args:
    mesh: the devices.
    networks: (network, parameters and state) each, or (None, None).
  """
  split = [
      mesh_lib.check_rules(network.title, mesh, variables.params,
                           network.tensor, network.placement)
      for network, variables in networks if network]
  size = mesh.shape[mesh_lib.TENSOR]
  if size > 1 and not any(split):
    raise checks.ConfigError(
        f'config.mesh.tensor must split some parameter; got {size}, and no '
        'rule of a model or of the config. Set it to 1, or set '
        "config.student.placement to rules such as {'mlp/up/w': -1, "
        "'mlp/down/w': -2}.")


def trained_network(state: base.TrainState) -> base.Variables:
  """Returns the student to use: the running mean of its parameters, if kept.

  Its state, such as BatchNorm's statistics, belongs to the newest parameters in
  either case.
  """
  params = state.params.student if state.ema is None else state.ema
  return base.Variables(params, state.net_state)
