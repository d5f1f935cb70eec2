"""The stages of a run: parts of it in which some fields are others."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

from haikd.config import networks
from haikd.config import rules
from haikd.core import checks
from haikd.core import schedules

# The groups of fields that a stage may change.
GROUPS = ('losses', 'distillation', 'optimizer', 'data', 'teacher')
_REMEDY = ' Fields of the student, the batch and the run hold for all stages.'


class Stage(NamedTuple):
  """A part of a run.

  Attributes:
    name: its key in `config.stages`; '' for what comes before the first.
    start: the number of steps before it.
    end: the number of steps before the next one, or of the run.
    config: of the run, as it is in this stage, without stages.
  """

  name: str
  start: int
  end: int
  config: ml_collections.ConfigDict

  @property
  def field(self) -> str:
    """The config field that makes it, for messages."""
    return f'config.stages.{self.name}' if self.name else 'config'


def stages_of(config: ml_collections.ConfigDict) -> tuple[Stage, ...]:
  """Returns the stages of a run, in their order; at least one.

  What a stage does not give is as in the config itself, whatever came before.
  Schedules that it gives begin with it.

  Args:
    config: a config made from `base()`.

  Raises:
    ConfigError: a stage that begins before or after the run, or with another
      one; or that changes what has to be the same in all.
  """
  config = joined(config)
  starts = {name: _start(f'config.stages.{name}', entry, config.steps)
            for name, entry in config.stages.items()}
  names = sorted(starts, key=lambda name: starts[name])
  for before, name in zip(names, names[1:]):
    if starts[before] == starts[name]:
      raise checks.ConfigError(
          f'config.stages.{name}.start must differ from that of other stages; '
          f'got step {starts[name]}, where {before} starts too. Leave one out, '
          'or train for more steps.')
  if not names or starts[names[0]] > 0:
    names, starts[''] = ['', *names], 0
  ends = [*(starts[name] for name in names[1:]), config.steps]
  stages = tuple(Stage(name, starts[name], end, _changed(config, name,
                                                         starts[name]))
                 for name, end in zip(names, ends))
  if not any('teacher' not in config.stages.get(name, ()) for name in names):
    raise checks.ConfigError(
        'config.stages must leave config.teacher to one of them, since the '
        'student is compared with it; got a teacher in each. Leave one out.')
  return stages


def without(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns a copy of a config that has no stages."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    del config['stages']
    config.stages = ml_collections.ConfigDict()
  return config


def joined(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns a config whose mixture has the data sets that join in a stage.

  Their weight is 0 but in that stage, and where others give one.

  Args:
    config: a config made from `base()`.

  Returns:
    The config, or a changed copy, in which stages change weights alone.

  Raises:
    ConfigError: a data set joins in two stages, or joins no mixture.
  """
  found = {(stage, name): entry for stage, fields in config.stages.items()
           for name, entry in _mixture_of(fields)
           if rules.is_dict(entry) and not rules.is_weight(entry) and
           set(entry) != {'weight'} and name not in config.data.mixture}
  if not found:
    return config
  config = config.copy_and_resolve_references()
  mixture = config.data.mixture
  with config.unlocked():
    for (stage, name), entry in found.items():
      field = f'config.stages.{stage}.data.mixture.{name}'
      if name in mixture or not mixture:
        raise checks.ConfigError(
            f'{field} must join config.data.mixture, in one stage alone; got '
            f'the data sets {", ".join(mixture) or "of config.data alone"}. '
            'Write config.data.mixture, and give the data set there or in one '
            'stage.')
      entries = config.stages[stage].data.mixture
      _put(entries, name, entry.get('weight', 1.0))
      mixture[name] = {**entry, 'weight': 0.0}
  return config


def _mixture_of(fields):
  """Returns the entries of a stage's mixture; () if it has none."""
  for name in ('data', 'mixture'):
    fields = fields.get(name) if rules.is_dict(fields) else None
  return fields.items() if rules.is_dict(fields) else ()


def _start(field, entry, steps):
  """Returns the number of steps before a stage."""
  if not rules.is_dict(entry) or 'start' not in entry:
    raise checks.ConfigError(
        f'{field} must be a dict with a start; got {checks.show(entry)}. '
        'Write dict(start=0.5, …) for the second half of the run.')
  start = entry['start']
  is_share = checks.is_number(start) and 0 <= start < 1
  if not is_share and not (checks.is_number(start) and start >= 1 and
                           start == int(start)):
    raise checks.ConfigError(
        f'{field}.start must be a share of the run below 1, or a whole number '
        f'of steps; got {checks.show(start)}.')
  step = round(start * steps) if is_share else int(start)
  if step >= steps:
    raise checks.ConfigError(
        f'{field}.start must come before the end of the run; got step {step}, '
        f'config.steps={steps}. Write a share, such as 0.5.')
  return step


