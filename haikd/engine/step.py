"""The training step.

Gradients of `sum w total / C` are accumulated over microbatches on each device
and reduced once. `C` has to be known first; it depends on masks alone, so that
the compiler drops everything else from the pass that counts.
"""

from collections.abc import Callable
from typing import Any, Optional

import jax
from jax import lax
import jax.numpy as jnp
import jmp
import optax

from haikd.core import base
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import optimizer as optimizer_lib
from haikd.network import precision
from haikd.objective import compare as compare_lib
from haikd.objective import objective as objective_lib

# The key of a seed is split in two to initialise; this is its third child.
_DROPOUT = 2

TrainStep = Callable[..., tuple[base.TrainState, dict[str, jax.Array]]]


def init_state(objective: objective_lib.Objective,
               optimizer: optax.GradientTransformation,
               *,
               rng: jax.Array,
               batch: base.Batch,
               frozen: Optional[base.Variables],
               loss_scale: Any,
               with_ema: bool) -> base.TrainState:
  """Makes the state that training starts from; to be called under `jit`.

  Args:
    objective: what is minimised.
    optimizer: how.
    rng: PRNG key for the parameters.
    batch: gives the shapes; one example is enough.
    frozen: the teacher, or None.
    loss_scale: a jmp loss scale.
    with_ema: whether to keep a running mean of the student's parameters.

  Returns:
    The state at step 0.
  """
  params, net_state = objective.init(rng, batch, frozen)
  return base.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      net_state=net_state,
      opt_state=optimizer.init(params),
      loss_scale=loss_scale,
      ema=params.student if with_ema else None)


def build_gradient(objective: objective_lib.Objective, mesh: jax.sharding.Mesh,
                   params: base.ArrayTree, frozen: Optional[base.Variables], *,
                   microbatches: int, seed: int,
                   chunk_bytes: Optional[int] = None) -> Callable:
  """Builds the part of the step that runs on every device.

  Args:
    objective: what is minimised.
    mesh: where it runs.
    params: NamedShardings of what is trained.
    frozen: NamedShardings of the teacher, or None.
    microbatches: parts that each device works through one by one.
    seed: of dropout.
    chunk_bytes: of the logits that a device holds at once; None for what suits
      it.

  Returns:
    A function of `(params, net_state, frozen, loss_scale, step, batch)`, global
    arrays all, that returns the gradient of the scaled loss with respect to
    `params`, the new state of the student, and the sums of all terms.
  """
  gather_parameter = collectives.build_gather(mesh)
  param_specs, frozen_specs = jax.tree.map(lambda x: x.spec, (params, frozen))

  def local(params, net_state, frozen, loss_scale, step, batch):
    context = compare_lib.Context(
        batch_axes=collectives.batch_axes(),
        gather=collectives.gather_over_batch,
        gather_parameter=gather_parameter,
        sizes=collectives.chunk_sizes(mesh, chunk_bytes),
        step=step)
    parts = jax.tree.map(
        lambda x: x.reshape((microbatches, -1) + x.shape[1:]), batch)
    rng = jax.random.fold_in(jax.random.key(seed), _DROPOUT)
    rng = jax.random.fold_in(rng, step)
    rng = jax.random.fold_in(rng, collectives.shard_index())
    parts = (parts, jax.random.split(rng, microbatches))

    def count(part):
      batch, rng = part
      sums, _ = objective.sums(params, net_state, frozen, batch, rng, context)
      return {
          name: tuple(x.count for x in layers) for name, layers in sums.items()
      }

    def loss(params, net_state, coefficients, part):
      batch, rng = part
      value, others = objective.loss(params, net_state, frozen, batch, rng,
                                     coefficients, context)
      return loss_scale.scale(value), others

    _, counts = scan_parts(lambda carry, part: (carry, count(part)), (), parts)
    counts = collectives.sum_over_batch(
        jax.tree.map(lambda x: jnp.sum(x, axis=0), counts))
    coefficients = objective.coefficients(counts, step)

    def accumulate(carry, part):
      gradient, net_state = carry
      more, (sums, net_state) = jax.grad(
          loss, has_aux=True)(params, net_state, coefficients, part)
      gradient = jax.tree.map(jnp.add, gradient, more)
      return (gradient, net_state), sums

    zeros = jax.tree.map(jnp.zeros_like, params)
    (gradient, net_state), sums = scan_parts(
        accumulate, (zeros, net_state), parts)
    sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
    gradient = collectives.sum_gradient(gradient, param_specs)
    return (gradient, collectives.agree_over_batch(net_state),
            collectives.sum_over_batch(sums))

  whole = mesh_lib.whole(mesh).spec
  return collectives.over_shards(
      local,
      mesh,
      in_specs=(param_specs, whole, frozen_specs, whole, whole,
                mesh_lib.BATCH_SPEC),
      out_specs=(param_specs, whole, whole))


