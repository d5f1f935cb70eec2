"""Compares what a function gives on two devices, and in two runs."""

import jax
from jax.extend import core as jax_core
import jax.numpy as jnp
import numpy as np

# Of float32: relative to the largest number of an array.
FLOAT32 = 1e-5
# A bfloat16 has 8 bits: this is the distance of two neighbours.
BFLOAT16 = 2.0**-7
# What is so much smaller than the largest array is a sum that cancels.
_FLOOR = 1e-3


def devices():
  """Returns the device to check and the CPU to compare it with."""
  return jax.devices()[0], jax.devices('cpu')[0]


def run_on(device, function, arguments):
  """Returns what a jitted function gives on a device, as NumPy arrays.

  Args:
    device: where to run.
    function: jitted.
    arguments: pytrees of arrays.
  """
  with jax.default_device(device):
    return to_numpy(function(*jax.device_put(arguments, device)))


def to_numpy(tree):
  """Returns a tree of NumPy arrays; of bfloat16 they are float32."""
  return jax.tree.map(
      lambda x: np.asarray(x.astype(jnp.float32)
                           if x.dtype == jnp.bfloat16 else x), tree)


def distance(tree, reference):
  """Returns the largest difference and the name of the array it is in.

  It is relative to the largest number of the array in the reference, or to a
  thousandth of the largest in the whole tree, whichever is larger.

  Args:
    tree: NumPy arrays.
    reference: likewise.
  """
  scales = [_scale(x) for x in jax.tree.leaves(reference)]
  floor = _FLOOR * max(scales, default=0.0)
  worst = 0.0, ''
  pairs = zip(jax.tree_util.tree_leaves_with_path(tree),
              jax.tree.leaves(reference))
  for (path, array), other in pairs:
    gap = np.abs(array.astype(np.float64) - other.astype(np.float64))
    scale = max(_scale(other), floor, 1e-30)
    gap = float(np.max(gap, initial=0.0) / scale)
    if not gap <= worst[0]:  # Of NaN too.
      worst = gap, jax.tree_util.keystr(path)
  return worst


def is_finite(tree):
  """Returns whether all numbers of a tree are finite."""
  return all(np.all(np.isfinite(x)) for x in jax.tree.leaves(tree))


def unequal(tree, other):
  """Returns the names of arrays that are not bitwise equal."""
  return [
      jax.tree_util.keystr(path) for (path, x), y in zip(
          jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(other))
      if x.tobytes() != y.tobytes()
  ]


def check(report, name, function, arguments, tolerance, *, reference=None):
  """Adds a result: a function on the device against the CPU, and run twice.

  Args:
    report: where to add it.
    name: of the result.
    function: of `*arguments`; returns a pytree of floating arrays.
    arguments: pytrees of arrays.
    tolerance: the largest distance that is right.
    reference: what to compare with; what the CPU gives by default.

  Returns:
    What the CPU gives, or the reference.
  """
  device, cpu = devices()
  jitted = jax.jit(function)
  once, again = (run_on(device, jitted, arguments) for _ in range(2))
  if reference is None:
    # Jitted anew: what is traced may look at the platform.
    reference = run_on(cpu, jax.jit(function), arguments)
  error, where = distance(once, reference)
  finite = is_finite(once)
  values = dict(error=error, tolerance=tolerance, worst=where, finite=finite)
  apart = unequal(once, again)
  values['bitwise'] = not apart
  if apart:
    values['unequal'] = apart[:8]
    values['unequal_op'] = unequal_op(device, function, arguments)
  report.add(name, ok=error <= tolerance and finite, **values)
  return reference


def unequal_op(device, function, arguments, runs=3):
  """Returns the first operation that differs between runs, or None.

  Each runs by itself, on the same inputs.

  Args:
    device: where to run.
    function: of `*arguments`.
    arguments: pytrees of arrays.
    runs: how often to run each.
  """
  with jax.default_device(device):
    arguments = jax.device_put(arguments, device)
    closed = jax.make_jaxpr(function)(*arguments)
    try:
      _walk(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), runs)
    except _FoundError as found:
      return str(found)
    except Exception as err:  # Some operation that cannot run by itself.
      return f'not known: {type(err).__name__}'
  return None


class _FoundError(Exception):
  """Names the operation."""


def _walk(jaxpr, consts, arguments, runs):
  values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments]))
  read = lambda v: v.val if isinstance(v, jax_core.Literal) else values[v]
  for eqn in jaxpr.eqns:
    inputs = [read(v) for v in eqn.invars]
    inner = eqn.params.get('jaxpr')
    if eqn.primitive.name in ('jit', 'pjit') and inner is not None:
      outputs = _walk(inner.jaxpr, inner.consts, inputs, runs)
    else:
      # The equation as a program of its own.
      inputs = [x for x, v in zip(inputs, eqn.invars)
                if not isinstance(v, jax_core.Literal)]
      alone = jaxpr.replace(
          constvars=(), eqns=[eqn], outvars=eqn.outvars,
          invars=[v for v in eqn.invars
                  if not isinstance(v, jax_core.Literal)],
          debug_info=jaxpr.debug_info.with_unknown_names())
      call = jax.jit(jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(alone, ())))
      outputs = call(*inputs)
      for _ in range(runs - 1):
        for one, other in zip(outputs, call(*inputs)):
          if np.asarray(one).tobytes() != np.asarray(other).tobytes():
            shapes = ', '.join(str(v.aval) for v in eqn.invars)
            raise _FoundError(f'{eqn.primitive.name} of {shapes}')
    values.update(zip(eqn.outvars, outputs))
  return [read(v) for v in jaxpr.outvars]


def _scale(array):
  return float(np.max(np.abs(array), initial=0.0))
