"""What is compiled for each stage of a run.

All stages train the same parameters: those of the student, and those that any
of their losses learns. The optimizer goes on from one stage to the next where
its fields are the same; where they change, it begins anew.
"""

from collections.abc import Callable, Sequence
import contextlib
from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
import optax

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.engine import balancing
from haikd.engine import guarding
from haikd.engine import mesh as mesh_lib
from haikd.engine import optimizer as optimizer_lib
from haikd.engine import parts
from haikd.engine import step as step_lib
from haikd.objective import balance as balance_lib
from haikd.objective import objective as objective_lib


class Stage(NamedTuple):
  """A stage of the run.

  Attributes:
    name: its key in `config.stages`; '' for what comes before the first.
    start: the number of steps before it.
    objective: what is minimised.
    train_step: `(state, frozen, batch) -> (state, metrics)`. The state is
      donated, except a small one on CPU.
    measure: of the first and then every so many steps of the stage; None if
      nothing is measured.
    measure_every: steps between measurements.
    abstract_state: before and after its steps, as ShapeDtypeStructs with
      shardings.
    abstract_frozen: likewise its teacher, or None. That of `config.teacher` is
      the same object as the program's.
    taught_by: `init` of its teacher where that is not `config.teacher`, or ''.
    begin: `state -> state`, from that of the stage before to that which its
      first step takes; None if it is the same.
  """

  name: str
  start: int
  objective: objective_lib.Objective
  train_step: step_lib.TrainStep
  measure: Optional[balancing.Measure]
  measure_every: int
  abstract_state: base.TrainState
  abstract_frozen: Optional[base.Variables]
  taught_by: str
  begin: Optional[Callable[[base.TrainState], base.TrainState]]

  def enter(self, state: base.TrainState, title: str) -> base.TrainState:
    """Returns what its first step takes, and says that it begins.

    Args:
      state: of the stage before.
      title: of the network.
    """
    if self.name:
      names = ', '.join(term.name for term in self.objective.terms)
      teacher = f', taught by {self.taught_by}' if self.taught_by else ''
      notes.say(f'{title}: stage {self.name} begins after step {self.start}, '
                f'with {names}{teacher}.')
    return self.begin(state) if self.begin else state

  def take(self, step: int, state: base.TrainState, frozen: Any,
           batch: base.Batch) -> tuple[base.TrainState, dict[str, jax.Array]]:
    """Takes a step of the run; returns the state and metrics.

    Args:
      step: its number, from 1.
      state: before it.
      frozen: the teacher, or None.
      batch: on the mesh.
    """
    if self.measure and (step - 1 - self.start) % self.measure_every == 0:
      # A copy, since the step may take the memory of its state.
      old, number = state.balance, jnp.copy(state.seen.number)
      state, metrics = self.train_step(
          self.measure.before(state, frozen, batch), frozen, batch)
      return self.measure.after(state, old, number), metrics
    return self.train_step(state, frozen, batch)


class Optimizer(NamedTuple):
  """The optimizer of one or several stages that follow one another.

  Attributes:
    update: the optax transformation.
    schedule: the learning rate at a step of the run.
    begins: whether it begins in this stage, rather than goes on.
  """

  update: optax.GradientTransformation
  schedule: optax.Schedule
  begins: bool


def build_optimizers(stages: Sequence[config_lib.Stage],
                     field: str) -> list[Optimizer]:
  """Returns the optimizer of each stage.

  Warm-up and decay run over all stages that share it, and the warm-up is not
  longer.

  Args:
    stages: of the run.
    field: the config field of the optimizer, for messages.

  Raises:
    ConfigError: fields of an optimizer that cannot work.
  """
  found: list[Optimizer] = []
  for number, stage in enumerate(stages):
    fields = stage.config.optimizer
    if found and fields == stages[number - 1].config.optimizer:
      found.append(found[-1]._replace(begins=False))
      continue
    end = stage.end
    for later in stages[number + 1:]:
      if later.config.optimizer != fields:
        break
      end = later.end
    with errors_of(stage):
      if fields.warmup_steps > end - stage.start:
        raise checks.ConfigError(
            f'{field}.warmup_steps must be at most the {end - stage.start} '
            f'steps that it holds for; got {fields.warmup_steps}. The learning '
            'rate would never reach its peak.')
      update = optimizer_lib.build_optimizer(
          fields, end - stage.start, field=field)
      schedule = optimizer_lib.build_schedule(
          fields, end - stage.start, field=field)
    found.append(Optimizer(update, _from(schedule, stage.start), True))
  return found


