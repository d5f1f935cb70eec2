"""A config as a table of text."""

from collections.abc import Collection, Iterator
from typing import Any

import ml_collections


def table(config: ml_collections.ConfigDict,
          defaults: ml_collections.ConfigDict,
          whole: Collection[str]) -> str:
  """Returns a line for each field: its value and, if it differs, its default.

  Args:
    config: the config.
    defaults: the base config.
    whole: fields that hold what the user names, which are not taken apart.
  """
  expected = dict(_fields(defaults, whole))
  rows = [('field', 'value', 'default')]
  for name, value in _fields(config, whole):
    default = expected.get(name, '')
    rows.append((name, value, '' if value == default else default))
  if not any(default for *_, default in rows[1:]):
    rows = [(name, value, '') for name, value, _ in rows]
  widths = [max(map(len, column)) for column in zip(*rows)]
  return '\n'.join(
      '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
      for row in rows)


def _fields(config, whole, prefix='') -> Iterator[tuple[str, str]]:
  """Yields the fields' dotted names, and their values as Python writes them."""
  for name in config:
    path, value = f'{prefix}{name}', config[name]
    is_group = isinstance(value, ml_collections.ConfigDict)
    if is_group and path not in whole:
      yield from _fields(value, whole, f'{path}.')
    else:
      yield path, repr(_plain(value))


def _plain(value: Any) -> Any:
  return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else (
      value)
