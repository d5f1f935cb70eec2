"""What a checkpoint has beside its arrays, and which types that must have.

Checksums notice what has changed since it was saved, but a bucket has none, and
a checkpoint may come from elsewhere.
"""

from collections.abc import Callable, Mapping
from typing import Any, Optional

from haikd.core import checks

_Check = Callable[[Any], bool]


def _is_count(value: Any) -> bool:
  return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _is_dict(value: Any) -> bool:
  return isinstance(value, dict)


def _is_best(value: Any) -> bool:
  """Returns whether it is what `run.best.Best` says of itself."""
  return value is None or (
      _is_dict(value) and _is_optional(_is_text)(value.get('metric')) and
      _is_optional(_is_count)(value.get('step')) and
      _is_count(value.get('since')) and _is_float(value.get('value')) and
      _are_earlier(value.get('earlier', [])))


def _are_earlier(value: Any) -> bool:
  """Returns whether it is a list of steps with a number each."""
  return isinstance(value, list) and all(
      isinstance(x, list) and len(x) == 2 and _is_count(x[0]) and
      _is_float(x[1]) for x in value)


def _is_float(value: Any) -> bool:
  """Returns whether it is a number as text, which may not be finite."""
  if not _is_text(value):
    return False
  try:
    float(value)
  except ValueError:
    return False
  return True


def _is_numbers(value: Any) -> bool:
  return _is_dict(value) and all(map(checks.is_number, value.values()))


def _is_optional(check: _Check) -> _Check:
  return lambda value: value is None or check(value)


_METADATA: Mapping[str, _Check] = dict(
    seconds=lambda value: checks.is_number(value) and value >= 0,
    phases=_is_numbers,
    evaluated=lambda value: isinstance(value, bool),
    entered=lambda value: isinstance(value, bool),
    best=_is_best,
    rollbacks=_is_count,
    rows=_is_count,
    teacher=_is_text,
    vocabulary=_is_text,
    interface=_is_dict,
    layers=lambda value: isinstance(value, list) and all(map(_is_dict, value)),
    config=_is_dict)


def problem(extra: Any) -> Optional[str]:
  """Returns which value has not the type that it must have, or None.

  Args:
    extra: what was read.
  """
  if not _is_dict(extra):
    return _show('content', extra)
  iterator, metadata = extra.get('iterator'), extra.get('metadata')
  best = extra.get('best_step')
  if not _is_dict(iterator):
    return _show('iterator', iterator)
  for name, value in iterator.items():
    if not _is_count(value):
      return _show(f'iterator.{name}', value)
  if not _is_optional(_is_count)(best):
    return _show('best_step', best)
  if not _is_dict(metadata):
    return _show('metadata', metadata)
  for name, is_right in _METADATA.items():
    if name in metadata and not is_right(metadata[name]):
      return _show(f'metadata.{name}', metadata[name])
  return None


def _show(name, value):
  return f'{name}={checks.show(value)}'
