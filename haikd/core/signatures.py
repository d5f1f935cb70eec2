"""The options that a function takes, and whether those of a config fit."""

from collections.abc import Callable, Collection, Iterable, Mapping
import inspect
import numbers
import types
import typing
from typing import Any

import numpy as np

from haikd.core import checks

# What an annotation takes; NumPy's numbers are registered as these.
_CHECKED = {
    bool: (bool, np.bool_), int: (numbers.Integral,), float: (numbers.Real,),
    str: (str,), types.NoneType: (types.NoneType,)}
_UNIONS = (typing.Union, types.UnionType)


def option_names(function: Callable, *,
                 reserved: Iterable[str] = ()) -> set[str]:
  """Returns the names of the keyword options that a function takes."""
  kinds = (inspect.Parameter.KEYWORD_ONLY,
           inspect.Parameter.POSITIONAL_OR_KEYWORD)
  return {
      name for name, parameter in inspect.signature(function).parameters.items()
      if parameter.kind in kinds
  } - set(reserved)


def check_options(field: str, function: Callable, options: Mapping[str, Any],
                  *, reserved: Iterable[str],
                  scheduled: Collection[str] = ()) -> None:
  """Raises ConfigError unless the options fit a function's parameters.

  Types are checked where the annotation is bool, int, float, str, or a union of
  them and None. A parameter with another annotation, or without one, takes any
  value, and each takes its default. An int passes for a float; a bool passes
  only for a bool.

  Args:
    field: the config field that holds the options, for messages.
    function: takes the options.
    options: what the config sets.
    reserved: arguments that haikd itself passes.
    scheduled: options whose value is a schedule, so that it has no type.

  Raises:
    ConfigError: the function does not take an option, an option without a
      default is missing, or a value has another type than its annotation.
  """
  parameters = _parameters(function)
  if not any(p.kind is inspect.Parameter.VAR_KEYWORD
             for p in parameters.values()):
    _check_names(field, function, parameters, options, reserved)
  for name, value in options.items():
    if name in parameters and name not in scheduled:
      _check_type(f'{field}.{name}', parameters[name], value)


def _check_names(field, function, parameters, options, reserved):
  known = option_names(function, reserved=reserved)
  for name in options:
    if name not in known:
      raise checks.ConfigError(
          f'{field}.{name} must be an option of {function.__name__}; got '
          f'{name!r}. {checks.suggest(name, known)}')
  for parameter in parameters.values():
    is_required = parameter.default is inspect.Parameter.empty
    if (is_required and parameter.name in known and
        parameter.name not in options):
      raise checks.ConfigError(
          f'{field}.{parameter.name} must be given, since '
          f'{function.__name__} has no default for it; got '
          f'{sorted(options) or "no options"}.')


def _check_type(field, parameter, value):
  kinds = _kinds(parameter.annotation)
  if not kinds or value is parameter.default or _is_one_of(value, kinds):
    return
  named = ' or '.join(
      'None' if kind is types.NoneType else kind.__name__ for kind in kinds)
  raise checks.ConfigError(
      f'{field} must be of type {named}; got {checks.show(value)}.')


def _parameters(function):
  try:
    return inspect.signature(function, eval_str=True).parameters
  except Exception:  # An annotation may name what only type checkers import.
    return inspect.signature(function).parameters


def _kinds(annotation: Any) -> tuple[type, ...]:
  """Returns the types that an annotation allows; none if it isn't checked."""
  if typing.get_origin(annotation) not in _UNIONS:
    return tuple(x for x in _CHECKED if annotation in (x, x.__name__))
  parts = [_kinds(part) for part in typing.get_args(annotation)]
  return sum(parts, ()) if all(parts) else ()


def _is_one_of(value, kinds):
  if isinstance(value, bool):
    return bool in kinds
  return isinstance(value, tuple(x for kind in kinds for x in _CHECKED[kind]))
