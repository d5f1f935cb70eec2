"""Aligns the pairs that terms compare, and evaluates the losses on them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp

from haikd import attention
from haikd.core import base
from haikd.core import checks
from haikd.core import recorded
from haikd.core import weighting
from haikd.losses import chunks
from haikd.losses import cutting
from haikd.objective import terms as terms_lib

Pairs = Sequence[base.Pair]

# Folded into the key of a term, so that its loss and its aligners, which have a
# key for each layer, begin with other numbers.
_LOSS_KEY = 2**31


class Context(NamedTuple):
  """What the step tells an objective about where it runs.

  Attributes:
    batch_axes: mesh axes that the batch is split over.
    gather: concatenates a tree of arrays over all shards.
    gather_parameter: `(part, shape, dtype)`, gathers a parameter of which each
      device has a part; None where every device has complete parameters.
    sizes: of the chunks in which logits are computed.
    step: int32 scalar, for scheduled options.
  """

  batch_axes: tuple[str, ...] = ()
  gather: Callable[[Any], Any] = lambda tree: tree
  gather_parameter: Optional[Callable] = None
  sizes: cutting.ChunkSizes = cutting.ChunkSizes()
  step: Any = 0


def init_align(term: terms_lib.Term, pairs: Pairs,
               rng: jax.Array) -> dict[str, Any]:
  """Initialises the learned alignments of a term.

  Args:
    term: a term of the objective.
    pairs: of the term.
    rng: PRNG key.

  Returns:
    `{layer: Haiku parameters}` of the layers that have any; those of an aligner
    of all layers are the first layer's.
  """
  if term.aligner.all_layers and term.needs_teacher:
    pairs = [_of_all(pairs)]
  return _of_layers(pairs, rng, lambda rng, pair: (
      {} if _needs_none(pair) else term.align.init(rng, None, *pair)))


def init_loss(term: terms_lib.Term, params: Mapping[str, Any], pairs: Pairs,
              labels: Optional[jax.Array], rng: jax.Array,
              step: Any = 0) -> dict[str, Any]:
  """Initialises what the loss of a term learns itself.

  Args:
    term: a term of the objective.
    params: from `init_align`.
    pairs: of the term, as arrays.
    labels: of the batch, or None.
    rng: PRNG key.
    step: at which scheduled options are taken.

  Returns:
    As `init_align`.
  """
  rng = jax.random.fold_in(rng, _LOSS_KEY)
  aligned = _align_all(term, params, pairs, Context())
  return _of_layers(aligned, rng, lambda rng, pair: term.loss.init(
      rng, None, pair.student, pair.teacher,
      **_keywords(term, pair.mask, labels, step)))


def joined(align: Mapping[str, Any],
           loss: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what a term's alignments and its loss learn, layer by layer."""
  return {layer: {**align.get(layer, {}), **loss.get(layer, {})}
          for layer in {**align, **loss}}


def _of_layers(pairs, rng, init):
  """Returns `{layer: parameters}` of the layers that have any."""
  layers = {str(index): init(jax.random.fold_in(rng, index), pair)
            for index, pair in enumerate(pairs)}
  return {layer: params for layer, params in layers.items() if params}


def compare(term: terms_lib.Term, params: Mapping[str, Any], pairs: Pairs,
            batch: base.Batch, context: Context) -> tuple[base.LossSum, ...]:
  """Evaluates a term.

  Args:
    term: a term of the objective.
    params: `{layer: Haiku parameters}` of its learned alignments and loss.
    pairs: of the term.
    batch: has the labels and weights of the examples.
    context: where the step runs this.

  Returns:
    The LossSum of each pair.
  """

  def evaluate(index, pair):
    own = params.get(str(index), {})
    compared = *pair, batch.labels
    if term.entry.relational:
      # Each shard now holds the global sum and count; psum scales both by the
      # number of shards, which cancels in the mean.
      compared = context.gather(compared)

    def call(student, teacher, mask, labels, **options):
      return term.loss.apply(
          own, None, context.gather_parameter, student, teacher, **options,
          **_keywords(term, mask, labels, context.step))

    if batch.weight is None:
      return call(*compared)
    # The texts of an example may have been laid one after the other.
    weight = jnp.repeat(
        batch.weight, len(pair.mask) // len(batch.weight),
        total_repeat_length=len(pair.mask))
    if isinstance(pair.student, attention.MeanMaps):
      return call(*compared, block_weight=weight)
    return weighting.add_up(call, weight, *compared)

  aligned = _align_all(term, params, pairs, context)
  return tuple(evaluate(index, pair) for index, pair in enumerate(aligned))


def compare_together(
    terms: Sequence[terms_lib.Term], pairs: Pairs,
    batch: base.Batch, coefficients: jax.Array, context: Context
) -> tuple[jax.Array, tuple[base.LossSum, ...]]:
  """Evaluates terms on the same LinearLogits, in one pass.

  Args:
    terms: terms on logits whose form is CHUNKS.
    pairs: the pair of each: LinearLogits of the same student and, where a term
      needs it, logits of the same teacher.
    batch: has the labels and weights of the examples.
    coefficients: float32 `[K]`, what each total is multiplied by.
    context: where the step runs this.

  Returns:
    The weighted sum of the totals, with a gradient for the student, and the
    LossSum of each term, without one.
  """
  pairs = [_align(term, {}, pair, context) for term, pair in zip(terms, pairs)]
  takes_labels = any(term.takes_labels for term in terms)

  def loss_of(term):
    return lambda student, teacher, *, mask, labels: term.entry.function(
        student, teacher if term.needs_teacher else None,
        **_keywords(term, mask, labels, context.step))

  return chunks.weighted(
      [loss_of(term) for term in terms],
      coefficients,
      pairs[0].student,
      next((x.teacher for x in pairs if x.teacher is not None), None),
      mask=pairs[0].mask,
      labels=batch.labels if takes_labels else None,
      weight=batch.weight,
      sizes=context.sizes)


def _align_all(term, params, pairs, context):
  """Returns the pairs of a term, each of one shape."""
  if term.aligner.all_layers and term.needs_teacher:
    return _align(term, params.get('0', {}), _of_all(pairs), context)
  return [_align(term, params.get(str(index), {}), pair, context)
          for index, pair in enumerate(pairs)]


def _of_all(pairs):
  """Returns what an aligner of all layers takes, tuples in a Pair."""
  return base.Pair(*zip(*pairs))


def _align(term, params, pair, context):
  if _needs_none(pair):
    return pair
  aligned = term.align.apply(params, None, context.gather_parameter, *pair)
  # Terms in chunks share one student and one mask.
  if term.entry.on == terms_lib.LOGITS and term.aligner.keeps_logits:
    leaves = zip(jax.tree.leaves(pair), jax.tree.leaves(aligned), strict=True)
    if not all(before is after for before, after in leaves):
      raise checks.ConfigError(
          'an aligner with keeps_logits=True must return logits and mask as '
          'they came; got others. Register it without keeps_logits.')
  return aligned


def _needs_none(pair):
  """Returns whether there is nothing to align."""
  return pair.teacher is None or isinstance(pair.teacher, recorded.TARGETS)


def _keywords(term, mask, labels, step):
  """Returns the keyword arguments of a term's loss."""
  keywords = dict(term.options_at(step), mask=mask)
  if term.takes_labels:
    keywords['labels'] = labels
  return keywords
