"""Whether the results of runs can be compared."""

from collections.abc import Mapping
from typing import Any

from haikd.core import checks
from haikd.run import two_tokenizers

# Fields that must agree for results to be comparable.
_SAME = (('evaluation.final', 'split'), ('data.name', 'data set'),
         ('data.mixture', 'mixture'), ('data.options', 'data'))
# Options of data that say how a network reads the same examples.
_READING = ('chat_template', 'classes', 'tokenizer', two_tokenizers.OPTION,
            'vocabulary')


def check(configs: Mapping[str, Any]) -> list[str]:
  """Refuses runs of different data; returns what may differ, sentences.

  Args:
    configs: `{name of a run: its config}`.

  Raises:
    ConfigError: the data or split that they are evaluated on differ.
  """
  names = list(configs)
  for field, what in _SAME:
    given = [_field(config, field) for config in configs.values()]
    if field == 'data.options':
      given = [{name: x for name, x in options.items() if name not in _READING}
               for options in given]
    if _differ(given):
      raise checks.ConfigError(
          f'runs must be evaluated on the same {what} (config.{field}); got '
          f'{_by_name(names, given)}. Compare runs of one {what}.')
  fields = ('data.source_dir', *(f'data.options.{x}' for x in _READING))
  values = {field: [_field(config, field) for config in configs.values()]
            for field in fields}
  return [f'config.{field} differs, and the data may: {_by_name(names, given)}.'
          for field, given in values.items() if _differ(given)]


def _field(config, field):
  value: Any = config
  for part in field.split('.'):
    value = value.get(part, {})
  return value


def _differ(values):
  return any(value != values[0] for value in values)


def _by_name(names, values):
  return '; '.join(f'{name}: {value!r}' for name, value in zip(names, values))
