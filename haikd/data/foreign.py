"""Calls of a user's functions, whose errors become one line."""

from collections.abc import Callable, Mapping
import contextlib
import inspect
from typing import Any

from haikd.core import checks

_KINDS = {kind.__name__: kind for kind in (bool, int, float, str)}


@contextlib.contextmanager
def calling(rule: str, remedy: str):
  """Turns an exception raised inside into a DataError, unless it is haikd's.

  The exception becomes the DataError's cause, which `--debug` shows.

  Args:
    rule: `<what the user gave> must <rule>`, the beginning of the message.
    remedy: `Fix <what>`, the end of the message.
  """
  try:
    yield
  except (checks.ConfigError, checks.DataError):
    raise
  except (Exception, SystemExit) as err:  # A user's code may raise anything.
    raise checks.DataError(
        f'{rule}; got {checks.describe(err)}. {remedy}; --debug shows the '
        'traceback.') from err


def check_types(field: str, function: Callable,
                options: Mapping[str, Any]) -> None:
  """Refuses options whose type contradicts a function's annotations.

  Only the annotations bool, int, float and str are checked. A parameter with
  another annotation, or without one, takes any value. An int passes for a
  float; a bool passes only for a bool.

  Args:
    field: the config field that holds the options, for messages.
    function: takes the options.
    options: keyword arguments that the function accepts, by name or through
      its `**options`.

  Raises:
    ConfigError: a value of another type.
  """
  parameters = inspect.signature(function).parameters
  for name, value in options.items():
    annotation = getattr(parameters.get(name), 'annotation', '')
    if not isinstance(annotation, str):  # `from __future__` makes strings.
      annotation = getattr(annotation, '__name__', '')
    kind = _KINDS.get(annotation)
    if kind is not None and not _is_of(value, kind):
      raise checks.ConfigError(
          f'{field}.{name} must be of type {kind.__name__}; got {value!r}.')


def _is_of(value, kind):
  if isinstance(value, bool) and kind is not bool:
    return False
  return isinstance(value, (int, float) if kind is float else kind)
