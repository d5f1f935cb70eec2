"""Measures what each loss alone would do to the student."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from haikd.core import base
from haikd.engine import guarding
from haikd.engine import mesh as mesh_lib
from haikd.network import precision
from haikd.objective import balance as balance_lib
from haikd.objective import objective as objective_lib


class Measure(NamedTuple):
  """Measures the norm of the gradient of each loss, for a step.

  Attributes:
    before: `(state, frozen, batch) -> state`, for the batch of the next step;
      the state differs in `balance` alone.
    after: `(state, old, number) -> state`, given the state after the step, and
      `balance` and the number of wrong steps before the measurement: what was
      measured of a wrong step is dropped.
  """

  before: Callable[[base.TrainState, Any, base.Batch], base.TrainState]
  after: Callable[[base.TrainState, Any, jax.Array], base.TrainState]


def build_measure(
    objective: objective_lib.Objective, gradient: Callable,
    balance: balance_lib.Balance, guard: guarding.Guard,
    mesh: jax.sharding.Mesh
) -> Measure:
  """Returns what measures the norm of the gradient of each loss.

  It runs the part of a step that computes gradients once for each loss, one
  after another, so that it needs no more memory than a step.

  Args:
    objective: what is minimised.
    gradient: from `step.build_gradient`.
    balance: of the losses.
    guard: what is done about numbers that are not finite.
    mesh: where it runs.
  """
  names = [term.name for term in objective.terms]
  everywhere = mesh_lib.replicated(mesh)

  def norm(state, frozen, batch, number):
    """Returns the norm for a loss, and the mean of each."""
    factors = {name: jnp.float32(number == i) for i, name in enumerate(names)}
    grads, _, sums = gradient(
        state.params, state.net_state, frozen, state.loss_scale, state.step,
        batch, factors=factors)
    grads = state.loss_scale.unscale(grads.student)
    weights = jnp.stack([
        jnp.float32(x) for x in objective.weights(state.step).values()])
    weight = weights[number]
    _, means = objective.combine(sums, state.step)
    # A loss of weight 0 cannot be measured, and need not be.
    value = optax.tree.norm(grads) / jnp.where(weight > 0, weight, 1)
    return value, means, objective_lib.seen(sums)

  norm = jax.jit(norm, out_shardings=everywhere)

  def measured(state, *found):
    return precision.keep_if(guard.has_halted(state.seen), state.balance,
                             balance.measure(state.balance, *found))

  update = jax.jit(measured, out_shardings=everywhere)

  def measure(state, frozen, batch):
    norms = {}
    for i, name in enumerate(names):
      norms[name], means, seen = norm(state, frozen, batch, jnp.int32(i))
    return state._replace(balance=update(state, norms, means, seen))

  choose = jax.jit(precision.keep_if, out_shardings=everywhere)

  def settle(state, old, number):
    is_right = state.seen.number == number
    return state._replace(balance=choose(is_right, state.balance, old))

  return Measure(measure, settle)
