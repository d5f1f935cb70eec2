"""The distillation objective: a weighted sum of masked means.

With `C` the count summed over all devices and microbatches, it is

    L = sum_k w_k 1/|layers_k| sum_layer total / max(C, 1).

The sums are computed here and added up by the step; the division happens once,
in `coefficients`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp

from haikd import align
from haikd import base
from haikd import checks
from haikd import config as config_lib
from haikd import network as network_lib
from haikd import pairing
from haikd import terms as terms_lib

Sums = dict[str, tuple[base.LossSum, ...]]  # By term, one LossSum a layer.


class Context(NamedTuple):
  """What the step tells an objective of where it runs.

  Attributes:
    batch_axes: mesh axes that the batch is split over.
    gather: concatenates a tree of arrays over all shards.
    gather_parameter: `(part, shape, dtype)`, makes whole a parameter of which
      each device has a part; None where every device has all of them.
  """

  batch_axes: tuple[str, ...] = ()
  gather: Callable[[Any], Any] = lambda tree: tree
  gather_parameter: Optional[Callable] = None


class Objective(NamedTuple):
  """What is minimised. Built by `build_objective`.

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
  layers: dict[str, pairing.Layers]

  def init(self, rng: jax.Array, batch: base.Batch,
           frozen: Optional[base.Frozen]) -> tuple[base.Params, Any]:
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
    outputs = jax.eval_shape(
        lambda *args: self._outputs(*args, Context(), False)[:2], params,
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
           frozen: Optional[base.Frozen],
           batch: base.Batch,
           rng: jax.Array,
           context: Context = Context(),
           is_training: bool = True) -> tuple[Sums, Any]:
    """Computes every term on one microbatch.

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
    if any(term.entry.on == terms_lib.LOGITS for term in self.terms):
      student = pairing.with_logits(student, batch)
    sums = {}
    for term in self.terms:
      weights = params.align.get(term.name, {})
      pairs = self._pairs(term, student, teacher, batch)
      sums[term.name] = tuple(
          self._evaluate(term, weights.get(str(i), {}), pair, batch, context)
          for i, pair in enumerate(pairs))
    return sums, net_state

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
    teacher = None
    if self.teacher is not None:
      teacher, _ = self.teacher.apply(
          frozen.params,
          frozen.state,
          None,
          batch,
          is_training=False,
          gather=context.gather_parameter)
    return student, teacher, net_state

  def _pairs(self, term, student, teacher, batch):
    return pairing.pairs(
        term,
        self.layers.get(term.name, ()),
        student,
        teacher,
        batch,
        lazy=term.lazy)

  def _evaluate(self, term, params, pair, batch, context):
    if pair.teacher is not None:
      pair = term.align.apply(params, None, context.gather_parameter, *pair)
    labels = batch.labels
    if term.entry.relational:
      # Every shard then has the whole sum and the whole count: their quotient
      # is right without dividing either by the number of shards.
      pair, labels = context.gather((pair, labels))
    options = dict(term.options)
    if term.takes_labels:
      options['labels'] = labels
    return term.entry.function(
        pair.student, pair.teacher, mask=pair.mask, **options)


def build_objective(config: config_lib.ConfigDict,
                    *,
                    spec: base.Batch,
                    num_classes: int,
                    has_teacher: bool = True) -> Objective:
  """Builds and checks an objective, without touching a device.

  Args:
    config: a whole config, its plugins imported.
    spec: a batch of ShapeDtypeStructs.
    num_classes: of the data.
    has_teacher: whether the student learns from `config.teacher`, or from the
      labels alone.

  Returns:
    An Objective.

  Raises:
    ConfigError: anything that cannot work: names, options, layers out of range,
      taps that match nothing, shapes that do not agree.
  """
  # Scores of texts are labels, but no classes to predict.
  classes = spec.labels is not None and not checks.are_scores(spec.labels)
  terms = terms_lib.build_terms(
      config, has_teacher=has_teacher, has_labels=classes)
  kinds = lambda terms: sorted(
      {term.entry.on for term in terms} - {terms_lib.LOGITS})
  student = network_lib.build_network(
      config.student,
      title='student',
      num_classes=num_classes,
      kinds=kinds(terms))
  teacher = None
  if has_teacher:
    teacher = network_lib.build_network(
        config.teacher,
        title='teacher',
        num_classes=num_classes,
        kinds=kinds(term for term in terms if term.needs_teacher))
  objective = Objective(student, teacher, terms, {})
  outputs = [_abstract_output(n, spec) for n in (student, teacher) if n]
  layers = {}
  for term in terms:
    if term.entry.on != terms_lib.LOGITS:
      # A loss that looks at the student alone pairs it with itself.
      sides = outputs if term.needs_teacher else outputs[:1] * 2
      depths = [len(output.taps[term.entry.on]) for output in sides]
      layers[term.name] = _blame(
          term, align.pair_layers, term.layers, *depths)
  objective = objective._replace(layers=layers)
  for term in terms:
    _blame(term, _check_term, objective, term, outputs, spec)
  return objective


def _abstract_output(network, spec):
  """Returns a network's output as shapes; its errors name the network."""

  def run(batch):
    params, state = network.init(jax.random.key(0), batch)
    output, _ = network.apply(
        params, state, jax.random.key(0), batch, is_training=False)
    return output

  try:
    return jax.eval_shape(run, spec)
  except checks.ConfigError:
    raise
  except Exception as err:  # Whatever a user's network raises.
    raise checks.ConfigError(
        f'objective.build_objective: config.{network.title} must run on '
        f'{jax.tree.map(lambda x: x.shape, spec.inputs)}; got '
        f'{checks.one_line(err)}') from err


def _check_term(objective, term, outputs, spec):

  def run(outputs, batch):
    student, teacher = (*outputs, None)[:2]
    for pair in objective._pairs(term, student, teacher, batch):
      params = {}
      if pair.teacher is not None:
        params = term.align.init(jax.random.key(0), None, *pair)
      objective._evaluate(term, params, pair, batch, Context())

  jax.eval_shape(run, outputs, spec)


def _blame(term, function, *args):
  """Calls a function; its errors name the term they come from."""
  try:
    return function(*args)
  except Exception as err:  # Whatever a user's loss or aligner raises.
    raise checks.ConfigError(
        f'objective.build_objective: term {term.name!r}: '
        f'{checks.one_line(err)}') from err
