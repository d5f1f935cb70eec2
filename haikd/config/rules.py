"""The rules of a config: its fields, their types and their ranges."""

from collections.abc import Collection
from typing import Any

import ml_collections

from haikd.config import optimizers
from haikd.core import checks
from haikd.core import notes
from haikd.core import schedules
from haikd.core import tasks

PRECISIONS = ('float32', 'bfloat16', 'float16')

# What is done about a step that is not finite; see `haikd.engine.guarding`.
NONFINITE = ('stop', 'skip', 'rollback')

# Policies of what a block recomputes; see `haikd.network.remat`.
REMATS = ('none', 'gathers', 'dots', 'full')

ANY = object  # The type of a field that takes any value.

# (rule, whether a value obeys it, fields), checked in this order.
_RULES = (
    ('be positive', lambda x: x > 0,
     ('steps', 'batch_size', 'microbatches', 'log_every', 'checkpoint_every',
      'keep_checkpoints', 'data.memory_mib',
      'evaluation.batch_size', 'teacher.server.requests',
      'teacher.server.timeout', 'guard.limit')),
    ("be 'stop' or 'skip'", lambda x: x in ('stop', 'skip'),
     ('data.on_error',)),
    ("be 'stop' or 'go_on'", lambda x: x in ('stop', 'go_on'),
     ('checkpoint_on_error',)),
    ('be one of ' + ', '.join(NONFINITE), lambda x: x in NONFINITE,
     ('guard.nonfinite',)),
    ('be None or 0 or more', lambda x: x is None or x >= 0, ('data.workers',)),
    ('be None or above 0', lambda x: x is None or x > 0,
     ('guard.max_grad_norm',)),
    ('be above 0', lambda x: x > 0, ('guard.hang_after',)),
    ('be None or a positive number',
     lambda x: x is None or checks.is_number(x) and x > 0, ('chunk_mib',)),
    ('be 0 or more, and below 1', lambda x: 0 <= x < 1,
     ('distillation.label_smoothing',)),
    ('be one of ' + ', '.join((tasks.AUTO, *tasks.OF_LABELS)),
     lambda x: x in (tasks.AUTO, *tasks.OF_LABELS), ('task',)),
    ('be 0 or more', lambda x: x >= 0,
     ('teacher.train.steps', 'report.examples', 'data.max_skipped')),
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
    ('give a glob over names of modules, or a tuple of them, for each kind',
     lambda x: all(_are_globs(globs) for globs in x.values()),
     ('student.taps', 'teacher.taps')),
    ('be None or a positive int',
     lambda x: x is None or type(x) is int and x > 0,
     ('evaluation.every', 'evaluation.patience', 'data.image_size',
      'data.prefetch',
      'student.used_classes', 'teacher.used_classes',
      'teacher.view.image_size')),
    ('give a dict of options for each name of a metric',
     lambda x: all(map(is_dict, x.values())), ('evaluation.metrics',)),
    ('have keep_best, the metric to wait for, if it has patience',
     lambda x: x.patience is None or bool(x.keep_best), ('evaluation',)),
    ('be None, or a tuple of layers from 0',
     lambda x: x is None or isinstance(x, (tuple, list)) and len(x) > 0 and all(
         type(layer) is int and layer >= 0 for layer in x),
     ('student.init_layers', 'teacher.init_layers')),
    ('be None, a tuple, a name or a dict', lambda x: selects_layers(x),
     ('distillation.attention_match_layers',
      'distillation.feature_match_layers')),
    ('be a finite number, or a tuple of them', lambda x: _are_numbers(x),
     ('data.mean', 'data.std')),
    ('be above 0', lambda x: min(_as_tuple(x)) > 0, ('data.std',)),
    ('be None, a finite number or a tuple of them',
     lambda x: x is None or _are_numbers(x),
     ('teacher.view.mean', 'teacher.view.std')),
    ('be None or above 0', lambda x: x is None or min(_as_tuple(x)) > 0,
     ('teacher.view.std',)),
    ('be above 0 and at most 1', lambda x: 0 < x <= 1, ('data.crop',)),
    ('be None, or above 0 and at most 1', lambda x: x is None or 0 < x <= 1,
     ('teacher.view.crop',)),
    ('be a tuple of positive numbers', lambda x: _are_numbers(x) and min(x) > 0,
     ('sweep.learning_rates', 'sweep.weights')),
    ('be a tuple of names of modules',
     lambda x: all(isinstance(name, str) for name in x), ('plugins',)),
    ('be a tuple of names of variants of the config file',
     lambda x: all(isinstance(name, str) for name in x), ('sweep.methods',)),
    ('be a tuple of names of fields or tensors',
     lambda x: all(isinstance(name, str) for name in x),
     ('student.init_options.ignore', 'teacher.init_options.ignore')),
)

# Beyond, a softmax has one class, or all alike.
TEMPERATURE = ('lie between 0.001 and 1,000',
               lambda x: 0.001 <= x[0] and x[1] <= 1000)
# (rule, whether the smallest and the largest value obey it, fields that hold a
# number or a schedule).
_SCHEDULES = (
    TEMPERATURE + (('distillation.temperature',),),
    ('lie between 0 and 1, or be None', lambda x: 0 <= x[0] and x[1] <= 1,
     ('distillation.alpha',)),
)
_LARGEST_WEIGHT = 1e9  # Beyond, float32 keeps nothing of other terms.
_WEIGHTS = ('distillation.attention_loss_weight',
            'distillation.feature_loss_weight')