def build_stages(stages: Sequence[config_lib.Stage],
                 objectives: Sequence[objective_lib.Objective],
                 optimizers: Sequence[Optimizer],
                 states: Sequence[base.TrainState],
                 frozen: Sequence[Optional[base.Variables]], *,
                 compared: Optional[base.Variables],
                 mesh: jax.sharding.Mesh, optimizer_field: str,
                 balance: balance_lib.Balance, guard: guarding.Guard,
                 donate: bool,
                 **options: Any) -> tuple[Stage, ...]:
  """Builds what runs in each stage.

  Args:
    stages: of the run.
    objectives: what each minimises.
    optimizers: of each.
    states: the state of each, as ShapeDtypeStructs with shardings.
    frozen: the teacher of each, likewise, or None.
    compared: that of `config.teacher`.
    mesh: where they run.
    optimizer_field: the config field of the optimizer, for messages.
    balance: of the losses.
    guard: what is done about numbers that are not finite.
    donate: whether the new state is written over the old one.
    **options: of `step.build_gradient`, the same in all stages.

  Raises:
    ConfigError: globs that match nothing, or everything.
  """

  def named(patterns):
    # The student alone has a student's fields, but not all that losses learn.
    is_alone = compared is None and optimizer_field == 'config.optimizer'
    return parts.of_network(patterns) if is_alone else tuple(patterns)

  def build(stage, objective, optimizer, state, frozen):
    fields, params = stage.config.optimizer, state.params
    with errors_of(stage):
      parts.check_frozen(f'{optimizer_field}.frozen', named(fields.frozen),
                         params)
      parts.check(f'{optimizer_field}.lr_multipliers',
                  named(fields.lr_multipliers), params)
    placed = mesh_lib.shardings_of(state)

    def begin(state):
      return state._replace(opt_state=optimizer.update.init(state.params))

    gradient = step_lib.build_gradient(
        objective, mesh, placed.params,
        None if frozen is None else mesh_lib.shardings_of(frozen),
        frozen_parts=fields.frozen, **options)
    measures = (balance.kind == balance_lib.GRADIENT_NORM and
                len(objective.terms) > 1)
    return Stage(
        name=stage.name,
        start=stage.start,
        objective=objective,
        train_step=step_lib.build_train_step(
            objective, gradient, optimizer.update, optimizer.schedule, mesh,
            placed,
            balance=balance,
            guard=guard,
            ema_decay=fields.ema_decay,
            log_weights=len(stages) > 1,
            seed=options['seed'],
            donate=donate),
        measure=(balancing.build_measure(
            objective, gradient, balance, guard, mesh) if measures else None),
        measure_every=balance.every,
        abstract_state=state,
        abstract_frozen=frozen,
        taught_by='' if frozen is compared else stage.config.teacher.init,
        begin=(jax.jit(begin, out_shardings=placed)
               if optimizer.begins and stage.start > 0 else None))

  return tuple(map(build, stages, objectives, optimizers, states, frozen))


def errors_of(
    stage: config_lib.Stage) -> contextlib.AbstractContextManager[None]:
  """Returns a context whose ConfigErrors name the stage, if it has a name."""
  return (checks.errors_of(stage.field) if stage.name else
          contextlib.nullcontext())


def _from(schedule, start):
  """Returns a learning rate that begins at a step of the run."""
  return lambda step: schedule(step - start)
