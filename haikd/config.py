"""The base config: every field there is, with its default and its meaning.

A config file starts from `base()`, changes what it wants and returns it;
`validate` refuses what is mistyped or cannot be, before any device work. `None`
stands for "decide for me".
"""

from typing import Any

import ml_collections
from ml_collections import config_dict

from haikd import checks

ConfigDict = ml_collections.ConfigDict

# Fields whose content is up to what they configure: any key may be added.
OPEN_FIELDS = ('student.options', 'student.taps', 'teacher.options',
               'teacher.taps', 'data.options', 'data.augment', 'losses',
               'teacher.train.augment', 'optimizer.options',
               'teacher.train.optimizer.options')

PRECISIONS = ('float32', 'bfloat16', 'float16')

TERM_FIELDS = ('loss', 'weight', 'layers', 'align', 'options', 'align_options')

_ANY = object

_RULES = (
    ('be positive', lambda x: x > 0,
     ('steps', 'batch_size', 'microbatches', 'log_every', 'checkpoint_every',
      'keep_checkpoints', 'data.prefetch', 'evaluation.batch_size',
      'distillation.temperature')),
    ('lie between 0 and 1', lambda x: 0 <= x <= 1,
     ('distillation.alpha', 'optimizer.ema_decay',
      'teacher.train.optimizer.ema_decay')),
    ('be 0 or more', lambda x: x >= 0, ('teacher.train.steps',)),
    ('lie between 0 and 2 ** 32 - 1', lambda x: 0 <= x < 2**32, ('seed',)),
    ('be one of ' + ', '.join(PRECISIONS), lambda x: x in PRECISIONS,
     ('student.precision', 'teacher.precision')),
    ('be None or a positive int',
     lambda x: x is None or type(x) is int and x > 0, ('evaluation.every',)),
    ('be None, a tuple or a name', lambda x: _is_selection(x),
     ('distillation.attention_match_layers',
      'distillation.feature_match_layers')),
    ('be a finite number, or a tuple of them', lambda x: _are_numbers(x),
     ('data.mean', 'data.std')),
    ('be above 0', lambda x: min(_as_tuple(x)) > 0, ('data.std',)),
    ('be a tuple of names of modules',
     lambda x: all(isinstance(name, str) for name in x), ('plugins',)),
)


def _any(default: Any = None) -> config_dict.FieldReference:
  return config_dict.FieldReference(default, field_type=_ANY)


def network() -> ConfigDict:
  """Returns the fields that teacher and student have in common."""
  return ConfigDict(
      dict(
          model='mlp',  # A registered model.
          options={},  # Its keyword options.
          taps={},  # {kind: glob over module names}; {} for the model's own.
          precision='float32',  # What it computes in; see PRECISIONS.
          init=config_dict.placeholder(str),  # A workdir to take weights from.
      ))


def optimizer() -> ConfigDict:
  """Returns the fields of an optimizer."""
  return ConfigDict(
      dict(
          name='adamw',  # adamw, sgd, lamb, adafactor or muon.
          learning_rate=1e-3,  # At its peak.
          schedule='cosine',  # constant, cosine or linear, after the warm-up.
          warmup_steps=0,
          final_fraction=0.0,  # Of the peak, at the last step.
          weight_decay=0.0,  # On kernels and embeddings alone.
          clip_norm=config_dict.placeholder(float),  # Of the global gradient.
          ema_decay=0.0,  # Of a running mean of the parameters; 0 for none.
          options={},  # Further keyword arguments of the optax function.
      ))


def base() -> ConfigDict:
  """Returns the documented base config.

  Returns:
    An unlocked ConfigDict with every field of haikd.
  """
  config = ConfigDict(
      dict(
          seed=0,
          plugins=(),  # Modules to import before names are looked up.
          steps=1000,
          batch_size=128,  # Over all devices and microbatches.
          microbatches=1,  # Parts that a device works through one by one.
          log_every=50,  # Steps between lines of metrics.
          checkpoint_every=200,  # Steps between checkpoints.
          keep_checkpoints=2,
          baseline=False,  # Also train the student alone, for comparison.
      ))
  config.data = ConfigDict(
      dict(
          name='digits',  # A registered data set, or a name of tfds.
          options={},  # Keyword options of the data set.
          train='train',  # The split to train on.
          source_dir=config_dict.placeholder(str),  # Raw files, if it has any.
          data_dir=config_dict.placeholder(str),  # Prepared files of tfds.
          augment={},  # {function: its options}: geometry, pixels, mixing.
          mean=_any(0.0),  # Images in [0, 1] become (image - mean) / std;
          std=_any(1.0),  # a number, or a tuple with one for each channel.
          prefetch=4,  # Batches to read ahead.
      ))
  config.evaluation = ConfigDict(
      dict(
          every=_any(),  # Steps; None for ten times over the run.
          split='validation',  # While training; choices are made on this one.
          final='test',  # At the end, for the table.
          batch_size=512,
      ))
  config.student = network()
  config.teacher = network()
  config.teacher.train = ConfigDict(
      dict(
          steps=0,  # To train a teacher that has no weights yet; 0 to refuse.
          augment={},  # As data.augment, for the teacher's own training.
          optimizer=optimizer(),
      ))
  config.distillation = ConfigDict(
      dict(
          temperature=2.0,
          alpha=0.9,  # Of the soft term; 1 - alpha weighs the labels.
          use_attention_transfer=False,
          attention_loss_weight=0.1,
          attention_match_layers=_any(),  # None, (0, 2), ((0, 1), …), a name.
          use_feature_matching=False,
          feature_loss_weight=0.1,
          feature_match_layers=_any(),
      ))
  config.losses = ConfigDict()  # {term: dict(loss=…, weight=…, …)}
  config.optimizer = optimizer()
  return config


