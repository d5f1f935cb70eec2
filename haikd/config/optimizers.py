"""The rules of an optimizer's fields."""

import jax.numpy as jnp
import ml_collections

from haikd.core import checks

# Options of optax's functions, by what they must be. What another function
# calls by one of these names means the same.
_FRACTIONS = ('b1', 'b2', 'b3', 'beta', 'adam_b1', 'adam_b2', 'momentum',
              'decay_rate')
_OFFSETS = ('eps_root', 'adam_eps_root')

# (rule, whether a value obeys it, field), checked in this order.
_RULES = (
    # SGD on a mean over many values may need thousands.
    ('lie between 0 and 1,000,000', lambda x: 0 <= x <= 1e6, 'learning_rate'),
    ('be 0 or more', lambda x: x >= 0, 'warmup_steps'),
    ('lie between 0 and 1', lambda x: 0 <= x <= 1, 'final_fraction'),
    ('be 0 or more', lambda x: x >= 0, 'weight_decay'),
    ('be None or positive', lambda x: x is None or x > 0, 'clip_norm'),
    ('be 0 or more, and below 1', lambda x: 0 <= x < 1, 'ema_decay'),
    ('be a tuple of globs', lambda x: all(isinstance(glob, str) for glob in x),
     'frozen'),
    ('give a positive number for each glob; what stays as it is, is frozen',
     lambda x: all(checks.is_number(factor) and factor > 0
                   for factor in x.values()), 'lr_multipliers'),
)


def check_optimizer(field: str, config: ml_collections.ConfigDict,
                    steps: int) -> None:
  """Refuses numbers with which an optimizer cannot train.

  Args:
    field: the path of the optimizer in the config.
    config: see `config.optimizer`.
    steps: length of the run; 0 for none.

  Raises:
    ConfigError: a value breaks a rule; the message has the field and the rule.
  """
  for rule, is_legal, name in _RULES:
    _require(f'{field}.{name}', rule, is_legal(config[name]), config[name])
  if 0 < steps < config.warmup_steps:
    raise checks.ConfigError(
        f'{field}.warmup_steps must be at most the {steps} steps of the run; '
        f'got {config.warmup_steps}. The learning rate would never reach its '
        'peak.')
  decay = config.learning_rate * config.weight_decay
  _require(f'{field}.weight_decay times learning_rate',
           'be at most 1, all of a parameter in one step', decay <= 1, decay)
  for name, value in config.options.items():
    _check_option(f'{field}.options.{name}', name, value)


def _check_option(field, name, value):
  if isinstance(value, float):
    _require(field, 'be finite', checks.is_number(value), value)
  if name in _FRACTIONS and value is not None:
    _require(field, 'be a number from 0 to below 1',
             checks.is_number(value) and 0 <= value < 1, value)
  if name == 'eps':  # Adam divides by it where a gradient has been 0.
    _require(field, 'be a number above 0',
             checks.is_number(value) and value > 0, value)
  if 'dtype' in name and value is not None:
    _require(field, 'be a dtype, such as float32', _is_dtype(value), value)
  if name in _OFFSETS:
    _require(field, 'be a number, 0 or more',
             checks.is_number(value) and value >= 0, value)


def _is_dtype(value):
  try:
    return jnp.issubdtype(value, jnp.floating)
  except TypeError:
    return False


def _require(field, rule, is_legal, value):
  if not is_legal:
    raise checks.ConfigError(f'{field} must {rule}; got {checks.show(value)}.')
