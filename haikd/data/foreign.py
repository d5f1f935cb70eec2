"""Calls of functions that a user brings, whose errors become one line."""

from collections.abc import Callable, Mapping
import contextlib
import inspect
from typing import Any

from haikd.core import checks

_KINDS = {kind.__name__: kind for kind in (bool, int, float, str)}


@contextlib.contextmanager
def calling(rule: str):
  """Makes what is raised inside a DataError, unless it is haikd's own.

  The exception itself is its cause, which `--debug` shows.

  Args:
    rule: the function, and what it must do: the beginning of the message.
  """
  try:
    yield
  except (checks.ConfigError, checks.DataError):
    raise
  except Exception as err:  # It is anybody's code.
    raise checks.DataError(
        f'{rule}; got {type(err).__name__} ({checks.one_line(err)}). Correct '
        'its options or its code; --debug shows where it failed.') from err


def check_types(where: str, function: Callable,
                options: Mapping[str, Any]) -> None:
  """Refuses options of another type than a function says.

  Only the annotations bool, int, float and str are looked at, and a function
  that has none takes anything.

  Args:
    where: the field of the config that holds the options.
    function: what they are for.
    options: its keyword options, known to it.

  Raises:
    ConfigError: a value of another type.
  """
  parameters = inspect.signature(function).parameters
  for name, value in options.items():
    annotation = getattr(parameters.get(name), 'annotation', None)
    if not isinstance(annotation, str):  # As `from __future__` makes them.
      annotation = getattr(annotation, '__name__', None)
    kind = _KINDS.get(annotation)
    if kind is not None and not _is_of(value, kind):
      raise checks.ConfigError(
          f'{where}: {name} must be of type {kind.__name__}; got '
          f'{name}={value!r}.')


def _is_of(value, kind):
  if isinstance(value, bool) and kind is not bool:
    return False
  return isinstance(value, (int, float) if kind is float else kind)
