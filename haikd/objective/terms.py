"""The weighted terms of an objective, read from a config."""

from collections.abc import Callable, Mapping, Sequence
import enum
import inspect
from typing import Any, NamedTuple

import haiku as hk
import jax

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import entries
from haikd.core import notes
from haikd.core import registry
from haikd.core import schedules as schedules_lib
from haikd.core import signatures
from haikd.core import tasks
from haikd.objective import aligning

LOGITS = 'logits'
ATTENTION = 'attention'
AUTO = 'auto'

# The soft and the hard term where labels are not classes.
_STANDARD = {
    tasks.MULTILABEL: ('binary_kl', 'binary_cross_entropy'),
    tasks.REGRESSION: ('logit_mse', 'mean_squared_error'),
}


class Term(NamedTuple):
  """One weighted loss of the objective.

  Attributes:
    name: its key in the metrics.
    field: the config field that makes it, for messages.
    layers_field: the config field that chooses its layers, for messages.
    entry: the registered loss.
    options: the loss's constant options; `options_at` has all of them.
    schedules: the options that change over the run, each `step -> float`.
    weight: `step -> float`.
    scheduled: whether the weight changes over the run.
    layers: what `haikd.align.pair_layers` takes.
    aligner: the registered aligner; its `calibrate` was called.
    align: the aligner as a Haiku transform, see `aligning.build`.
    loss: the loss as a Haiku transform of `(gather, student, teacher,
      **keywords)`, since it may have parameters of its own.
    learns: whether it has any; such a loss gets arrays.
    aligns: whether its alignment has parameters.
    needs_teacher: whether it compares with a teacher.
    takes_labels: whether the loss gets labels, if the data has any.
  """

  name: str
  field: str
  layers_field: str
  entry: entries.LossEntry
  options: Mapping[str, Any]
  schedules: Mapping[str, Callable[[Any], jax.Array]]
  weight: Callable[[Any], jax.Array]
  scheduled: bool
  layers: Any
  aligner: entries.AlignerEntry
  align: hk.Transformed
  loss: hk.Transformed
  learns: bool
  aligns: bool
  needs_teacher: bool
  takes_labels: bool

  def options_at(self, step: jax.Array) -> dict[str, Any]:
    """Returns all options of the loss as they are at a step."""
    scheduled = {name: x(step) for name, x in self.schedules.items()}
    return {**self.options, **scheduled}


class Form(enum.Enum):
  """The form in which a term gets what it compares.

  Attributes:
    CHUNKS: lazy logits, which all terms on logits go through together, chunk by
      chunk.
    BLOCKS: attention maps, which stay lazy if they were captured lazy; the loss
      goes through them block by block.
    ARRAYS: everything materialised.
  """

  CHUNKS = enum.auto()
  BLOCKS = enum.auto()
  ARRAYS = enum.auto()


def choose_forms(terms: Sequence[Term], logits: Any) -> dict[str, Form]:
  """Decides which terms get lazy logits or maps, and which get arrays.

  Lazy inputs need an additive loss without parameters of its own, and a lazy
  aligner. Terms on logits go through one set of chunks together, so that their
  aligners must also return logits as they came, and one term that needs
  materialised logits makes them available to all.

  Args:
    terms: of the objective.
    logits: of the student; only LinearLogits can go through chunks.

  Returns:
    `{term: form}`.
  """
  lazy = {term.name: (term.entry.additive and term.aligner.lazy and
                      not term.learns)
          for term in terms}
  in_chunks = isinstance(logits, base.LinearLogits) and all(
      lazy[term.name] and term.aligner.keeps_logits
      for term in terms if term.entry.on == LOGITS)

  def form(term):
    if term.entry.on == LOGITS and in_chunks:
      return Form.CHUNKS
    if (term.entry.on == ATTENTION and lazy[term.name] and
        not term.takes_labels):
      return Form.BLOCKS
    return Form.ARRAYS

  return {term.name: form(term) for term in terms}


def build_terms(config: config_lib.ConfigDict, *, has_teacher: bool,
                has_labels: bool, has_scores: bool,
                task: str) -> tuple[Term, ...]:
  """Returns the terms of `config.distillation` and `config.losses`.

  Without a teacher only the terms on labels are left, at their full weight;
  without labels the soft term keeps its weight alpha.

  Args:
    config: a complete config.
    has_teacher: whether there is a teacher.
    has_labels: whether the network has labels to predict.
    has_scores: whether the data has labels that are scores of texts; losses on
      scores then need no teacher.
    task: what labels are, one of `tasks.OF_LABELS`; it decides the standard
      terms.

  Returns:
    At least one term.

  Raises:
    ConfigError: an unknown loss, aligner or option, a name used twice, or
      nothing to learn from.
  """
  terms = _standard_terms(config.distillation, has_teacher, has_labels, task)
  standard = {term.name for term in terms}
  for name, fields in config.losses.items():
    field = f'config.losses.{name}'
    if name in standard:
      raise checks.ConfigError(
          f'{field} must have a new name; got {name!r}, the name of a term of '
          'config.distillation. Choose another.')
    terms.append(
        _build_term(name, config_lib.term(**fields), field, field,
                    has_scores=has_scores))
  if not has_teacher:
    terms = [term for term in terms if not term.needs_teacher]
  if not terms:
    raise checks.ConfigError(
        'config.distillation and config.losses must give at least one term; '
        'got none. Set config.distillation.alpha, or add a term to '
        'config.losses.')
  return tuple(terms)


