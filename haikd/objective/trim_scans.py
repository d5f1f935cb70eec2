"""Shortens `lax.scan`s to the iterations whose outputs are used.

XLA removes dead straight-line code but always runs a scan to the end, even if
only its first outputs are read: a network that scans over its layers would run
them all for the sake of the first.
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
  """Runs a function without the iterations of scans that its results ignore.

  A `lax.scan` whose last carry is not used runs only the iterations whose
  outputs are used; these must be taken by static slices, such as `x[3]` or
  `x[:3]`. Scans inside other control flow run to the end.

  Use it where no gradient is needed. A gradient would be correct, but every
  iteration would add into an array the size of the full scan.

  Args:
    function: of pytrees of arrays; everything that it returns counts as used.
    *args: its arguments.

  Returns:
    What the function returns.
  """
  closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
  jaxpr = jax_internals.drop_dead_code(closed.jaxpr)
  outputs = _run(jaxpr, closed.consts, jax.tree.leaves(args))
  return jax.tree.unflatten(jax.tree.structure(shapes), outputs)


def _run(jaxpr, consts, inputs):
  """Evaluates a jaxpr with its scans shortened."""
  lengths = _short_lengths(jaxpr)
  if not lengths:
    return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, consts))(*inputs)
  values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs)))
  read = lambda x: x.val if isinstance(x, core.Literal) else values[x]
  for number, eqn in enumerate(jaxpr.eqns):
    operands = map(read, eqn.invars)
    if number in lengths:
      results = _short_scan(eqn.params, list(operands), lengths[number])
    else:
      params = eqn.primitive.get_bind_params(eqn.params)
      with eqn.ctx.manager:
        results = eqn.primitive.bind(*operands, **params)
    if not eqn.primitive.multiple_results:
      results = [results]
    values.update(zip(eqn.outvars, results))
  return map(read, jaxpr.outvars)


def _short_lengths(jaxpr):
  """Returns `{number of the equation: iterations}` of scans to shorten."""
  # By variable: how many of its first entries are used.
  used = dict.fromkeys(jaxpr.outvars, float('inf'))
  lengths = {}
  for number, eqn in reversed(list(enumerate(jaxpr.eqns))):
    entries = float('inf')
    if eqn.primitive.name == 'slice' and eqn.params['limit_indices']:
      entries = eqn.params['limit_indices'][0]
    for variable in eqn.invars:
      if not isinstance(variable, core.Literal):
        used[variable] = max(used.get(variable, 0), entries)
    if eqn.primitive.name == 'scan' and not eqn.params['reverse']:
      carried = jax_internals.scan_sizes(eqn.params).carry
      last_carry, outputs = eqn.outvars[:carried], eqn.outvars[carried:]
      needed = max((used.get(x, 0) for x in outputs), default=0)
      carry_is_used = any(x in used for x in last_carry)
      if not carry_is_used and needed < eqn.params['length']:
        lengths[number] = needed
  return lengths


def _short_scan(params, operands, length):
  """Runs a scan for some iterations; its last carry comes back as None."""
  sizes = jax_internals.scan_sizes(params)
  consts, operands = operands[:sizes.consts], operands[sizes.consts:]
  carry, inputs = operands[:sizes.carry], operands[sizes.carry:]
  body = core.jaxpr_as_fun(params['jaxpr'])

  def run(carry, i):
    # Indexed in each iteration: slicing the inputs beforehand would copy them.
    row = (lax.dynamic_index_in_dim(x, i, keepdims=False) for x in inputs)
    results = body(*consts, *carry, *row)
    return results[:len(carry)], results[len(carry):]

  _, outputs = lax.scan(run, carry, jnp.arange(length))
  return [None] * len(carry) + outputs
