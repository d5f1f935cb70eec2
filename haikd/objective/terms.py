"""The weighted terms of an objective, read from a config."""

from collections.abc import Callable, Mapping
import contextlib
import inspect
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from haikd import config as config_lib
from haikd.align import shapes as align_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.network import network

LOGITS = 'logits'
AUTO = 'auto'
_SCHEDULES = ('linear', 'cosine')


class Term(NamedTuple):
  """One weighted loss of the objective.

  Attributes:
    name: its key in the metrics.
    entry: the registered loss.
    options: the loss's keyword options, see `options_at`.
    schedules: those that change over the run, each `step -> float`.
    weight: `step -> float`.
    scheduled: whether the weight changes over the run.
    layers: what `haikd.align.pair_layers` takes.
    align: the aligner as a Haiku transform of `(gather, student, teacher,
      mask)`; the first is as for `network.Network.apply`.
    needs_teacher: whether it compares with a teacher.
    takes_labels: whether it takes labels, if there are any.
    lazy: whether logits and maps need not be computed beforehand.
  """

  name: str
  entry: registry.LossEntry
  options: Mapping[str, Any]
  schedules: Mapping[str, Callable[[Any], jax.Array]]
  weight: Callable[[Any], jax.Array]
  scheduled: bool
  layers: Any
  align: hk.Transformed
  needs_teacher: bool
  takes_labels: bool
  lazy: bool

  def options_at(self, step: jax.Array) -> dict[str, Any]:
    """Returns all options of the loss as they are at a step."""
    scheduled = {name: x(step) for name, x in self.schedules.items()}
    return {**self.options, **scheduled}


def build_terms(config: config_lib.ConfigDict, *, has_teacher: bool,
                has_labels: bool) -> tuple[Term, ...]:
  """Returns the terms of `config.distillation` and `config.losses`.

  Without a teacher the labels alone are left, at their full weight; without
  labels the soft term keeps its weight alpha.

  Args:
    config: a whole config.
    has_teacher: whether there is a teacher.
    has_labels: whether the data has labels.

  Returns:
    At least one term.

  Raises:
    ConfigError: an unknown loss, aligner or option, a name used twice, or
      nothing to learn from.
  """
  fields = _standard_terms(config.distillation, has_teacher, has_labels)
  for name, entry in config.losses.items():
    if name in fields:
      raise checks.ConfigError(
          f'terms.build_terms: config.losses.{name} must be a new name; '
          'config.distillation makes a term of that name. Choose another.')
    fields[name] = config_lib.term(**entry)
  terms = [_build_term(name, entry) for name, entry in fields.items()]
  if not has_teacher:
    terms = [term for term in terms if not term.needs_teacher]
  if not terms:
    raise checks.ConfigError(
        'terms.build_terms: config.distillation and config.losses must give at '
        'least one term; got none. Set config.distillation.alpha, or add one '
        'to config.losses.')
  return tuple(terms)


def _standard_terms(fields, has_teacher, has_labels):
  alpha = fields.alpha if has_teacher else 0.0
  terms = {}
  if alpha > 0:
    terms['kl_divergence'] = config_lib.term(
        loss='kl_divergence',
        weight=alpha,
        options=dict(temperature=fields.temperature))
  if alpha < 1 and has_labels:
    terms['cross_entropy'] = config_lib.term(
        loss='cross_entropy', weight=1 - alpha)
  if fields.use_attention_transfer:
    terms['attention_transfer'] = config_lib.term(
        loss='attention_transfer',
        weight=fields.attention_loss_weight,
        layers=fields.attention_match_layers)
  if fields.use_feature_matching:
    terms['feature_matching'] = config_lib.term(
        loss='feature_matching',
        weight=fields.feature_loss_weight,
        layers=fields.feature_match_layers)
  return terms


def _build_term(name, fields):
  where = f'config.losses.{name}'
  entry = registry.losses[fields.loss]
  loss, on = entry.function, entry.on
  checks.check_options(
      f'{where}.options',
      loss,
      fields.options,
      reserved=('student', 'teacher', 'mask', 'labels'))
  name_of_aligner = fields.align
  if fields.align == AUTO:
    name_of_aligner = 'none' if entry.any_width else 'pool'
  alignment = registry.aligners[name_of_aligner]
  aligner = alignment.function
  checks.check_options(
      f'{where}.align_options',
      aligner,
      fields.align_options,
      reserved=('student', 'teacher', 'mask', 'on'))
  align_options = dict(fields.align_options)

  def align(gather, student, teacher, mask) -> base.Pair:
    with network.gathered(gather, None) if gather else contextlib.nullcontext():
      return aligner(student, teacher, mask=mask, on=on, **align_options)

  parameters = inspect.signature(loss).parameters
  schedules = {
      name: _build_schedule(f'{where}.options.{name}', value)
      for name, value in fields.options.items() if _is_schedule(value)
  }
  return Term(
      name=name,
      entry=entry,
      options={
          name: value for name, value in fields.options.items()
          if name not in schedules
      },
      schedules=schedules,
      weight=_build_weight(where, fields.weight),
      scheduled=not isinstance(fields.weight, (int, float)),
      layers=fields.layers,
      align=hk.transform(align),
      needs_teacher=entry.needs_teacher,
      takes_labels='labels' in parameters,
      # Terms on logits go together, which an aligner of a user's might change
      # for its own.
      lazy=entry.additive and alignment.lazy and
      (on != LOGITS or alignment.module == align_lib.__name__))


def _build_weight(where, weight):
  if isinstance(weight, (int, float)) and not isinstance(weight, bool):
    return optax.constant_schedule(float(weight))
  return _build_schedule(f'{where}.weight', weight)


def _is_schedule(value):
  return hasattr(value, 'items') and value.get('kind') in _SCHEDULES


def _build_schedule(where, fields):
  """Returns `step -> float` of the fields of a schedule."""
  given, fields = fields, dict(fields) if hasattr(fields, 'items') else {}
  kind = fields.pop('kind', None)
  if kind not in _SCHEDULES or set(fields) - {'start', 'end', 'begin', 'steps'}:
    raise checks.ConfigError(
        f'terms.build_terms: {where} must be a number or a schedule '
        "dict(kind='linear' or 'cosine', start=, end=, begin=, steps=); got "
        f'{given!r}.')
  start, end = float(fields.get('start', 0.0)), float(fields.get('end', 1.0))
  steps, begin = int(fields.get('steps', 0)), int(fields.get('begin', 0))
  if steps <= 0 or begin < 0:
    raise checks.ConfigError(
        f'terms.build_terms: {where} must run over at least one step; '
        f'got steps={steps}, begin={begin}.')
  if kind == 'linear':
    return optax.linear_schedule(start, end, steps, begin)
  decay = optax.cosine_decay_schedule(1.0, steps)
  return lambda step: end + (start - end) * decay(
      jnp.maximum(step - begin, 0))
