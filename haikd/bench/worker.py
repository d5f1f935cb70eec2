"""Runs one side of a case in its own process; `measure` starts it.

It reads one JSON object a line and answers each with one: first what to build,
then `{"steps": n}` until the input ends. It imports haikd only if its side
does, so that the memory of each side is its own.
"""

import importlib
import json
import os
import pathlib
import sys
import time

# Just below the size that glibc's malloc requests from the system each time.
_LARGEST_KEPT = 2**25 - 2**13


def main() -> None:
  """Answers until the input ends, or an error does."""
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # A library's prints must not be read as answers.

  def answer(**values):
    print(json.dumps(values), file=answers, flush=True)

  try:
    _serve(answer)
  except Exception as err:  # `measure` prints it.
    answer(error=' '.join(f'{type(err).__name__}: {err}'.split()))
    raise


def _serve(answer):
  order = json.loads(sys.stdin.readline())
  if order['cores']:
    os.sched_setaffinity(0, order['cores'])
  # Once a block of this size is freed, malloc keeps freed blocks. Without this,
  # small steps are 1.4 times as fast on a side that happens to have freed one.
  bytearray(_LARGEST_KEPT)
  import jax  # After the affinity is set: it counts the usable cores.

  from haikd.core import memory
  jax.config.update('jax_enable_compilation_cache', False)
  sys.path.insert(0, order['path'])
  side = importlib.import_module(order['module'])
  path = pathlib.Path(order['arrays'])
  function, state, fixed = side.build(order['case'], path)
  begin = time.perf_counter(), time.process_time()
  compiled = _compile(function, state, fixed)
  state, outputs = _step(jax, function, state, fixed)
  first = time.perf_counter() - begin[0], time.process_time() - begin[1]
  losses = [float(outputs['loss'])]
  state, outputs = _step(jax, function, state, fixed)
  losses.append(float(outputs['loss']))
  answer(
      losses=losses,
      first_step_seconds=first[0],
      first_step_cpu_seconds=first[1],
      **compiled)
  for line in sys.stdin:
    steps, waiting = json.loads(line)['steps'], 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
      state, outputs = _step(jax, function, state, fixed)
      waiting += outputs.get('waiting', 0.0)
    answer(
        wall=time.perf_counter() - wall,
        cpu=time.process_time() - cpu,
        waiting=waiting,
        steps=steps,
        peak_bytes=memory.peak_of_process())


def _compile(function, state, fixed):
  """Returns how long compiling took and what the program needs."""
  if not hasattr(function, 'lower'):  # It runs on the host alone.
    return dict(compiling=[0.0] * 3, temp_bytes=0)
  times = [time.perf_counter()]
  function.trace(state, *fixed)
  times.append(time.perf_counter())
  lowered = function.lower(state, *fixed)  # Of what was traced.
  times.append(time.perf_counter())
  memory = lowered.compile().memory_analysis()
  times.append(time.perf_counter())
  return dict(
      compiling=[end - start for start, end in zip(times, times[1:])],
      temp_bytes=memory.temp_size_in_bytes,
      argument_bytes=memory.argument_size_in_bytes,
      output_bytes=memory.output_size_in_bytes)


def _step(jax, function, state, fixed):
  """Runs a step to its end, since queued steps hold more memory."""
  state, outputs = function(state, *fixed)
  jax.block_until_ready((state, outputs['loss']))
  return state, outputs


if __name__ == '__main__':
  main()
