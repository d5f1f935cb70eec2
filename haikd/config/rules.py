"""What a config has to be like: its fields, their types and their ranges."""

from collections.abc import Collection, Mapping
from typing import Any

import ml_collections

from haikd.core import checks

ConfigDict = ml_collections.ConfigDict

PRECISIONS = ('float32', 'bfloat16', 'float16')

# What a block keeps for the backward pass; see `haikd.network.network.remat`.
REMATS = ('none', 'gathers', 'dots', 'full')

ANY = object  # The type of a field that takes any value.

_RULES = (
    ('be positive', lambda x: x > 0,
     ('steps', 'batch_size', 'microbatches', 'log_every', 'checkpoint_every',
      'keep_checkpoints', 'data.prefetch', 'evaluation.batch_size')),
    ('be a schedule, or of type float, and finite',
     lambda x: all(map(checks.is_number, _ends(x))),
     ('distillation.temperature',)),
    ('be positive', lambda x: min(_ends(x)) > 0, ('distillation.temperature',)),
    ('be None or a positive number',
     lambda x: x is None or checks.is_number(x) and x > 0, ('chunk_mib',)),
    ('lie between 0 and 1', lambda x: 0 <= x <= 1,
     ('distillation.alpha', 'optimizer.ema_decay',
      'teacher.train.optimizer.ema_decay')),
    ('be 0 or more', lambda x: x >= 0, ('teacher.train.steps',)),
    ('lie between 0 and 2 ** 32 - 1', lambda x: 0 <= x < 2**32, ('seed',)),
    ('be one of ' + ', '.join(PRECISIONS), lambda x: x in PRECISIONS,
     ('student.precision', 'teacher.precision')),
    ('be None or one of ' + ', '.join(REMATS),
     lambda x: x is None or x in REMATS, ('student.remat', 'teacher.remat')),
    ('be a positive int, or -1 for the rest', lambda x: x > 0 or x == -1,
     ('mesh.replica', 'mesh.fsdp', 'mesh.tensor')),
    ('have at most one field of -1, which takes the rest',
     lambda x: list(x.values()).count(-1) <= 1, ('mesh',)),
    ('give an axis, or None, for each glob over names of parameters',
     lambda x: all(axis is None or type(axis) is int for axis in x.values()),
     ('student.placement', 'teacher.placement')),
    ('be None or a positive int',
     lambda x: x is None or type(x) is int and x > 0,
     ('evaluation.every', 'data.image_size')),
    ('be None, or a tuple of layers from 0',
     lambda x: x is None or isinstance(x, (tuple, list)) and len(x) > 0 and all(
         type(layer) is int and layer >= 0 for layer in x),
     ('student.init_layers', 'teacher.init_layers')),
    ('be None, a tuple or a name', lambda x: _is_selection(x),
     ('distillation.attention_match_layers',
      'distillation.feature_match_layers')),
    ('be a finite number, or a tuple of them', lambda x: _are_numbers(x),
     ('data.mean', 'data.std')),
    ('be above 0', lambda x: min(_as_tuple(x)) > 0, ('data.std',)),
    ('be a tuple of names of modules',
     lambda x: all(isinstance(name, str) for name in x), ('plugins',)),
)


def check_fields(config: ConfigDict, schema: ConfigDict,
                 open_fields: Collection[str], path: str = '') -> None:
  """Refuses fields that there are not, are missing, or have the wrong type.

  Args:
    config: what to check.
    schema: has every field, with its default.
    open_fields: those that may hold any key.
    path: of the config in the whole one, ending in a dot.

  Raises:
    ConfigError: naming the field, and the closest that there is.
  """
  for name, value in config.items():
    field = f'{path}{name}'
    if name not in schema:
      raise checks.ConfigError(
          f'config.validate: config.{field} must be a field of the base config.'
          f' {checks.suggest(name, schema)}')
    default = schema[name]
    if isinstance(default, ConfigDict):
      rule = 'be a dict' if field in open_fields else 'be a dict of fields'
      _require(f'config.{field}', rule, isinstance(value, ConfigDict), value)
      if field not in open_fields:
        check_fields(value, default, open_fields, f'{field}.')
    elif value is not None or default is not None:
      _check_type(field, value, schema.get_type(name))
  for name in schema:
    if name not in config:
      raise checks.ConfigError(
          f'config.validate: config.{path}{name} must be there; got none. '
          'Start the config from haikd.config.base().')


def check_rules(config: ConfigDict) -> None:
  """Refuses values out of their range; all fields are there.

  Args:
    config: a whole config.

  Raises:
    ConfigError: naming the field and its rule.
  """
  for rule, holds, fields in _RULES:
    for field in fields:
      value = config
      for name in field.split('.'):
        value = value[name]
      _require(f'config.{field}', rule, holds(value), value)


def check_term(where: str, entry: Any, defaults: Mapping[str, Any]) -> None:
  """Refuses an entry of `config.losses` that cannot be a term.

  Args:
    where: its name in the config.
    entry: what stands there.
    defaults: every field of a term.

  Raises:
    ConfigError: naming the field and its rule.
  """
  _require(where, 'be a dict of fields', isinstance(entry, ConfigDict), entry,
           ' Write dict(loss=…, weight=…).')
  for field in entry:
    if field not in defaults:
      raise checks.ConfigError(
          f'config.validate: {where}.{field} must be a field of a loss term. '
          f'{checks.suggest(field, defaults)}')
  fields = {**defaults, **entry}
  loss, weight = fields['loss'], fields['weight']
  _require(f'{where}.loss', 'name a registered loss',
           loss and isinstance(loss, str), loss)
  schedule = isinstance(weight, ConfigDict)
  _require(f'{where}.weight', 'be a finite number, or a dict of a schedule',
           schedule or checks.is_number(weight), weight)
  for name, value in weight.items() if schedule else ():
    _require(f'{where}.weight.{name}', 'be a finite number',
             name == 'kind' or checks.is_number(value), value)
  _require(f'{where}.layers', 'be None, a tuple or a name',
           _is_selection(fields['layers']), fields['layers'])
  _require(f'{where}.align', 'name a registered aligner',
           isinstance(fields['align'], str), fields['align'],
           " Write 'none', in quotes, to compare layers as they are.")
  for name in ('options', 'align_options'):
    _require(f'{where}.{name}', 'be a dict',
             isinstance(fields[name], ConfigDict), fields[name])


def _require(where, rule, holds, value, remedy=''):
  if not holds:
    raise checks.ConfigError(
        f'config.validate: {where} must {rule}; got {value!r}.{remedy}')


def _is_selection(value):
  return value is None or isinstance(value, (tuple, list, str))


def _as_tuple(value):
  return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _are_numbers(value):
  values = _as_tuple(value)
  return bool(values) and all(checks.is_number(number) for number in values)


def _check_type(field, value, kind):
  if kind is float:  # A whole number stands for one.
    _require(f'config.{field}', 'be of type float, and finite',
             checks.is_number(value), value)
  elif kind is not ANY:
    kinds = (tuple, list) if kind is tuple else kind
    holds = isinstance(value, kinds) and not (
        kind is int and isinstance(value, bool))
    _require(f'config.{field}', f'be of type {kind.__name__}', holds, value)


def _ends(value):
  """Returns a number, or those between which a schedule runs."""
  if hasattr(value, 'items'):
    return value.get('start', 0.0), value.get('end', 1.0)
  return (value,)
