"""The objective of a config, checked before a device is touched."""

import jax

from haikd import align
from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.network import network as network_lib
from haikd.objective import compare as compare_lib
from haikd.objective import objective as objective_lib
from haikd.objective import pairs as pairs_lib
from haikd.objective import terms as terms_lib


def build_objective(config: config_lib.ConfigDict,
                    *,
                    spec: base.Batch,
                    num_classes: int,
                    has_teacher: bool = True) -> objective_lib.Objective:
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
  objective = objective_lib.Objective(student, teacher, terms, {})
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
        f'assembly.build_objective: config.{network.title} must run on '
        f'{jax.tree.map(lambda x: x.shape, spec.inputs)}; got '
        f'{checks.one_line(err)}') from err


def _check_term(objective, term, outputs, spec):

  def run(outputs, batch):
    student, teacher = (*outputs, None)[:2]
    for lazy in {False, term.lazy}:
      pairs = pairs_lib.pairs(term, objective.layers.get(term.name, ()),
                              student, teacher, batch, lazy=lazy)
      params = {
          str(i): term.align.init(jax.random.key(0), None, *pair)
          for i, pair in enumerate(pairs) if pair.teacher is not None}
      compare_lib.compare(term, params, pairs, batch.labels,
                          compare_lib.Context())

  jax.eval_shape(run, outputs, spec)


def _blame(term, function, *args):
  """Calls a function; its errors name the term they come from."""
  try:
    return function(*args)
  except Exception as err:  # Whatever a user's loss or aligner raises.
    raise checks.ConfigError(
        f'assembly.build_objective: term {term.name!r}: '
        f'{checks.one_line(err)}') from err
