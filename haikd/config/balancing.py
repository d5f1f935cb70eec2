"""How the weights of losses are balanced against one another."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from haikd.core import checks
from haikd.core import schedules

BALANCES = FIXED, GRADIENT_NORM, UNCERTAINTY, DTP = (
    'fixed', 'gradient_norm', 'uncertainty', 'dtp')

# The options of each kind, with their defaults.
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    FIXED: {},
    GRADIENT_NORM: dict(alpha=0.12, every=50, rate=0.3),
    UNCERTAINTY: {},
    DTP: dict(gamma=1.0, rate=0.1),
}
# (rule, whether a value obeys it) of an option.
_RULES = {
    'alpha': ('be 0 or more', lambda x: checks.is_number(x) and x >= 0),
    'gamma': ('be 0 or more', lambda x: checks.is_number(x) and x >= 0),
    'every': ('be a positive int', lambda x: type(x) is int and x > 0),
    'rate': ('be above 0 and at most 1',
             lambda x: checks.is_number(x) and 0 < x <= 1),
}


def balance(value: Any) -> dict[str, Any]:
  """Returns `config.balance` as a dict of its kind and all its options.

  Args:
    value: the name of a kind, or a dict of the kind and options.

  Raises:
    ConfigError: an unknown kind or option, or one out of its range.
  """
  field = 'config.balance'
  options = dict(kind=value) if isinstance(value, str) else (
      dict(value) if hasattr(value, 'items') else {})
  kind = options.pop('kind', None)
  if kind not in BALANCES:
    raise checks.ConfigError(
        f'{field} must be a known kind, or a dict of a kind and its options; '
        f'got {checks.show(value)}. {checks.suggest(str(kind), BALANCES)}')
  known = _OPTIONS[kind]
  for name, option in options.items():
    if name not in known:
      raise checks.ConfigError(
          f'{field}.{name} must be an option of {kind}. '
          f'{checks.suggest(name, known)}')
    rule, is_legal = _RULES[name]
    if not is_legal(option):
      raise checks.ConfigError(f'{field}.{name} must {rule}; got {option!r}.')
  return dict(kind=kind, **{**known, **options})


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses a balance that cannot be, or weights that it cannot multiply.

  Args:
    config: a config whose fields are legal.

  Raises:
    ConfigError: as `balance`; or a weight is negative.
  """
  kind = balance(config.balance)['kind']
  if kind == FIXED:
    return
  standard = config.distillation
  weights = {f'config.losses.{name}.weight': term.get('weight', 1.0)
             for name, term in config.losses.items()}
  if standard.use_attention_transfer:
    weights['config.distillation.attention_loss_weight'] = (
        standard.attention_loss_weight)
  if standard.use_feature_matching:
    weights['config.distillation.feature_loss_weight'] = (
        standard.feature_loss_weight)
  for field, weight in weights.items():
    if schedules.build(field, weight).bounds[0] < 0:
      raise checks.ConfigError(
          f'{field} must be 0 or more with config.balance={kind!r}; got '
          f"{weight!r}. Set config.balance='fixed'.")
