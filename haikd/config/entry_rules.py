"""The rules of the entries of fields that hold several of one kind."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from haikd.config import optimizers
from haikd.config import rules
from haikd.core import checks


def check_assistant(field: str, entry: Any,
                    defaults: ml_collections.ConfigDict) -> None:
  """Refuses an entry of `config.assistants` that is no network to train.

  Args:
    field: the entry's path, `assistants.<name>`.
    entry: the value of the field.
    defaults: every field of an assistant, with its default.

  Raises:
    ConfigError: a field is unknown, missing or of the wrong type.
  """
  rules.require(f'config.{field}', 'be a dict of fields',
                rules.is_dict(entry), entry,
                ' Write haikd.config.assistant(model=…, steps=…).')
  rules.require(f'config.{field}', 'have all fields of an assistant',
                set(entry) >= set(defaults), dict(entry),
                ' Write haikd.config.assistant(…), which fills them in.')
  rules.check_fields(entry, defaults, [f'{field}.{name}' for name in (
      'options', 'taps', 'placement', 'optimizer.options',
      'optimizer.lr_multipliers')], path=f'{field}.')
  optimizers.check_optimizer(
      f'config.{field}.optimizer', entry.optimizer, entry.steps)


def check_component(field: str, entry: Any,
                    defaults: Mapping[str, Any]) -> None:
  """Refuses an entry of `config.data.mixture` that is no data set.

  Args:
    field: the entry's path, `config.data.mixture.<name>`.
    entry: the value of the field.
    defaults: every field of a data set of a mixture, with its default.

  Raises:
    ConfigError: a value breaks a rule; the message has the field and the rule.
  """
  rules.require(field, 'be a weight or a dict of fields',
                rules.is_weight(entry) or rules.is_dict(entry), entry,
                ' Write dict(weight=…, source_dir=…).')
  if rules.is_weight(entry):
    rules.check_schedule(field, entry)
    return
  _check_names(field, 'a data set of a mixture', entry, defaults)
  values = {**defaults, **entry}
  rules.check_schedule(f'{field}.weight', values['weight'])
  rules.require(f'{field}.name', 'name a data set',
                isinstance(values['name'], str), values['name'])
  rules.require(f'{field}.options', 'be a dict',
                rules.is_dict(values['options']), values['options'])
  rules.require(f'{field}.source_dir', 'be None or a folder',
                isinstance(values['source_dir'], (str, type(None))),
                values['source_dir'])


def check_term(field: str, entry: Any, defaults: Mapping[str, Any]) -> None:
  """Refuses an entry of `config.losses` that is not a loss term.

  Args:
    field: the entry's path, `config.losses.<term>`.
    entry: the value of the field.
    defaults: every field of a term, with its default.

  Raises:
    ConfigError: a value breaks a rule; the message has the field and the rule.
  """
  rules.require(field, 'be a dict of fields', rules.is_dict(entry), entry,
                ' Write dict(loss=…, weight=…).')
  _check_names(field, 'a loss term', entry, defaults)
  values = {**defaults, **entry}
  loss = values['loss']
  rules.require(f'{field}.loss', 'name a registered loss',
                loss and isinstance(loss, str), loss)
  rules.check_weight(f'{field}.weight', values['weight'])
  rules.require(f'{field}.layers', 'be None, a tuple, a name or a dict',
                rules.selects_layers(values['layers']), values['layers'])
  rules.require(f'{field}.align', 'name a registered aligner',
                isinstance(values['align'], str), values['align'],
                " Write 'none', in quotes, to compare layers as they are.")
  for name in ('options', 'align_options'):
    rules.require(f'{field}.{name}', 'be a dict', rules.is_dict(values[name]),
                  values[name])
  temperature = values['options'].get('temperature')
  if rules.is_weight(temperature):
    rule, is_legal = rules.TEMPERATURE
    name = f'{field}.options.temperature'
    bounds = rules.check_schedule(name, temperature).bounds
    rules.require(name, rule, is_legal(bounds), temperature)


def _check_names(field, what, entry, defaults):
  for name in entry:
    if name not in defaults:
      raise checks.ConfigError(
          f'{field}.{name} must be a field of {what}. '
          f'{checks.suggest(name, defaults)}')
