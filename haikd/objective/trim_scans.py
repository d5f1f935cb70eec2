"""Loops that end once nobody asks for what their further rounds give.

Of straight code a compiler drops what nobody uses. A loop it runs to its end,
though only the results of its first rounds be used: a network whose layers are
looped over would run them all for the sake of the first.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import lax
from jax.extend import core
import jax.numpy as jnp

from haikd.core import jax_internals

T = TypeVar('T')


def run_needed(function: Callable[..., T], *args: Any) -> T:
  """Runs a function without the rounds of loops that its results do not need.

  Of a `lax.scan` that nobody takes the last carry of, only the rounds run whose
  results are used; these have to be taken by static slices, as `x[3]` or
  `x[:3]` are. Loops inside of other control flow run to their end.

  Meant for what no gradient is asked of: that of a shortened loop would be
  right, but added up in an array of all rounds in each of them.

  Args:
    function: of pytrees of arrays; what it returns is what is used.
    *args: its arguments.

  Returns:
    What the function returns.
  """
  closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
  jaxpr = jax_internals.drop_dead_code(closed.jaxpr)
  outputs = _run(jaxpr, closed.consts, jax.tree.leaves(args))
  return jax.tree.unflatten(jax.tree.structure(shapes), outputs)


def _run(jaxpr, consts, inputs):
  """Evaluates a jaxpr, its loops shortened."""
  lengths = _lengths(jaxpr)
  if not lengths:
    return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, consts))(*inputs)
  values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs)))
  read = lambda x: x.val if isinstance(x, core.Literal) else values[x]
  for number, eqn in enumerate(jaxpr.eqns):
    operands = map(read, eqn.invars)
    if number in lengths:
      results = _first_rounds(eqn.params, list(operands), lengths[number])
    else:
      params = eqn.primitive.get_bind_params(eqn.params)
      with eqn.ctx.manager:
        results = eqn.primitive.bind(*operands, **params)
    if not eqn.primitive.multiple_results:
      results = [results]
    values.update(zip(eqn.outvars, results))
  return map(read, jaxpr.outvars)


def _lengths(jaxpr):
  """Returns `{number of the equation: rounds}` of loops that may be shorter."""
  used = {}  # By variable: of how many of its first entries something is made.
  for variable in jaxpr.outvars:
    used[variable] = float('inf')
  lengths = {}
  for number, eqn in reversed(list(enumerate(jaxpr.eqns))):
    sliced = eqn.primitive.name == 'slice'
    rows = eqn.params['limit_indices'][:1] if sliced else ()
    for variable in eqn.invars:
      if not isinstance(variable, core.Literal):
        most = max(used.get(variable, 0), *rows or (float('inf'),))
        used[variable] = most
    if eqn.primitive.name == 'scan' and not eqn.params['reverse']:
      carried = jax_internals.scan_sizes(eqn.params).carry
      last, each = eqn.outvars[:carried], eqn.outvars[carried:]
      rounds = max((used.get(x, 0) for x in each), default=0)
      if not any(x in used for x in last) and rounds < eqn.params['length']:
        lengths[number] = rounds
  return lengths


def _first_rounds(params, operands, length):
  """Runs a loop for some rounds; returns no last carry."""
  sizes = jax_internals.scan_sizes(params)
  consts, operands = operands[:sizes.consts], operands[sizes.consts:]
  carry, each = operands[:sizes.carry], operands[sizes.carry:]
  body = core.jaxpr_as_fun(params['jaxpr'])

  def run(carry, i):
    # Looked up round by round: a slice for the loop would be a copy.
    own = (lax.dynamic_index_in_dim(x, i, keepdims=False) for x in each)
    results = body(*consts, *carry, *own)
    return results[:len(carry)], results[len(carry):]

  _, results = lax.scan(run, carry, jnp.arange(length))
  return [None] * len(carry) + results