def scan_parts(function: Callable, carry: Any,
               parts: base.ArrayTree) -> tuple[Any, Any]:
  """Is `lax.scan`, without a loop where there is only one part.

  XLA does not remove a loop that runs once, and on CPU a convolution inside a
  loop takes up to 16 times as long.

  Args:
    function: `(carry, part) -> (carry, output)`.
    carry: a pytree.
    parts: a pytree of arrays `[microbatches, ...]`.

  Returns:
    The last carry and the outputs, stacked.
  """
  length = jax.tree.leaves(parts)[0].shape[0]
  if length > 1:
    return lax.scan(function, carry, parts)
  carry, output = function(carry, jax.tree.map(lambda x: x[0], parts))
  return carry, jax.tree.map(lambda x: x[None], output)


def build_train_step(objective: objective_lib.Objective,
                     optimizer: optax.GradientTransformation,
                     schedule: optax.Schedule,
                     mesh: jax.sharding.Mesh,
                     state: base.TrainState,
                     frozen: Optional[base.Variables],
                     *,
                     microbatches: int = 1,
                     ema_decay: float = 0.0,
                     seed: int = 0,
                     chunk_bytes: Optional[int] = None,
                     donate: bool = True) -> TrainStep:
  """Builds the compiled training step.

  The update runs outside of `shard_map`, on global arrays, so that a norm is
  the norm of the whole gradient. With a dynamic loss scale, a step whose
  gradient is not finite changes nothing but the scale and the step number.

  Args:
    objective: what is minimised.
    optimizer: optax transformation of the gradient.
    schedule: the learning rate, for the metrics.
    mesh: where it runs.
    state: NamedShardings of the state, which its successor has too.
    frozen: NamedShardings of the teacher, or None.
    microbatches: parts that each device works through one by one.
    ema_decay: of the running mean of the student's parameters.
    seed: of dropout.
    chunk_bytes: of the logits that a device holds at once; None for what suits
      it.
    donate: whether the new state is written over the old one.

  Returns:
    `(state, frozen, batch) -> (state, metrics)`. Metrics are float32 scalars:
    `loss`, `loss/<term>`, `grad_norm`, `learning_rate`, of what is scheduled
    `weight/<term>` and `<option>/<term>`, and with float16 `loss_scale`.
  """
  gradient = build_gradient(
      objective,
      mesh,
      state.params,
      frozen,
      microbatches=microbatches,
      seed=seed,
      chunk_bytes=chunk_bytes)

  def step(state, frozen, batch):
    grads, net_state, sums = gradient(state.params, state.net_state, frozen,
                                      state.loss_scale, state.step, batch)
    grads = state.loss_scale.unscale(grads)
    loss, means = objective.combine(sums, state.step)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
      ema = optimizer_lib.update_ema(ema, params.student, ema_decay, state.step)
    new = base.TrainState(state.step + 1, params, net_state, opt_state,
                          state.loss_scale, ema)
    metrics = {
        'loss': loss,
        **{f'loss/{name}': mean for name, mean in means.items()},
        'grad_norm': optax.tree.norm(grads),
        'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
    }
    for term in objective.terms:
      if term.scheduled:
        metrics[f'weight/{term.name}'] = jnp.float32(term.weight(state.step))
      for option, value in term.schedules.items():
        metrics[f'{option}/{term.name}'] = jnp.float32(value(state.step))
    if isinstance(state.loss_scale, precision.DynamicLossScale):
      finite = jmp.all_finite(grads)
      new = precision.keep_if(finite, new, state)._replace(
          step=new.step, loss_scale=state.loss_scale.adjust(finite))
      metrics['loss_scale'] = new.loss_scale.loss_scale
    return new, metrics

  return jax.jit(
      step,
      out_shardings=(state, mesh_lib.whole(mesh)),
      donate_argnums=0 if donate else ())
