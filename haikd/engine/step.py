"""The training step.

Each device accumulates the gradient of `sum w total / C` over its microbatches;
the devices then add up their gradients once. `C` must be known first; it
depends on masks only, so that XLA removes everything else from the pass that
counts.
"""

from collections.abc import Callable, Sequence
from typing import Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax

from haikd.core import base
from haikd.core import loops
from haikd.engine import collectives
from haikd.engine import guarding
from haikd.engine import mesh as mesh_lib
from haikd.engine import optimizer as optimizer_lib
from haikd.engine import parts as parts_lib
from haikd.engine import seeded
from haikd.network import precision
from haikd.objective import balance as balance_lib
from haikd.objective import compare as compare_lib
from haikd.objective import objective as objective_lib

TrainStep = Callable[..., tuple[base.TrainState, dict[str, jax.Array]]]


def build_gradient(objective: objective_lib.Objective, mesh: jax.sharding.Mesh,
                   params: base.ArrayTree, frozen: Optional[base.Variables], *,
                   microbatches: int, seed: int,
                   frozen_parts: Sequence[str] = (),
                   chunk_bytes: Optional[int] = None) -> Callable:
  """Builds the part of the step that runs on every device.

  Args:
    objective: what is minimised.
    mesh: where it runs.
    params: NamedShardings of the trained parameters.
    frozen: NamedShardings of the teacher, or None.
    microbatches: how many each device makes of its shard of the batch; they run
      one by one.
    seed: of dropout.
    frozen_parts: globs over modules and parameters of the student, whose
      gradient is not computed.
    chunk_bytes: of the logits that a device holds at once; None for what suits
      it.

  Returns:
    A function of `(params, net_state, frozen, loss_scale, step, batch)`, all of
    them global arrays, and of `factors`, what the weights of terms are
    multiplied by. It returns the gradient of the scaled loss with respect to
    `params`, None for frozen parts; the student's new state; and the sums of
    all terms. A traced `seed` may take the place of the constant.
  """
  gather_parameter = collectives.build_gather(mesh)
  param_specs, frozen_specs = jax.tree.map(lambda x: x.spec, (params, frozen))
  trained_specs = parts_lib.trained(param_specs, frozen_parts)

  def local(params, net_state, frozen, loss_scale, step, batch, factors, seed):
    context = compare_lib.Context(
        batch_axes=collectives.batch_axes(),
        gather=collectives.gather_over_batch,
        gather_parameter=gather_parameter,
        sizes=collectives.chunk_sizes(mesh, chunk_bytes),
        step=step)
    parts = _split(batch, _dropout_key(seed, step), microbatches)
    counts = collectives.sum_over_batch(
        _count(objective, params, net_state, frozen, parts, context))
    gradient, net_state, sums = _accumulate(
        objective, params, net_state, frozen, parts, context,
        objective.coefficients(counts, step, factors), loss_scale,
        frozen_parts)
    return (collectives.sum_gradient(gradient, trained_specs),
            collectives.agree_over_batch(net_state),
            collectives.sum_over_batch(sums))

  replicated = mesh_lib.replicated(mesh).spec
  run = collectives.over_shards(
      local,
      mesh,
      in_specs=(param_specs, replicated, frozen_specs, replicated, replicated,
                mesh_lib.BATCH_SPEC, replicated, replicated),
      out_specs=(trained_specs, replicated, replicated))
  return lambda *args, factors=None, seed=seed: run(
      *args, factors or {}, np.uint32(seed) if isinstance(seed, int) else seed)


def _dropout_key(seed, step):
  """Returns this shard's key for a step."""
  rng = jax.random.fold_in(jax.random.key(seed), objective_lib.DROPOUT_KEY)
  rng = jax.random.fold_in(rng, step)
  return jax.random.fold_in(rng, collectives.shard_index())


def _split(batch, rng, microbatches):
  """Returns the microbatches of a shard and a key for each, stacked."""
  parts = jax.tree.map(
      lambda x: x.reshape((microbatches, -1) + x.shape[1:]), batch)
  return parts, jax.random.split(rng, microbatches)


def _count(objective, params, net_state, frozen, parts, context):
  """Returns the shard's counts, `{term: one a layer}`."""

  def count(part):
    sums, _ = objective.sums(params, net_state, frozen, *part, context)
    return {
        name: tuple(x.count for x in layers) for name, layers in sums.items()
    }

  _, counts = loops.scan_parts(
      lambda carry, part: (carry, count(part)), (), parts)
  return jax.tree.map(lambda x: jnp.sum(x, axis=0), counts)


def _accumulate(objective, params, net_state, frozen, parts, context,
                coefficients, loss_scale, frozen_parts):
  """Returns the shard's gradient, the student's new state and the sums."""
  trained = parts_lib.trained(params, frozen_parts)

  def loss(trained, net_state, part):
    value, others = objective.loss(
        parts_lib.fill(trained, params), net_state, frozen, *part, coefficients,
        context)
    return loss_scale.scale(value), others

  def add(carry, part):
    gradient, net_state = carry
    more, (sums, net_state) = jax.grad(
        loss, has_aux=True)(trained, net_state, part)
    return (jax.tree.map(jnp.add, gradient, more), net_state), sums

  zeros = jax.tree.map(jnp.zeros_like, trained)
  (gradient, net_state), sums = loops.scan_parts(
      add, (zeros, net_state), parts)
  return gradient, net_state, jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)


