"""Numbers that change over a run, as a config gives them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from haikd.core import checks

KINDS = ('linear', 'cosine')


class Schedule(NamedTuple):
  """A number that goes from `start` to `end`; `build` makes it.

  Attributes:
    kind: one of KINDS.
    start: the value up to the step `begin`.
    end: the value from the step `begin + steps` on.
    begin: the step from which it changes.
    steps: the number of steps in which it changes.
  """

  kind: str
  start: float
  end: float
  begin: int
  steps: int

  def __call__(self, step: Any, xp: Any = jnp) -> Any:
    """Returns the value at a step.

    Args:
      step: integers of any shape, from 0.
      xp: the library that computes it, `jax.numpy` or `numpy`.

    Returns:
      A number, or one for each step.
    """
    if self.start == self.end:
      return self.end
    passed = xp.clip(step - self.begin, 0, self.steps)
    if self.kind == 'linear':
      left = 1 - passed / self.steps
    else:
      left = 0.5 * (1 + xp.cos(xp.pi * passed / self.steps))
    return self.end + (self.start - self.end) * left


def is_schedule(value: Any) -> bool:
  """Returns whether an option is a schedule."""
  return isinstance(value, Mapping) and value.get('kind') in KINDS


def build(field: str, value: Any) -> Schedule:
  """Returns the Schedule of a config field.

  Args:
    field: the config field, for messages.
    value: a number, which never changes, or `dict(kind=, start=, end=, begin=,
      steps=)`.

  Raises:
    ConfigError: anything else.
  """
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    return Schedule(KINDS[0], float(value), float(value), 0, 1)
  options = dict(value) if hasattr(value, 'items') else {}
  kind = options.pop('kind', None)
  if kind not in KINDS or set(options) - {'start', 'end', 'begin', 'steps'}:
    raise checks.ConfigError(
        f"{field} must be a number or a schedule dict(kind='linear' or "
        f"'cosine', start=, end=, begin=, steps=); got {value!r}.")
  start, end = float(options.get('start', 0.0)), float(options.get('end', 1.0))
  steps, begin = int(options.get('steps', 0)), int(options.get('begin', 0))
  if steps <= 0 or begin < 0:
    raise checks.ConfigError(
        f'{field} must run over at least one step, from step 0 or later; got '
        f'steps={steps}, begin={begin}.')
  return Schedule(kind, start, end, begin, steps)
