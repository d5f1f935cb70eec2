"""Numbers that change over a run, as a config gives them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from haikd.core import checks

RAMPS = ('linear', 'cosine', 'exponential')
# The fields of each kind.
KINDS = {'constant': ('value',), 'piecewise': ('at', 'values'),
         **dict.fromkeys(RAMPS, ('start', 'end', 'begin', 'steps'))}
_WRITE = {
    'constant': "dict(kind='constant', value=)",
    'piecewise': "dict(kind='piecewise', at=(100, 200), values=(1., 0.5, 0.))",
    **{kind: f"dict(kind='{kind}', start=, end=, begin=, steps=)"
       for kind in RAMPS}}


class Schedule(NamedTuple):
  """A number at each step; `build` makes it.

  Attributes:
    kind: one of KINDS.
    values: of a ramp, start and end; of pieces, one each; else the number.
    at: of a ramp, the steps between which it changes; of pieces, the step from
      which each but the first holds; else ().
  """

  kind: str
  values: tuple[float, ...]
  at: tuple[int, ...]

  @property
  def bounds(self) -> tuple[float, float]:
    """The smallest and the largest value."""
    return min(self.values), max(self.values)

  @property
  def settled(self) -> int:
    """The step from which it no longer changes."""
    return self.at[-1] if len(set(self.values)) > 1 else 0

  def __call__(self, step: Any, xp: Any = jnp) -> Any:
    """Returns the value at a step.

    A ramp goes from start to end: `linear` in equal parts, `cosine` along half
    a period, `exponential` by equal factors.

    Args:
      step: integers of any shape, from 0.
      xp: the library that computes it, `jax.numpy` or `numpy`.

    Returns:
      A number, or one for each step.
    """
    first, last = self.values[0], self.values[-1]
    if len(set(self.values)) == 1:
      return last
    if self.kind == 'piecewise':
      return _pick(step, self.at, self.values, xp)
    begin, end = self.at
    passed = xp.clip(step - begin, 0, end - begin)
    if self.kind == 'exponential':
      return first * (last / first) ** (passed / (end - begin))
    if self.kind == 'linear':
      left = 1 - passed / (end - begin)
    else:
      left = 0.5 * (1 + xp.cos(xp.pi * passed / (end - begin)))
    return last + (first - last) * left


class Staged(NamedTuple):
  """A number with a schedule of its own in each stage of a run.

  Attributes:
    schedules: one a stage.
    at: the step from which each but the first holds.
  """

  schedules: tuple[Schedule, ...]
  at: tuple[int, ...]

  @property
  def settled(self) -> int:
    """The step from which it no longer changes."""
    return max((*self.at, self.schedules[-1].settled))

  def __call__(self, step: Any, xp: Any = jnp) -> Any:
    """Returns the value at a step, as a Schedule does."""
    return _pick(step, self.at, [x(step, xp) for x in self.schedules], xp)


def is_schedule(value: Any) -> bool:
  """Returns whether an option is a schedule."""
  return isinstance(_plain(value), Mapping) and value.get('kind') in KINDS


def build(field: str, value: Any) -> Schedule:
  """Returns the Schedule of a config field.

  Args:
    field: the config field, for messages.
    value: a number, which never changes, or a dict with the kind and its
      fields; see KINDS.

  Raises:
    ConfigError: anything else.
  """
  if checks.is_number(value):
    return Schedule('constant', (float(value),), ())
  options = dict(value) if hasattr(value, 'items') else {}
  kind = options.pop('kind', None)
  if kind not in KINDS or set(options) - set(KINDS[kind]):
    known = _WRITE[kind] if kind in KINDS else ' or '.join(_WRITE.values())
    raise checks.ConfigError(
        f'{field} must be a number or a schedule {known}; got '
        f'{checks.show(value)}.')
  if kind in RAMPS:
    return _ramp(field, kind, options)
  values, at = _numbers(options.get('values', ())), options.get('at', ())
  if kind == 'constant':
    values, at = _numbers((options.get('value'),)), ()
  at = tuple(at) if isinstance(at, (tuple, list)) else (at,)
  if not values or len(at) != len(values) - 1:
    raise checks.ConfigError(
        f'{field} must have numbers as values, for `piecewise` one more than '
        f'steps in `at`; got {options}. Write {_WRITE[kind]}.')
  if not all(_is_step(x) for x in at) or list(at) != sorted({*at}) or 0 in at:
    raise checks.ConfigError(
        f'{field}.at must rise from step to step, above 0; got {at}.')
  return Schedule(kind, values, at)


def later(value: Any, steps: int) -> Any:
  """Returns the value of a config field so many steps later.

  Args:
    value: a schedule, which must be right, or anything else, which stays.
    steps: 0 or more.
  """
  if not is_schedule(value) or value['kind'] == 'constant' or not steps:
    return value
  if value['kind'] == 'piecewise':
    return {**value, 'at': tuple(x + steps for x in value['at'])}
  return {**value, 'begin': value.get('begin', 0) + steps}


def _ramp(field, kind, options):
  begin, steps = options.get('begin', 0), options.get('steps', 0)
  values = _numbers((options.get('start', 0.0), options.get('end', 1.0)))
  if not values:
    raise checks.ConfigError(
        f'{field} must be a schedule of finite numbers; got {options}.')
  if not _is_step(begin) or not _is_step(steps) or not steps:
    raise checks.ConfigError(
        f'{field} must run over at least one step, from step 0 or later; got '
        f'steps={steps}, begin={begin}.')
  if kind == 'exponential' and min(values) <= 0:
    raise checks.ConfigError(
        f'{field} must have a start and an end above 0, which a factor joins; '
        f'got start={values[0]}, end={values[1]}.')
  return Schedule(kind, values, (begin, begin + steps))


def _numbers(values):
  """Returns values as floats; () if one is no number."""
  is_list = isinstance(values, (tuple, list))
  if not is_list or not all(checks.is_number(x) for x in values):
    return ()
  return tuple(map(float, values))


def _is_step(value):
  return type(value) is int and value >= 0


def _plain(value):
  return dict(value) if hasattr(value, 'items') else value


def _pick(step: Any, at: Sequence[int], values: Sequence[Any], xp: Any) -> Any:
  """Returns which of the values holds at a step."""
  result = values[0]
  for begin, value in zip(at, values[1:]):
    result = xp.where(step >= begin, value, result)
  return result