def build_train_step(objective: objective_lib.Objective,
                     gradient: Callable,
                     optimizer: optax.GradientTransformation,
                     schedule: optax.Schedule,
                     mesh: jax.sharding.Mesh,
                     state: base.TrainState,
                     *,
                     balance: balance_lib.Balance = balance_lib.Balance(),
                     guard: guarding.Guard = guarding.Guard(),
                     log_weights: bool = False,
                     seed: int = 0,
                     ema_decay: float = 0.0,
                     donate: bool = True) -> TrainStep:
  """Builds the compiled training step.

  The update runs outside `shard_map`, on global arrays, so that a norm is the
  norm of the global gradient. With a dynamic loss scale, a step whose gradient
  is not finite changes only the scale and the step number. A step that the
  guard finds wrong changes `seen` and, if it is to be skipped, the step number;
  unless it is, no later step changes anything.

  Args:
    objective: what is minimised.
    gradient: from `build_gradient`.
    optimizer: optax transformation of the gradient.
    schedule: the learning rate, for the metrics.
    mesh: where it runs.
    state: NamedShardings of the state, before and after the step.
    balance: of the losses.
    guard: what is done about numbers that are not finite.
    log_weights: whether metrics have the weights that do not change, too.
    seed: of dropout.
    ema_decay: of the running mean of the student's parameters.
    donate: whether the new state is written over the old one.

  Returns:
    `(state, frozen, batch) -> (state, metrics)`. Metrics are float32 scalars:
    `loss`, `loss/<term>`, `grad_norm`, `learning_rate`; `weight/<term>` and
    `<option>/<term>` if they change; `loss_scale` with float16; and `seen`,
    what the guard has seen, which is a `base.Seen`.
  """
  # On several devices an update may hold collectives, which all must reach.
  branches = donate and mesh.size == 1 and (
      mesh.devices.flat[0].platform == 'cpu')

  def update(state, grads, net_state, means, seen):
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = _keep_unused(objective, optax.apply_updates(state.params, updates),
                          state.params)
    return base.TrainState(state.step + 1, params, net_state, opt_state,
                           state.loss_scale, state.ema,
                           balance.observe(state.balance, means, seen),
                           state.seen)

  def train_step(state, frozen, batch, seed):
    weights, align = objective.weights(state.step), state.params.align
    factors = balance.factors(weights, state.balance, align)
    grads, net_state, sums = gradient(
        state.params, state.net_state, frozen, state.loss_scale, state.step,
        batch, factors=factors, seed=seed)
    grads = state.loss_scale.unscale(
        parts_lib.fill(grads, state.params, jnp.zeros_like))
    loss, means = objective.combine(sums, state.step, factors)
    seen = objective_lib.seen(sums)
    more, learned = balance.learn(align, grads.align, weights, means, seen)
    loss, grads = loss + more, grads._replace(align=learned)
    squares = guarding.squares_of(grads)
    norm = jnp.sqrt(sum(squares))
    metrics = {
        'loss': loss,
        **{f'loss/{name}': mean for name, mean in means.items()},
        'grad_norm': norm,
        'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
        **_scheduled_values(objective, state.step, factors, log_weights),
    }
    finite, scale = jnp.isfinite(norm), state.loss_scale
    may_overflow = jnp.bool_(False)
    if isinstance(scale, precision.DynamicLossScale):
      scale = scale.adjust(finite)
      metrics['loss_scale'] = scale.loss_scale
      may_overflow = scale.loss_scale > 1  # It can still be halved.
    wrong = guard.is_wrong(loss, norm, may_overflow)
    watched, take = guard.watch(
        state.seen, state.step + 1, wrong, loss,
        [means[term.name] for term in objective.terms], norm, squares)
    is_counted = take if guard.nonfinite != guarding.SKIP else jnp.bool_(True)
    new_state = guarding.update_if(
        take & finite, update, state, grads, net_state, means, seen,
        branches=branches)
    ema = state.ema
    if ema is not None:  # In a branch, it would be rounded differently.
      ema = precision.keep_if(
          take & finite,
          optimizer_lib.update_ema(ema, new_state.params.student, ema_decay,
                                   state.step), ema)
    new_state = new_state._replace(
        step=jnp.where(is_counted, state.step + 1, state.step),
        loss_scale=precision.keep_if(is_counted, scale, state.loss_scale),
        ema=ema,
        seen=watched)
    return new_state, {**metrics, 'seen': watched}

  function = jax.jit(
      train_step,
      out_shardings=(state, mesh_lib.replicated(mesh)),
      donate_argnums=0 if donate else ())
  return seeded.Seeded(function, np.uint32(seed))


def _keep_unused(objective, params, old):
  """Undoes what decay and momentum do to terms of other stages."""
  used = {term.name for term in objective.terms}
  return params._replace(align={
      name: tree if name in used else old.align[name]
      for name, tree in params.align.items()})


def _scheduled_values(objective, step, factors, log_weights):
  """Returns the weights and options that change over the run, for metrics."""
  values, weights = {}, objective.weights(step, factors)
  for term in objective.terms:
    if term.scheduled or log_weights or factors:
      values[f'weight/{term.name}'] = jnp.float32(weights[term.name])
    for option, schedule in term.schedules.items():
      values[f'{option}/{term.name}'] = jnp.float32(schedule(step))
  return values
