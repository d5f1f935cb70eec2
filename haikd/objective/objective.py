"""The distillation objective: a weighted sum of masked means.

With `C` the count summed over all devices and microbatches, it is

    L = sum_k w_k 1/|layers_k| sum_layer total / C, 0 if nothing counts.

The sums are computed here and the step adds them up; the only division of the
objective is in `coefficients`.
"""

from collections.abc import Mapping, Sequence
import types
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
Coefficients = dict[str, tuple[jax.Array, ...]]  # By term, one a layer.
# The student and, if some term needs it, the teacher.
Outputs = tuple[network_lib.NetworkOutput, Optional[network_lib.NetworkOutput]]

Factors = Mapping[str, jax.Array]  # By term.
_ALL_ONE: Factors = types.MappingProxyType({})

# The key of a seed is split in two to initialise; dropout folds it with this.
DROPOUT_KEY = 2


class Objective(NamedTuple):
  """What is minimised. Built by `build.build_objective`.

  Attributes:
    student: the network that is trained.
    teacher: the network it learns from, or None.
    terms: the weighted losses.
    layers: `{term: ((student layer, teacher layers), …)}` of every term that
      is not on logits.
    task: what labels are, one of `tasks.OF_LABELS`.
    outputs: those of both networks for a batch, as ShapeDtypeStructs.
  """

  student: network_lib.Network
  teacher: Optional[network_lib.Network]
  terms: tuple[terms_lib.Term, ...]
  layers: dict[str, pairs_lib.Layers]
  task: str
  outputs: Outputs

  def init(self, rng: jax.Array, batch: base.Batch,
           frozen: Optional[base.Variables]) -> tuple[base.Params, Any]:
    """Initialises what is trained.

    Args:
      rng: PRNG key.
      batch: gives the shapes; one example is enough.
      frozen: the teacher's parameters and state, which give the shapes of
        learned alignments.

    Returns:
      Parameters and the student's state.
    """
    student_rng, align_rng = jax.random.split(rng)
    params, net_state = self.student.init(student_rng, batch)
    if not any(term.aligns or term.learns for term in self.terms):
      return base.Params(params, {}), net_state

    def run(params, net_state, frozen, batch):
      outputs, _ = self._run(params, net_state, frozen, batch, rng,
                             compare_lib.Context(), is_training=False)
      return with_logits(outputs, batch)

    shapes = jax.eval_shape(run, params, net_state, frozen, batch)
    outputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    align = {}
    for number, term in enumerate(self.terms):
      pairs = self.pairs(term, outputs, batch, terms_lib.Form.ARRAYS)
      term_rng = jax.random.fold_in(align_rng, number)
      layers = compare_lib.init_align(term, pairs, term_rng)
      if term.learns:
        learned = compare_lib.init_loss(
            term, layers, pairs, batch.labels, term_rng)
        layers = compare_lib.joined(layers, learned)
      if layers:
        align[term.name] = layers
    return base.Params(params, align), net_state

  def sums(self,
           params: base.Params,
           net_state: base.ArrayTree,
           frozen: Optional[base.Variables],
           batch: base.Batch,
           rng: jax.Array,
           context: compare_lib.Context = compare_lib.Context(),
           is_training: bool = True) -> tuple[Sums, Any]:
    """Computes every term on one microbatch, from materialised logits and maps.

    A caller that uses only the counts pays for no logits or maps: counts come
    from masks and labels, and XLA removes the rest as dead code.

    Args:
      params: the trained parameters; gradients reach nothing else.
      net_state: the student's state.
      frozen: the teacher, or None.
      batch: one microbatch of one shard.
      rng: PRNG key, for dropout.
      context: where the step runs this.
      is_training: how the student is run; the teacher never trains.

    Returns:
      `{term: one LossSum a layer}` and the student's new state.
    """
    outputs, net_state = self._run(params.student, net_state, frozen, batch,
                                   rng, context, is_training=is_training)
    forms = dict.fromkeys((term.name for term in self.terms),
                          terms_lib.Form.ARRAYS)
    sums = self._sums(self.terms, params.align, with_logits(outputs, batch),
                      batch, context, forms)
    return sums, net_state

  def loss(self, params: base.Params, net_state: base.ArrayTree,
           frozen: Optional[base.Variables], batch: base.Batch, rng: jax.Array,
           coefficients: Coefficients, context: compare_lib.Context
           ) -> tuple[jax.Array, tuple[Sums, Any]]:
    """Computes the objective on one microbatch, to be differentiated.

    Args:
      params: the trained parameters; gradients reach nothing else.
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
    outputs, net_state = self._run(params.student, net_state, frozen, batch,
                                   rng, context, is_training=True)
    forms = terms_lib.choose_forms(self.terms, outputs[0].logits)
    is_chunked = lambda term: forms[term.name] is terms_lib.Form.CHUNKS
    in_chunks = list(filter(is_chunked, self.terms))
    others = [term for term in self.terms if not is_chunked(term)]
    value, sums = jnp.zeros((), jnp.float32), Sums()
    # Terms on logits go in chunks all together, or not at all.
    if in_chunks:
      value, sums = self._sums_in_chunks(in_chunks, outputs, batch,
                                         coefficients, context)
    else:
      outputs = with_logits(outputs, batch)
    sums |= self._sums(others, params.align, outputs, batch, context, forms)
    for term in others:
      value += sum(c * x.total for c, x in zip(coefficients[term.name],
                                               sums[term.name]))
    return value, (sums, net_state)

  def weights(self, step: jax.Array,
              factors: Factors = _ALL_ONE) -> dict[str, jax.Array]:
    """Returns the weight of each term at a step.

    Args:
      step: int32 scalar, for scheduled weights.
      factors: what they are multiplied by; {} for 1.
    """
    return {term.name: term.weight(step) * factors.get(term.name, 1)
            for term in self.terms}

  def coefficients(self, counts: dict[str, tuple[jax.Array, ...]],
                   step: jax.Array,
                   factors: Factors = _ALL_ONE) -> Coefficients:
    """Returns what each total is multiplied by in the objective.

    Args:
      counts: by term and layer, summed over all devices and microbatches.
      step: int32 scalar, for scheduled weights.
      factors: what the weights are multiplied by; {} for 1.

    Returns:
      `w_k / (|layers_k| C)` by term and layer, with 1 for a count of 0.
    """
    weights = self.weights(step, factors)
    return {
        name: tuple(weights[name] / (len(layers) * _divisor(count))
                    for count in layers) for name, layers in counts.items()
    }

  def combine(self, sums: Sums, step: jax.Array, factors: Factors = _ALL_ONE
              ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss and its terms from sums over the global batch.

    Args:
      sums: by term and layer, summed over all devices and microbatches.
      step: int32 scalar, for scheduled weights.
      factors: what the weights are multiplied by; {} for 1.

    Returns:
      The objective, and `{term: mean over layers of its masked mean}`, before
      weights are applied.
    """
    weights = self.weights(step, factors)
    mean = lambda layers: sum(
        x.total / _divisor(x.count) for x in layers) / len(layers)
    means = {name: mean(layers) for name, layers in sums.items()}
    return sum(weights[name] * mean for name, mean in means.items()), means

  def pairs(self, term: terms_lib.Term, outputs: Outputs, batch: base.Batch,
            form: terms_lib.Form) -> list[base.Pair]:
    """Returns what a term compares, one pair a layer.

    Args:
      term: one of the terms.
      outputs: of the networks, for the batch; their logits are materialised
        unless the form is CHUNKS.
      batch: the batch.
      form: the form in which the term gets them.
    """
    if term.entry.on == terms_lib.LOGITS:
      return [pairs_lib.logits_pair(term, *outputs, batch)]
    return pairs_lib.tap_pairs(term, self.layers[term.name], *outputs, batch,
                               form)

  def _run(self, params: base.ArrayTree, net_state: base.ArrayTree,
           frozen: Optional[base.Variables], batch: base.Batch, rng: jax.Array,
           context: compare_lib.Context, *,
           is_training: bool) -> tuple[Outputs, Any]:
    """Returns the outputs of both networks and the student's new state."""
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
    return (student, teacher), net_state

  def _sums(self, terms: Sequence[terms_lib.Term], align: base.ArrayTree,
            outputs: Outputs, batch: base.Batch, context: compare_lib.Context,
            forms: Mapping[str, terms_lib.Form]) -> Sums:
    """Evaluates terms one by one."""
    sums = {}
    for term in terms:
      pairs = self.pairs(term, outputs, batch, forms[term.name])
      sums[term.name] = compare_lib.compare(
          term, align.get(term.name, {}), pairs, batch, context)
    return sums

  def _sums_in_chunks(self, terms: Sequence[terms_lib.Term], outputs: Outputs,
                      batch: base.Batch, coefficients: Coefficients,
                      context: compare_lib.Context) -> tuple[jax.Array, Sums]:
    """Evaluates terms on lazy logits together; returns their weighted sum."""
    form = terms_lib.Form.CHUNKS
    value, sums = compare_lib.compare_together(
        terms, [self.pairs(term, outputs, batch, form)[0] for term in terms],
        batch,
        jnp.stack([coefficients[term.name][0] for term in terms]), context)
    return value, {term.name: (x,) for term, x in zip(terms, sums)}


def seen(sums: Sums) -> dict[str, jax.Array]:
  """Returns whether anything counted in each term, bool scalars."""
  return {name: jnp.array([x.count for x in layers]).sum() > 0
          for name, layers in sums.items()}


def _divisor(count):
  """Returns a count, which weights may make small; 1 if nothing counts."""
  return jnp.where(count > 0, count, 1.0)


def with_logits(outputs: Outputs, batch: base.Batch) -> Outputs:
  """Returns outputs whose logits, if any, are materialised for all terms."""
  student, teacher = outputs
  return (pairs_lib.with_logits(student, batch),
          teacher and pairs_lib.with_logits(teacher, batch))