def check_fields(config: ml_collections.ConfigDict,
                 schema: ml_collections.ConfigDict,
                 open_fields: Collection[str],
                 optional_fields: Collection[str] = (),
                 path: str = '') -> None:
  """Refuses fields that are unknown, missing, or of the wrong type.

  Args:
    config: the config to check, or a group of its fields.
    schema: a config with every field and its default.
    open_fields: the paths of fields that accept any key.
    optional_fields: the paths of fields that may be None, besides those whose
      default is None.
    path: the path of the group in the config, ending in a dot.

  Raises:
    ConfigError: a wrong field; the message has its path and, if it is unknown,
      the closest known one.
  """
  for name, value in config.items():
    field = f'{path}{name}'
    if name not in schema:
      raise checks.ConfigError(
          f'config.{field} must be a field of the base config. '
          f'{checks.suggest(name, schema)}')
    default = schema[name]
    if is_dict(default):
      rule = 'be a dict' if field in open_fields else 'be a dict of fields'
      require(f'config.{field}', rule, is_dict(value), value)
      if field in open_fields:
        _check_keys(f'config.{field}', value)
      else:
        check_fields(value, default, open_fields, optional_fields, f'{field}.')
    elif value is not None or not (
        default is None or field in optional_fields):
      _check_type(field, value, schema.get_type(name))
  for name in schema:
    if name not in config:
      raise checks.ConfigError(
          f'config.{path}{name} is missing. Start the config from '
          'haikd.config.base(), and delete none of its fields.')


def _check_keys(field, value):
  """Refuses keys that are no texts: config.json would make texts of them."""
  for name, inner in value.items() if hasattr(value, 'items') else ():
    require(field, 'have texts as keys', isinstance(name, str), name)
    _check_keys(f'{field}.{name}', inner)


def check_rules(config: ml_collections.ConfigDict) -> None:
  """Refuses values out of their range.

  Args:
    config: a config with all fields.

  Raises:
    ConfigError: a value breaks a rule; the message has the field and the rule.
  """
  for rule, is_legal, fields in _RULES:
    for field in fields:
      value = _value(config, field)
      require(f'config.{field}', rule, is_legal(value), value)
  skips, workers = config.data.on_error == 'skip', config.data.workers
  require('config.data.workers',
          "be None or 0 where config.data.on_error is 'skip', since one process"
          ' counts what is left out', not (skips and workers), workers,
          " Set it to 0, or config.data.on_error to 'stop'.")
  for rule, is_legal, fields in _SCHEDULES:
    for field in fields:
      value = _value(config, field)
      if value is None and field == 'distillation.alpha':
        continue
      schedule = check_schedule(f'config.{field}', value)
      require(f'config.{field}', rule, is_legal(schedule.bounds), value)
  for field in _WEIGHTS:
    check_weight(f'config.{field}', _value(config, field))
  for field, steps in (('optimizer', config.steps),
                       ('teacher.train.optimizer', config.teacher.train.steps)):
    optimizers.check_optimizer(f'config.{field}', _value(config, field), steps)


def is_dict(value: Any) -> bool:
  """Returns whether a value is a group of fields."""
  return isinstance(value, ml_collections.ConfigDict)


def is_weight(value: Any) -> bool:
  """Returns whether a value is a number, or a dict of a schedule."""
  return checks.is_number(value) or is_dict(value) and 'kind' in value


def selects_layers(value: Any) -> bool:
  """Returns whether a value may say which layers are compared."""
  return value is None or isinstance(value, (tuple, list, str)) or (
      is_dict(value))


def check_schedule(field: str, value: Any) -> schedules.Schedule:
  """Returns the schedule of a field, which may be a number."""
  require(field, 'be a finite number, or a dict of a schedule',
          hasattr(value, 'items') or checks.is_number(value), value)
  return schedules.build(field, value)


def check_weight(field: str, value: Any) -> None:
  """Refuses a weight that is no number or schedule, and says a negative one."""
  low, high = check_schedule(field, value).bounds
  require(field, f'lie between -{_LARGEST_WEIGHT:g} and {_LARGEST_WEIGHT:g}',
          -_LARGEST_WEIGHT <= low and high <= _LARGEST_WEIGHT, value)
  if low < 0:
    notes.say(f'{field} is negative, so that training raises this loss.')


def require(field: str, rule: str, is_legal: Any, value: Any,
            remedy: str = '') -> None:
  """Raises ConfigError unless a value is legal.

  Args:
    field: the field, as messages name it.
    rule: what it must do, the words after `must`.
    is_legal: whether it does.
    value: its value.
    remedy: a sentence with a space before it.
  """
  if not is_legal:
    raise checks.ConfigError(f'{field} must {rule}; got '
                             f'{checks.show(value)}.{remedy}')


def _value(config, field):
  for name in field.split('.'):
    config = config[name]
  return config


def _as_tuple(value):
  return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _are_globs(value):
  return all(isinstance(x, str) for x in _as_tuple(value))


def _are_numbers(value):
  values = _as_tuple(value)
  return bool(values) and all(checks.is_number(number) for number in values)


def _check_type(field, value, kind):
  if kind is float:  # An int is accepted as well.
    require(f'config.{field}', 'be of type float, and finite',
            checks.is_number(value), value)
  elif kind is not ANY:
    kinds = (tuple, list) if kind is tuple else kind
    is_legal = isinstance(value, kinds) and not (
        kind is int and isinstance(value, bool))
    require(f'config.{field}', f'be of type {kind.__name__}', is_legal, value)
