"""Times functions in turn, and how fast the device multiplies matrices."""

import statistics
import time

import jax
import jax.numpy as jnp


def interleaved(sides, *, rounds=5, seconds=0.5, most=50):
  """Times several functions in turn, A B C A B C.

  Args:
    sides: `{name: function}`; a function takes a number of steps and returns
      arrays that are ready when the last of them is.
    rounds: how often each is timed.
    seconds: of a side in a round, about.
    most: steps of a side in a round, at most.

  Returns:
    `{name: seconds a step in each round}`.
  """
  steps = {name: _steps(function, seconds, most)
           for name, function in sides.items()}
  times = {name: [] for name in sides}
  for _ in range(rounds):
    for name, function in sides.items():
      begin = time.perf_counter()
      jax.block_until_ready(function(steps[name]))
      times[name].append((time.perf_counter() - begin) / steps[name])
  return times


def _steps(function, seconds, most):
  jax.block_until_ready(function(1))
  begin = time.perf_counter()
  jax.block_until_ready(function(1))
  once = time.perf_counter() - begin
  return max(2, min(most, round(seconds / max(once, 1e-6))))


def ratio(times, other):
  """Returns median, least and most of the ratios of two sides by round."""
  each = [x / y for x, y in zip(times, other)]
  return dict(median=statistics.median(each), least=min(each), most=max(each))


def repeated(function, *arguments):
  """Returns a side for `interleaved`: a function called again and again."""

  def side(steps):
    for _ in range(steps):
      outputs = function(*arguments)
    return outputs

  return side


def median_ms(times):
  """Returns the median in milliseconds."""
  return 1e3 * statistics.median(times)


def peak_flops(size, dtype=jnp.bfloat16):
  """Returns the operations a second of a large matrix product.

  Args:
    size: of the square matrices.
    dtype: of their numbers.
  """
  keys = jax.random.split(jax.random.key(0))
  left, right = (jax.random.normal(key, (size, size), dtype) for key in keys)
  product = jax.jit(lambda x, y: x @ y)
  times = interleaved(
      dict(product=repeated(product, left, right)), seconds=0.3)['product']
  return 2 * size**3 / min(times)


def memory(device):
  """Returns the most bytes in use so far, or None where nobody counts."""
  return (device.memory_stats() or {}).get('peak_bytes_in_use')
