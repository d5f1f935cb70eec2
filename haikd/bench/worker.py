"""One side of a case in a process of its own; started by `measure`.

It reads one JSON object a line and answers with one: first what to build, then
`{"steps": n}`, until there is no more. It imports nothing of haikd, unless the
side that it runs does, so that the memory of each side is its own.
"""

import importlib
import json
import os
import pathlib
import resource
import sys
import time

# Just below what glibc's malloc asks the system for anew at each call.
_LARGEST_KEPT = 2**25 - 2**13


def main() -> None:
  """Answers until the input ends, or an error does."""
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # What a library prints is no answer.

  def answer(**values):
    print(json.dumps(values), file=answers, flush=True)

  try:
    _serve(answer)
  except Exception as err:  # The other process prints it.
    answer(error=' '.join(f'{type(err).__name__}: {err}'.split()))
    raise


def _serve(answer):
  order = json.loads(sys.stdin.readline())
  if order['cores']:
    os.sched_setaffinity(0, order['cores'])
  # From the first free of so large a block on, malloc keeps others. Whether a
  # side happens to have freed one would make small steps 1.4 times as fast.
  bytearray(_LARGEST_KEPT)
  import jax  # Counts the cores that it may use.
  jax.config.update('jax_enable_compilation_cache', False)
  sys.path.insert(0, order['path'])
  side = importlib.import_module(order['module'])
  path = pathlib.Path(order['arrays'])
  function, state, fixed = side.build(order['case'], path)
  begin = time.perf_counter(), time.process_time()
  compiled = function.lower(state, *fixed).compile()
  state, value = _step(jax, function, state, fixed)
  first = time.perf_counter() - begin[0], time.process_time() - begin[1]
  losses = [float(value)]
  state, value = _step(jax, function, state, fixed)
  losses.append(float(value))
  memory = compiled.memory_analysis()
  answer(
      losses=losses,
      first_step_seconds=first[0],
      first_step_cpu_seconds=first[1],
      temp_bytes=memory.temp_size_in_bytes,
      argument_bytes=memory.argument_size_in_bytes,
      output_bytes=memory.output_size_in_bytes)
  for line in sys.stdin:
    steps = json.loads(line)['steps']
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
      state, value = _step(jax, function, state, fixed)
    answer(
        wall=time.perf_counter() - wall,
        cpu=time.process_time() - cpu,
        steps=steps,
        peak_bytes=peak_bytes())


def _step(jax, function, state, fixed):
  """Runs a step to its end, since one that queues holds more memory."""
  state, outputs = function(state, *fixed)
  return jax.block_until_ready((state, outputs['loss']))


def peak_bytes() -> int:
  """Returns the most memory that this process has held."""
  status = pathlib.Path('/proc/self/status')
  if status.exists():  # Linux counts in ru_maxrss what the parent held, too.
    for line in status.read_text().splitlines():
      if line.startswith('VmHWM:'):
        return int(line.split()[1]) * 2**10
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 2**10


if __name__ == '__main__':
  main()