def term(**fields: Any) -> ConfigDict:
  """Returns one entry of `config.losses`, with the defaults filled in.

  Args:
    **fields: any of TERM_FIELDS. `loss` is a registered loss; `weight` a number
      or a schedule `dict(kind='linear', start=0., end=1., steps=1000)`;
      `layers` what `haikd.align.pair_layers` takes; `align` a registered
      aligner with `align_options`; `options` go to the loss.

  Returns:
    A ConfigDict with every field of TERM_FIELDS.
  """
  return ConfigDict(
      dict(
          loss=fields.pop('loss', ''),
          weight=fields.pop('weight', 1.0),
          layers=_any(fields.pop('layers', None)),
          align=fields.pop('align', 'pool'),
          align_options=fields.pop('align_options', {}),
          options=fields.pop('options', {}),
          **fields))


def variant(config: ConfigDict, name: str) -> ConfigDict:
  """Returns a config, or its variant `:smoke`, which is over in seconds.

  Args:
    config: a config made from `base()`.
    name: what stands behind the colon in `--config=file.py:name`.

  Returns:
    The config itself, changed if `name` is 'smoke'.

  Raises:
    ConfigError: any other name than '' and 'smoke'.
  """
  if name == 'smoke':
    config.steps = 6
    config.batch_size = 32
    config.log_every = 2
    config.checkpoint_every = 3
    config.evaluation.split += '[:64]'
    config.evaluation.final += '[:64]'
    config.teacher.train.steps = min(config.teacher.train.steps, 4)
    config.optimizer.warmup_steps = 0
    config.teacher.train.optimizer.warmup_steps = 0
  elif name:
    raise checks.ConfigError(
        f'config.variant: variant must be smoke or left out; got {name!r}.')
  return config


def validate(config: ConfigDict) -> None:
  """Refuses a config that cannot work, before any device work.

  Names of losses, models, data sets and aligners are looked up later, when the
  plugins have been imported.

  Args:
    config: a config made from `base()`.

  Raises:
    ConfigError: an unknown field (the closest is named), a value of the wrong
      type, or a number out of its range.
  """
  _check_fields(config, base(), '')
  for name, entry in config.losses.items():
    _check_term(f'config.losses.{name}', entry)
  for rule, holds, fields in _RULES:
    for field in fields:
      value = config
      for name in field.split('.'):
        value = value[name]
      _require(f'config.{field}', rule, holds(value), value)


def _check_term(where, entry):
  _require(where, 'be a dict of fields', isinstance(entry, ConfigDict), entry,
           ' Write dict(loss=…, weight=…).')
  for field in entry:
    if field not in TERM_FIELDS:
      raise checks.ConfigError(
          f'config.validate: {where}.{field} must be a field of a loss term. '
          f'{checks.suggest(field, TERM_FIELDS)}')
  fields = term(**entry)
  _require(f'{where}.loss', 'name a registered loss',
           fields.loss and isinstance(fields.loss, str), fields.loss)
  schedule = isinstance(fields.weight, ConfigDict)
  _require(f'{where}.weight', 'be a finite number, or a dict of a schedule',
           schedule or checks.is_number(fields.weight), fields.weight)
  for name, value in fields.weight.items() if schedule else ():
    _require(f'{where}.weight.{name}', 'be a finite number',
             name == 'kind' or checks.is_number(value), value)
  _require(f'{where}.layers', 'be None, a tuple or a name',
           _is_selection(fields.layers), fields.layers)
  _require(f'{where}.align', 'name a registered aligner',
           isinstance(fields.align, str), fields.align,
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


def _check_fields(config, schema, path):
  for name, value in config.items():
    field = f'{path}{name}'
    if name not in schema:
      raise checks.ConfigError(
          f'config.validate: config.{field} must be a field of the base config.'
          f' {checks.suggest(name, schema)}')
    default = schema[name]
    if isinstance(default, ConfigDict):
      rule = 'be a dict' if field in OPEN_FIELDS else 'be a dict of fields'
      _require(f'config.{field}', rule, isinstance(value, ConfigDict), value)
      if field not in OPEN_FIELDS:
        _check_fields(value, default, f'{field}.')
    elif value is not None or default is not None:
      _check_type(field, value, schema.get_type(name))
  for name in schema:
    if name not in config:
      raise checks.ConfigError(
          f'config.validate: config.{path}{name} must be there; got none. '
          'Start the config from haikd.config.base().')


def _check_type(field, value, kind):
  if kind is float:  # A whole number stands for one.
    _require(f'config.{field}', 'be of type float, and finite',
             checks.is_number(value), value)
  elif kind is not _ANY:
    kinds = (tuple, list) if kind is tuple else kind
    holds = isinstance(value, kinds) and not (
        kind is int and isinstance(value, bool))
    _require(f'config.{field}', f'be of type {kind.__name__}', holds, value)
