"""The distillation objective: a weighted sum of masked means.

With `C` the count summed over all devices and microbatches, it is

    L = sum_k w_k 1/|layers_k| sum_layer total / max(C, 1).

The sums are computed here and added up by the step; the division happens once,
in `coefficients`.
"""

from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp

from haikd.core import base
from haikd.network import network as network_lib
from haikd.objective import compare as compare_lib
from haikd.objective import pairs as pairs_lib
from haikd.objective import teacher as teacher_lib
from haikd.objective import terms as terms_lib

Sums = dict[str, tuple[base.LossSum, ...]]  # By term, one LossSum a layer.


class Objective(NamedTuple):
  """What is minimised. Built by `build.build_objective`.

  Attributes:
    student: the network that is trained.
    teacher: the network it learns from, or None.
    terms: the weighted losses.
    layers: `{term: ((student layer, teacher layers), …)}` of every term that
      is not on logits.
  """

  student: network_lib.Network
  teacher: Optional[network_lib.Network]
  terms: tuple[terms_lib.Term, ...]
  layers: dict[str, pairs_lib.Layers]

  def init(self, rng: jax.Array, batch: base.Batch,
           frozen: Optional[base.Variables]) -> tuple[base.Params, Any]:
    """Initialises what is trained.

    Args:
      rng: PRNG key.
      batch: gives the shapes; one example is enough.
      frozen: the teacher's parameters and state, for the shapes of what is
        aligned with it.

    Returns:
      Parameters and the student's state.
    """
    student_rng, align_rng = jax.random.split(rng)
    params, net_state = self.student.init(student_rng, batch)
    context = compare_lib.Context()
    outputs = jax.eval_shape(
        lambda *args: self._outputs(*args, context, False)[:2], params,
        net_state, frozen, batch, rng)
    inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), outputs)
    aligned = {}
    for number, term in enumerate(self.terms):
      layers = {}
      for index, pair in enumerate(self._pairs(term, *inputs, batch)):
        rng = jax.random.fold_in(jax.random.fold_in(align_rng, number), index)
        if pair.teacher is not None:
          layers[str(index)] = term.align.init(rng, None, *pair)
      layers = {index: params for index, params in layers.items() if params}
      if layers:
        aligned[term.name] = layers
    return base.Params(params, aligned), net_state

  def sums(self,
           params: base.Params,
           net_state: base.ArrayTree,
           frozen: Optional[base.Variables],
           batch: base.Batch,
           rng: jax.Array,
           context: compare_lib.Context = compare_lib.Context(),
           is_training: bool = True) -> tuple[Sums, Any]:
    """Computes every term on one microbatch, from whole logits and maps.

    Of counts, which depend on masks alone, a compiler then sees that neither
    are needed.

    Args:
      params: what is trained; the only thing that a gradient reaches.
      net_state: the student's state.
      frozen: the teacher, or None.
      batch: one microbatch of one shard.
      rng: PRNG key, for dropout.
      context: where the step runs this.
      is_training: how the student is run; the teacher never trains.

    Returns:
      `{term: one LossSum a layer}` and the student's new state.
    """
    student, teacher, net_state = self._outputs(params.student, net_state,
                                                frozen, batch, rng, context,
                                                is_training)
    student, teacher = (
        pairs_lib.with_logits(x, batch) for x in (student, teacher))
    sums = {}
    for term in self.terms:
      pairs = self._pairs(term, student, teacher, batch)
      sums[term.name] = compare_lib.compare(
          term, params.align.get(term.name, {}), pairs, batch.labels, context)
    return sums, net_state

  def loss(self, params: base.Params, net_state: base.ArrayTree,
           frozen: Optional[base.Variables], batch: base.Batch, rng: jax.Array,
           coefficients: dict[str, tuple[jax.Array, ...]],
           context: compare_lib.Context) -> tuple[jax.Array, tuple[Sums, Any]]:
    """Computes the objective on one microbatch, to be differentiated.

    Args:
      params: what is trained; the only thing that a gradient reaches.
      net_state: the student's state.
      frozen: the teacher, or None.
      batch: one microbatch of one shard.
      rng: PRNG key, for dropout.
      coefficients: what each total is multiplied by, see `coefficients`.
      context: where the step runs this.

    Returns:
      The weighted sum of the totals, float32; the sums; and the student's new
      state.
    """
    student, teacher, net_state = self._outputs(params.student, net_state,
                                                frozen, batch, rng, context,
                                                True)
    on_logits, others = self._split(student)
    value, sums = jnp.zeros((), jnp.float32), {}
    if on_logits:
      value, found = compare_lib.compare_together(
          on_logits, [
              self._pairs(term, student, teacher, batch, lazy=True)[0]
              for term in on_logits
          ], batch.labels,
          jnp.stack([coefficients[term.name][0] for term in on_logits]),
          context)
      sums = {term.name: (x,) for term, x in zip(on_logits, found)}
    else:
      student, teacher = (
          pairs_lib.with_logits(x, batch) for x in (student, teacher))
    for term in others:
      lazy = term.lazy and term.entry.on != terms_lib.LOGITS
      pairs = self._pairs(term, student, teacher, batch, lazy=lazy)
      layers = compare_lib.compare(term, params.align.get(term.name, {}), pairs,
                                   batch.labels, context)
      value += sum(
          c * x.total for c, x in zip(coefficients[term.name], layers))
      sums[term.name] = layers
    return value, (sums, net_state)

  def weights(self, step: jax.Array) -> dict[str, jax.Array]:
    """Returns the weight of each term at a step."""
    return {term.name: term.weight(step) for term in self.terms}

  def coefficients(self, counts: dict[str, tuple[jax.Array, ...]],
                   step: jax.Array) -> dict[str, tuple[jax.Array, ...]]:
    """Returns what each total is multiplied by in the objective.

    Args:
      counts: by term and layer, summed over all devices and microbatches.
      step: int32 scalar, for scheduled weights.

    Returns:
      `w_k / (|layers_k| max(C, 1))` by term and layer.
    """
    weights = self.weights(step)
    return {
        name: tuple(weights[name] / (len(layers) * jnp.maximum(count, 1))
                    for count in layers) for name, layers in counts.items()
    }

  def combine(self, sums: Sums,
              step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss and its terms from sums over the whole batch.

    Args:
      sums: by term and layer, summed over all devices and microbatches.
      step: int32 scalar, for scheduled weights.

    Returns:
      The objective, and `{term: mean over layers of its masked mean}`, before
      weights are applied.
    """
    weights = self.weights(step)
    mean = lambda layers: sum(
        x.total / jnp.maximum(x.count, 1) for x in layers) / len(layers)
    means = {name: mean(layers) for name, layers in sums.items()}
    return sum(weights[name] * mean for name, mean in means.items()), means

  def _outputs(self, params, net_state, frozen, batch, rng, context,
               is_training):
    student, net_state = self.student.apply(
        params,
        net_state,
        rng,
        batch,
        is_training=is_training,
        batch_axes=context.batch_axes,
        gather=context.gather_parameter)
    teacher = teacher_lib.infer(self.teacher, frozen, batch, self.terms,
                                self.layers, context.gather_parameter)
    return student, teacher, net_state

  def _split(self, student):
    """Returns the terms whose logits come in chunks, and the others."""
    is_on_logits = lambda term: term.entry.on == terms_lib.LOGITS
    on_logits = list(filter(is_on_logits, self.terms))
    # If one of them needs them whole, they are there for the others too.
    if (not isinstance(student.logits, base.LinearLogits) or
        not all(term.lazy for term in on_logits)):
      return [], self.terms
    return on_logits, [x for x in self.terms if not is_on_logits(x)]

  def _pairs(self, term, student, teacher, batch, *, lazy=False):
    return pairs_lib.pairs(term, self.layers.get(term.name, ()), student,
                           teacher, batch, lazy=lazy)
