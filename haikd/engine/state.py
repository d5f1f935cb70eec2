"""The state that training starts from."""

from collections.abc import Sequence
from typing import Any, Optional

import jax
import jax.numpy as jnp
import optax

from haikd.core import base
from haikd.core import checks
from haikd.engine import guarding
from haikd.objective import balance as balance_lib
from haikd.objective import objective as objective_lib


def init_state(objectives: Sequence[objective_lib.Objective],
               optimizer: optax.GradientTransformation,
               *,
               rng: jax.Array,
               batch: base.Batch,
               frozen: Sequence[Optional[base.Variables]],
               loss_scale: Any,
               with_ema: bool,
               balance: balance_lib.Balance) -> base.TrainState:
  """Makes the state that training starts from; call it under `jit`.

  Args:
    objectives: what is minimised, in each stage of the run. What their terms
      learn themselves is in the state from the start.
    optimizer: optax transformation of the gradient, of the first stage.
    rng: PRNG key for the parameters.
    batch: gives the shapes; one example is enough.
    frozen: the teacher of each, or None.
    loss_scale: a jmp loss scale.
    with_ema: whether to keep a running mean of the student's parameters.
    balance: of the losses.

  Returns:
    The state at step 0.

  Raises:
    ConfigError: a term learns parameters of other shapes in another stage.
  """
  params, net_state = objectives[0].init(rng, batch, frozen[0])
  for other, teacher in zip(objectives[1:], frozen[1:]):
    more = other.init(rng, batch, teacher)[0].align
    _check_same(params.align, more)
    params = params._replace(align={**more, **params.align})
  names = {term.name: None for x in objectives for term in x.terms}
  learned = balance.parameters(names)
  params = params._replace(align={
      **params.align, **{name: {**params.align.get(name, {}), **more}
                         for name, more in learned.items()}})
  return base.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      net_state=net_state,
      opt_state=optimizer.init(params),
      loss_scale=loss_scale,
      ema=params.student if with_ema else None,
      balance=balance.begin(names),
      seen=guarding.begin())


def _check_same(align, more):
  """Refuses terms that learn parameters of other shapes in another stage."""
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  for name in align.keys() & more.keys():
    if shapes(align[name]) != shapes(more[name]):
      raise checks.ConfigError(
          f'config.stages must leave the shapes of what the term {name} learns '
          f'as they are; got {shapes(align[name])} and {shapes(more[name])}. '
          'Give it another name where its layers or options are others.')
