"""Secrets: a config names the environment variable that holds one.

A config is written to files, logs and model cards. A token or a password in it
is therefore refused, and `env:NAME` stands for it: it is read where the option
is used, and a run that goes on compares names.
"""

from collections.abc import Iterator, Mapping
import os
import re
from typing import Any

from haikd.core import checks

_ENVIRONMENT = 'env:'

# Names of fields that hold secrets; `mask_token` and the like hold none.
_NAME = re.compile(
    r'(.*_)?(password|passwd|passphrase|secret|secret_key|api_?key|'
    r'access_?key|private_?key|credentials?)'
    r'|((auth|access|api|bearer|hf|github|gitlab|session|refresh|security|user)'
    r'_?)?token', re.IGNORECASE)
# Where a token is one of a text: the options of a chat template.
_OF_TEXTS = '.template_options.'
# What comes before the host of a URL, and queries that are secrets; a word such
# as monkey is none.
_USER = re.compile(r'(?<=://)[^/?#\s@]+(?=@)')
_QUERY = re.compile(
    r'(?<=[?&])([^=&#\s]*(?:token|passwd|password|secret|signature|sig|'
    r'(?<![?&_-](?:mon|don|hot|tur))key)=)[^&#\s]+', re.IGNORECASE)


def check(config: Any) -> None:
  """Refuses a config that holds a secret, without repeating it.

  Args:
    config: of fields, or a dict of them.

  Raises:
    ConfigError: a field that is named like a secret, and is not `env:NAME`; or
      a URL with a user, a password or a token.
  """
  for path, value in _strings('config', config):
    name = path.rpartition('.')[2]
    if value.startswith(_ENVIRONMENT) or not value:
      continue
    is_of_text = name == 'token' and _OF_TEXTS in path
    if _NAME.fullmatch(name) and not is_of_text:
      what = 'a text'
    elif masked(value) != value:
      what = masked(value)
    else:
      continue
    raise checks.ConfigError(
        f'{path} must not hold a secret, since the config is written to files; '
        f'got {what}. Put it into an environment variable, and write '
        f"'{_ENVIRONMENT}NAME' with the name of that.")


def masked(text: str) -> str:
  """Returns a text without the users, passwords and tokens of its URLs."""
  return _QUERY.sub(r'\1…', _USER.sub('…', text))


def resolve(field: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns options with what `env:NAME` stands for.

  Args:
    field: the config field that holds them, for messages.
    options: plain values.

  Raises:
    ConfigError: there is no such environment variable.
  """

  def of(path, value):
    if isinstance(value, Mapping):
      return {name: of(f'{path}.{name}', x) for name, x in value.items()}
    if not isinstance(value, str) or not value.startswith(_ENVIRONMENT):
      return value
    name = value.removeprefix(_ENVIRONMENT)
    if name not in os.environ:
      raise checks.ConfigError(
          f'{path} must name an environment variable that is set; got '
          f'{value!r}. Set {name}.')
    return os.environ[name]

  return {name: of(f'{field}.{name}', x) for name, x in options.items()}


def _strings(path: str, value: Any) -> Iterator[tuple[str, str]]:
  """Yields each text of a config, with its path."""
  if isinstance(value, str):
    yield path, value
  elif hasattr(value, 'items'):
    for name, entry in value.items():
      yield from _strings(f'{path}.{name}', entry)
  elif isinstance(value, (tuple, list)):
    for entry in value:
      yield from _strings(path, entry)