def check_losses(config: config_lib.ConfigDict) -> None:
  """Refuses names and options in `config.losses` that do not exist.

  It needs neither data nor networks.

  Args:
    config: a complete config.

  Raises:
    ConfigError: an unknown loss, aligner or option, or a missing one.
  """
  for name, fields in config.losses.items():
    field = f'config.losses.{name}'
    _build_term(name, config_lib.term(**fields), field, field)


def _standard_terms(fields, has_teacher, has_labels, task):
  """Returns the terms of `config.distillation`."""
  soft, hard = _STANDARD.get(task, ('kl_divergence', 'cross_entropy'))
  alpha, terms = fields.alpha, []

  def add(loss, switch, layers_field='', **options):
    terms.append(
        _build_term(loss, config_lib.term(loss=loss, **options),
                    f'config.distillation.{switch}',
                    f'config.distillation.{layers_field}',
                    'config.distillation'))

  if alpha is not None:
    alpha = alpha if has_teacher else 0.0
    soft_weight = schedules_lib.build('config.distillation.alpha', alpha)
    options = dict(temperature=fields.temperature)
    if task == tasks.REGRESSION:  # Predicted numbers have no temperature.
      default = config_lib.base().distillation.temperature
      if fields.temperature != default:
        notes.say('config.distillation.temperature is not used with '
                  "config.task='regression', whose numbers have none.")
      options = {}
    if soft_weight.bounds[1] > 0:
      add(soft, 'alpha', weight=alpha, options=options)
    if soft_weight.bounds[0] < 1 and has_labels:
      options = dict(label_smoothing=fields.label_smoothing)
      add(hard, 'alpha', options=options if hard == 'cross_entropy' else {})
      terms[-1] = terms[-1]._replace(
          weight=lambda step: 1 - soft_weight(step),
          scheduled=not checks.is_number(alpha))
  if fields.use_attention_transfer:
    add('attention_transfer', 'use_attention_transfer',
        'attention_match_layers', weight=fields.attention_loss_weight,
        layers=fields.attention_match_layers)
  if fields.use_feature_matching:
    add('feature_matching', 'use_feature_matching', 'feature_match_layers',
        weight=fields.feature_loss_weight, layers=fields.feature_match_layers)
  return terms


def _build_term(name, fields, field, layers_field, options_field=None,
                has_scores=False):
  """Returns the Term of config fields, whose names and options it checks."""
  entry = registry.losses.find(fields.loss, f'{field}.loss')
  loss, on = entry.function, entry.on
  options_field = options_field or f'{field}.options'
  options = config_lib.plain(fields.options)
  scheduled = [x for x in options if schedules_lib.is_schedule(options[x])]
  signatures.check_options(
      options_field, loss, options, scheduled=scheduled,
      reserved=('student', 'teacher', 'mask', 'labels'))
  aligner_name = fields.align
  if aligner_name == AUTO:
    aligner_name = 'none' if entry.any_width else 'pool'
  aligner = registry.aligners.find(aligner_name, f'{field}.align')
  align_options = config_lib.plain(fields.align_options)
  signatures.check_options(
      f'{field}.align_options', aligner.function, align_options,
      reserved=('student', 'teacher', 'mask', 'on'))
  if aligner.calibrate:
    aligner = aligner._replace(calibrate=aligner.calibrate(**align_options))

  if aligner.all_layers and not isinstance(on, str):
    raise checks.ConfigError(
        f'{field}.align must be of layers one by one for a loss on several '
        f'taps; got {aligner_name!r} for {on}.')

  def compare(gather, student, teacher, **keywords) -> base.LossSum:
    # Its names differ from those of the aligner, whose parameters lie beside.
    with aligning.gathering(gather), hk.experimental.name_scope('loss'):
      return loss(student, teacher, **keywords)

  schedules = {
      option: schedules_lib.build(f'{options_field}.{option}', options[option])
      for option in scheduled}
  return Term(
      name=name,
      field=field,
      layers_field=layers_field,
      entry=entry,
      options={option: value for option, value in options.items()
               if option not in schedules},
      schedules=schedules,
      weight=schedules_lib.build(f'{field}.weight', fields.weight),
      scheduled=not checks.is_number(fields.weight),
      layers=config_lib.plain(fields)['layers'],
      aligner=aligner,
      align=hk.transform(aligning.build(aligner, on, align_options)),
      loss=hk.transform(compare),
      learns=False,
      aligns=False,
      needs_teacher=entry.needs_teacher or entry.scores and not has_scores,
      takes_labels='labels' in inspect.signature(loss).parameters and (
          has_scores or not entry.scores))