def _changed(config, name, start):
  """Returns the config as it is in a stage."""
  changed = without(config)
  if not name:
    return changed
  field = f'config.stages.{name}'
  with changed.unlocked():
    for group, values in config.stages[name].items():
      if group == 'start':
        continue
      if group not in GROUPS:
        raise checks.ConfigError(
            f'{field}.{group} must be a group of fields that may change in a '
            f'stage. {checks.suggest(group, ("start", *GROUPS))}{_REMEDY}')
      if not rules.is_dict(values):
        raise checks.ConfigError(
            f'{field}.{group} must be a dict of fields; got '
            f'{checks.show(values)}.')
      if group == 'losses':
        values = _switch_off(field, changed.losses, values)
      if group == 'teacher':
        _replace_teacher(field, changed.teacher, values)
      elif group == 'data':
        _reweigh(field, changed.data.mixture, values, start)
      else:
        _merge(changed[group], values, start)
  _check_mean(field, config.optimizer, changed.optimizer)
  return changed


def _replace_teacher(field, teacher, values):
  """Sets the fields of another teacher, to defaults where it gives none."""
  if not networks.has_weights(teacher) or teacher.records:
    raise checks.ConfigError(
        f'{field}.teacher must come beside a config.teacher with weights and '
        f'without records; got init={teacher.init!r}, '
        f'records={dict(teacher.records)}. Set config.teacher.init.')
  fields = dict(networks.network(), view=networks.view())
  for name in values:
    if name not in fields:
      raise checks.ConfigError(
          f'{field}.teacher.{name} must be a field of a network. '
          f'{checks.suggest(name, fields)}')
  if not values.get('init'):
    raise checks.ConfigError(
        f'{field}.teacher.init must name weights; got '
        f'{values.get("init")!r}. Only config.teacher is trained by the run.')
  for name, default in fields.items():
    _put(teacher, name, default)
  teacher.train.steps = 0
  with teacher.ignore_type():
    teacher.update(values)


def _switch_off(field, losses, values):
  """Takes out the terms that are None; returns the others."""
  for name in [name for name, value in values.items() if value is None]:
    if name not in losses:
      raise checks.ConfigError(
          f'{field}.losses.{name} must be None only for a term of '
          f'config.losses. {checks.suggest(name, losses)}')
    del losses[name]
  return {name: x for name, x in values.items() if x is not None}


def _reweigh(field, mixture, values, start):
  """Sets the weights of data sets; a stage has the data sets of the run."""
  for name, entries in values.items():
    if name != 'mixture' or not rules.is_dict(entries):
      raise checks.ConfigError(
          f'{field}.data must change the weights of config.data.mixture alone; '
          f'got {name!r}.{_REMEDY}')
    for dataset, entry in entries.items():
      if dataset not in mixture:
        raise checks.ConfigError(
            f'{field}.data.mixture.{dataset} must be a data set of '
            'config.data.mixture, or a dict with fields beside its weight. '
            f'{checks.suggest(dataset, mixture)}')
      if rules.is_dict(entry) and set(entry) == {'weight'}:
        entry = entry['weight']
      if not rules.is_weight(entry):
        raise checks.ConfigError(
            f'{field}.data.mixture.{dataset} must be a weight; got '
            f'{checks.show(entry)}.')
      if rules.is_weight(mixture[dataset]):
        _put(mixture, dataset, schedules.later(entry, start))
      else:
        _put(mixture[dataset], 'weight', schedules.later(entry, start))


def _merge(fields: Any, values: Mapping[str, Any], start: int) -> None:
  """Sets fields to the values of a stage; dicts are merged key by key."""
  for name, value in values.items():
    old = fields.get(name)
    is_group = rules.is_dict(value) and not schedules.is_schedule(value)
    if is_group and (old is None or schedules.is_schedule(old) or
                     not rules.is_dict(old)):
      _put(fields, name, {})
    if is_group:
      _merge(fields[name], value, start)
    else:
      _put(fields, name, schedules.later(value, start))


def _put(fields, name, value):
  """Sets a field, also to a value of another type."""
  if name in fields:
    del fields[name]
  fields[name] = value


def _check_mean(field, before, after):
  """Refuses a stage that begins or ends the running mean of parameters."""
  decays = [rules.is_dict(x) and x.get('ema_decay') for x in (before, after)]
  if all(checks.is_number(x) for x in decays) and (
      bool(decays[0]) != bool(decays[1])):
    raise checks.ConfigError(
        f'{field}.optimizer.ema_decay must be 0 in all stages or in none; got '
        f'{decays[1]}, and {decays[0]} in config.optimizer.')
