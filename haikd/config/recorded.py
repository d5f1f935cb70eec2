"""The rules of `config.teacher.records`."""

from collections.abc import Mapping
from typing import Any

from haikd.config import entries
from haikd.core import checks

FIELD = 'config.teacher.records'

# The options of each kind, beside path and kind.
OPTIONS = {
    'sampled': ('exact', 'draws', 'bits', 'temperature', 'copies'),
    'top_k': ('k', 'bits', 'temperature'),
    'hidden': (),
}
_COUNTS = ('exact', 'draws', 'k', 'copies')


def check(given: Mapping[str, Any]) -> None:
  """Refuses records that cannot be written or read.

  Args:
    given: the value of the field, not empty.

  Raises:
    ConfigError: a field that is unknown, does not fit the kind, or is out of
      its range.
  """
  defaults = entries.records()
  for name in given:
    _require(name, 'be a field of records', name in defaults, given[name],
             checks.suggest(name, defaults))
  values = {**defaults, **given}
  path, kind = values['path'], values['kind']
  _require('path', 'name a folder', isinstance(path, str) and path, path,
           'Choose one for --mode=teach to write to.')
  _require('path', 'be a local folder or begin with gs://',
           '://' not in path.removeprefix('gs://'), path,
           'Copy the records, or mount the storage.')
  _require('kind', f'be one of {", ".join(OPTIONS)}', kind in OPTIONS, kind,
           checks.suggest(str(kind), OPTIONS))
  for name in given:
    if name not in ('path', 'kind'):
      _require(name, f'be left out with kind={kind!r}', name in OPTIONS[kind],
               given[name],
               f'Its options: {", ".join(OPTIONS[kind]) or "none"}.')
  for name in _COUNTS:
    _require(name, 'be a positive int',
             type(values[name]) is int and values[name] > 0, values[name])
  _require('bits', 'be 8 or 16', values['bits'] in (8, 16), values['bits'])
  temperature = values['temperature']
  _require('temperature', 'be a positive number',
           checks.is_number(temperature) and temperature > 0, temperature)


def options_of(given: Mapping[str, Any]) -> dict[str, Any]:
  """Returns kind and options of records, as they decide what is written.

  Args:
    given: `config.teacher.records`, checked.
  """
  values = {**entries.records(), **given}
  kind = values['kind']
  options = {name: values[name] for name in OPTIONS[kind]}
  if 'temperature' in options:
    options['temperature'] = float(options['temperature'])
  return dict(kind=kind, **options)


def _require(name, rule, is_legal, value, remedy=''):
  if not is_legal:
    remedy = remedy and f' {remedy}'
    raise checks.ConfigError(
        f'{FIELD}.{name} must {rule}; got {checks.show(value)}.{remedy}')
