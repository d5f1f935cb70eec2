"""The objective of a config, checked before a device is touched."""

import contextlib
from typing import Optional

import jax
import jax.numpy as jnp

from haikd import align
from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import tasks
from haikd.network import network as network_lib
from haikd.objective import compare as compare_lib
from haikd.objective import objective as objective_lib
from haikd.objective import pairs as pairs_lib
from haikd.objective import recorded as recorded_lib
from haikd.objective import terms as terms_lib


def build_objective(config: config_lib.ConfigDict,
                    *,
                    spec: base.Batch,
                    num_classes: Optional[int],
                    has_teacher: bool = True,
                    recorded: Optional[recorded_lib.Recorded] = None
                    ) -> objective_lib.Objective:
  """Builds and checks an objective, without touching a device.

  Args:
    config: a complete config, its plugins imported.
    spec: a batch of ShapeDtypeStructs.
    num_classes: the number of classes of the data; None if it has none.
    has_teacher: whether the student learns from `config.teacher`, or from the
      labels alone.
    recorded: what was recorded of the teacher, which takes its place; None for
      the teacher itself.

  Returns:
    An Objective.

  Raises:
    ConfigError: anything that cannot work: names, options, layers out of range,
      taps that match nothing, shapes that do not agree.
  """
  task = tasks.of_labels(config.task, spec.labels, num_classes)
  terms = build_terms(config, spec, num_classes, has_teacher=has_teacher)
  count = tasks.count_outputs(task, spec.labels, num_classes)

  def build(role, terms):
    return network_lib.build_network(
        config[role], title=role, num_classes=count,
        kinds=_tap_kinds(terms))

  student = build('student', terms)
  teacher = None
  if recorded is not None:
    recorded.check_spec(spec)
    recorded.check(terms, _abstract_output(student, spec).logits)
    teacher = recorded.network()
  elif has_teacher:
    teacher = build('teacher', (term for term in terms if term.needs_teacher))
  outputs = (_abstract_output(student, spec),
             teacher and _abstract_output(teacher, spec))
  if isinstance(outputs[0].logits, base.Embedding):
    terms = build_terms(config, spec, num_classes, has_teacher=has_teacher,
                        is_encoder=True)
  _check_smoothing(config.distillation.label_smoothing, terms)
  if task not in (tasks.REGRESSION, tasks.MULTILABEL):
    _check_classes(outputs[0].logits, spec.labels, num_classes)
  if pairs_lib.have_own_tokens(spec):
    for network, output in zip((student, teacher), outputs):
      if network:
        with _errors_name(f'config.{network.title}'):
          pairs_lib.check_no_positions(
              terms_lib.LOGITS, output.logits, spec.view(network.title).mask)
  layers = {
      term.name: _pair_layers(term, *outputs)
      for term in terms if term.entry.on != terms_lib.LOGITS}
  objective = objective_lib.Objective(
      student, teacher, terms, layers, task, outputs)
  for term in terms:
    if term.entry.relational and spec.weight is not None:
      raise checks.ConfigError(
          f'{term.field} must be a loss over examples one by one, since the '
          f'data has weights; got {term.name!r}, which relates examples to one '
          'another. Leave it out, or the key weight of the data.')
  # Counts are computed from arrays, the loss from the chosen form.
  checked = [_check_term(objective, term, outputs, spec, terms_lib.Form.ARRAYS)
             for term in terms]
  terms = tuple(term._replace(aligns=aligns, learns=learns)
                for term, (aligns, learns) in zip(terms, checked))
  objective = objective._replace(terms=terms)
  for term in terms:
    form = terms_lib.choose_forms(terms, outputs[0].logits)[term.name]
    if form is not terms_lib.Form.ARRAYS:
      _check_term(objective, term, outputs, spec, form)
  return objective


def build_terms(config: config_lib.ConfigDict, spec: base.Batch,
                num_classes: Optional[int], *, has_teacher: bool = True,
                is_encoder: bool = False) -> tuple[terms_lib.Term, ...]:
  """Returns the terms of a config for data like a batch.

  Args:
    config: as for `build_objective`.
    spec: as for `build_objective`.
    num_classes: as for `build_objective`.
    has_teacher: as for `build_objective`.
    is_encoder: whether the student returns an Embedding. Scores of texts are
      labels, but an encoder does not predict them.

  Raises:
    ConfigError: as `terms.build_terms`.
  """
  task = tasks.of_labels(config.task, spec.labels, num_classes)
  has_labels = spec.labels is not None
  has_scores = has_labels and task == tasks.REGRESSION
  return terms_lib.build_terms(
      config, has_teacher=has_teacher, has_scores=has_scores, task=task,
      has_labels=has_labels and not (has_scores and is_encoder))


def needs_teacher(config: config_lib.ConfigDict, spec: base.Batch,
                  num_classes: Optional[int]) -> Optional[str]:
  """Returns the config field of a term that compares with a teacher, or None.

  Args:
    config: as for `build_objective`; terms of all its stages are looked at.
    spec: as for `build_objective`.
    num_classes: as for `build_objective`.

  Raises:
    ConfigError: as `terms.build_terms`.
  """
  return next((
      term.field for stage in config_lib.stages_of(config)
      for term in build_terms(stage.config, spec, num_classes)
      if term.needs_teacher), None)


