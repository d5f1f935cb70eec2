"""How often the loops of a jaxpr run at most."""

from collections.abc import Iterator, Mapping
from typing import Any

from jax import lax
import numpy as np

from haikd.core import jax_internals


class Sources:
  """Finds where values come from, also through functions and scans."""

  def __init__(self):
    self._made_by = {}  # By variable, the equation.
    # By variable, what it equals on the other side of a call.
    self._same_as = {}

  def add(self, jaxpr):
    """Adds the equations of a jaxpr.

    Args:
      jaxpr: an open one.
    """
    for eqn in jaxpr.eqns:
      self._made_by.update(dict.fromkeys(eqn.outvars, eqn))
      self._same_as.update(_through(eqn))

  def max_rounds(self, loop):
    """Returns how often a `while` runs at most, if a minimum limits it.

    What limits a loop is an integer; other minima may be carried beside it.

    Args:
      loop: its equation.

    Returns:
      None if that is not known before it runs.
    """
    for limit in map(self._source, loop.invars):
      if getattr(limit, 'primitive', None) is lax.min_p and _is_integer(
          limit.outvars[0].aval):
        known = [x.val for x in map(self._source, limit.invars)
                 if hasattr(x, 'val')]
        return int(known[0]) if known else None
    return None

  def _source(self, value):
    """Returns the literal or equation that makes a value, behind any casts.

    Two calls of one function share its variables, so that what equals what may
    go round in a circle; then it returns None.
    """
    seen = set()
    while not hasattr(value, 'val'):
      if value in seen:
        return None
      seen.add(value)
      made = self._made_by.get(value)
      if value in self._same_as:
        value = self._same_as[value]
      elif made is None or len(made.invars) != 1:
        return made
      else:
        value = made.invars[0]
    return value


def _is_integer(aval):
  return aval.shape == () and np.issubdtype(aval.dtype, np.integer)


def _through(eqn):
  """Returns what variables outside and inside of a function or scan equal.

  An array that a scan goes through, or returns, counts as its rows.
  """
  inner = list(inner_jaxprs(eqn.params))
  if len(inner) != 1 or eqn.primitive.name == 'shard_map':
    return {}
  arguments, results = inner[0].invars, inner[0].outvars
  if (len(arguments), len(results)) != (len(eqn.invars), len(eqn.outvars)):
    return {}
  pairs = [*zip(arguments, eqn.invars), *zip(eqn.outvars, results)]
  if eqn.primitive.name == 'scan':  # What it carries changes.
    sizes = jax_internals.scan_sizes(eqn.params)
    carried = {*arguments[sizes.consts:sizes.consts + sizes.carry],
               *eqn.outvars[:sizes.carry]}
    pairs = [(x, y) for x, y in pairs if x not in carried]
  return dict(pairs)


def inner_jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
  """Yields the jaxprs among the parameters of an equation.

  Args:
    params: of the equation.
  """
  for value in params.values():
    for one in value if isinstance(value, (tuple, list)) else (value,):
      one = getattr(one, 'jaxpr', one)
      if hasattr(one, 'eqns'):
        yield one