def _tap_kinds(terms):
  """Returns the kinds of taps that terms compare."""
  return sorted({kind for term in terms for kind in term.entry.kinds} -
                {terms_lib.LOGITS})


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
    inputs = spec.view(network.title).inputs
    shapes = jax.tree.map(lambda x: x.shape, inputs)
    raise checks.ConfigError(
        f'config.{network.title} must run on inputs of shape {shapes}; got '
        f'{checks.describe(err)}.{_hint(inputs)}') from err


def _hint(inputs):
  """Returns what a network may have stumbled over."""
  if isinstance(inputs, dict):
    return (' Examples have several inputs, which come as a dict: every key '
            'but label, mask, target_mask and weight is one.')
  if len(inputs.shape) > 2 and jnp.issubdtype(inputs.dtype, jnp.integer):
    return (" Integers stay integers, except for images of uint8 under the key "
            "'image', which are divided by 255.")
  return ''


def _check_smoothing(label_smoothing, terms):
  """Refuses smoothed labels that no term of config.distillation uses."""
  if label_smoothing and not any(
      'label_smoothing' in term.options and
      term.field.startswith('config.distillation.') for term in terms):
    raise checks.ConfigError(
        'config.distillation.label_smoothing must be 0 unless alpha is below 1 '
        f'and labels are classes; got {label_smoothing}, and the terms '
        f'{", ".join(term.name for term in terms)}. A cross_entropy in '
        'config.losses has an option of this name.')


def _check_classes(logits, labels, num_classes):
  """Refuses a student with fewer logits than the data has classes."""
  if labels is None or num_classes is None or isinstance(
      logits, base.Embedding):
    return
  if logits.shape[-1] < num_classes:
    raise checks.ConfigError(
        'config.student must return a logit for each class of the data; got '
        f'{logits.shape[-1]} logits, where there are {num_classes} classes. '
        'Give the model a parameter num_classes, and as many outputs.')


def _pair_layers(term, student, teacher):
  """Returns which layers of two networks' outputs a term pairs."""
  # A loss on the student alone pairs it with itself.
  sides = (student, teacher if term.needs_teacher else student)
  depths = {kind: tuple(len(output.taps[kind]) for output in sides)
            for kind in term.entry.kinds}
  with _errors_name(term.layers_field):
    if len(set(depths.values())) > 1:
      raise checks.ConfigError(
          'the taps of one loss must have the same layers; got '
          f'(student, teacher)={depths}. Narrow their globs.')
    layers = align.pair_layers(term.layers, *depths[term.entry.kinds[0]])
    students = [index for index, _ in layers]
    if term.aligner.all_layers and students != sorted(set(students)):
      raise checks.ConfigError(
          'layers of the student must rise for an aligner of all layers; got '
          f'{students}. Write the pairs from its first layer to its last.')
    return layers


def _check_term(objective, term, outputs, spec, form):
  """Traces a term on abstract outputs.

  Returns:
    Whether its alignment and whether its loss have parameters.
  """

  def run(outputs, batch, step):
    if form is not terms_lib.Form.CHUNKS:
      outputs = objective_lib.with_logits(outputs, batch)
    pairs = objective.pairs(term, outputs, batch, form)
    rng, context = jax.random.key(0), compare_lib.Context(step=step)
    if form is terms_lib.Form.CHUNKS:
      compare_lib.compare_together([term], pairs, batch, jnp.ones(1), context)
      return {}, {}
    params, learned = compare_lib.init_align(term, pairs, rng), {}
    if form is terms_lib.Form.ARRAYS:
      learned = compare_lib.init_loss(
          term, params, pairs, batch.labels, rng, step)
    if form is not terms_lib.Form.ARRAYS or batch.weight is not None:
      compare_lib.compare(
          term, compare_lib.joined(params, learned), pairs, batch, context)
    return params, learned

  # Two terms come from config.distillation.alpha: name the one that is wrong.
  field = term.field
  if not field.endswith(term.name):
    field += f' ({term.name})'
  with _errors_name(field):
    try:
      params, learned = jax.eval_shape(
          run, outputs, spec, jax.ShapeDtypeStruct((), jnp.int32))
      return bool(params), bool(learned)
    except jax.errors.ConcretizationTypeError as err:
      if not term.schedules:
        raise
      raise checks.ConfigError(
          'options must be numbers, not schedules, where a loss branches on '
          f'their values; got schedules for {sorted(term.schedules)} of '
          f'{term.entry.function.__name__}. Give numbers.') from err


@contextlib.contextmanager
def _errors_name(field):
  """Makes every error name the config field it comes from."""
  try:
    yield
  except Exception as err:  # Whatever a user's loss or aligner raises.
    # haikd raises these types, with messages that need no type.
    plain = type(err) in (checks.ConfigError, ValueError, TypeError)
    message = checks.one_line(err) if plain else f'{checks.describe(err)}.'
    raise checks.ConfigError(f'{field}: {message}') from err
