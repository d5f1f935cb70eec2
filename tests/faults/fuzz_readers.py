"""Reads damaged files, thousands of each kind, and prints what came of them.

  python tests/faults/fuzz_readers.py --count=10000 --reader=gguf --seed=1

A file must be read, or refused by an error of haikd's own, within 2 seconds of
processor time, and in no more memory than twice the file, or the limit that is
stated for it. A process of its own measures that, and survives nothing else:
what ends it, or takes half a minute of processor time, is the fault of the last
line printed.
"""

import argparse
import faulthandler
import io
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings

import mutations
import readers

from haikd.core import checks
from haikd.data.records import streams

SECONDS = 2.0  # Of processor time, for one input.
# After these the process ends, in processor time and on the clock. On the clock
# a machine that others use may stand still for half a minute.
HANG, WAIT = 30, 600
# What Python and its packages take for themselves, which changes from one
# moment to the next.
SLACK = 2**25


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--count', type=int, default=100)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--reader', action='append')
  parser.add_argument('--keep', type=pathlib.Path)
  flags = parser.parse_args()
  streams.RECORD_BYTES = 2**22  # Its limit holds for each record.
  faulthandler.register(signal.SIGPROF, chain=True)  # Then the process ends.
  warnings.simplefilter('ignore')
  for name in flags.reader or readers.READERS:
    with tempfile.TemporaryDirectory() as folder:
      print(json.dumps(fuzz(name, pathlib.Path(folder), flags)), flush=True)


def fuzz(name, folder, flags):
  """Returns what came of the damaged files of a reader."""
  reader = readers.READERS[name]
  seeds = reader.seeds(folder)
  rng = random.Random(f'{flags.seed} {name}')
  result = dict(reader=name, inputs=0, read=0, refused=0, faults=[],
                seconds=0.0, mib=0)
  for number in range(-len(seeds), 0):  # All of them can be read as they are.
    outcome, problem = attempt(reader, folder / 'input', seeds[number])
    assert outcome == 'read', (name, number, outcome, problem)
  inputs = [*reader.bombs(folder)]
  start = time.process_time()
  for number in range(max(flags.count, len(inputs))):
    files = (inputs[number] if number < len(inputs) else
             damaged(seeds, reader, rng))
    faulthandler.dump_traceback_later(WAIT, exit=True)
    signal.setitimer(signal.ITIMER_PROF, HANG)
    reset_peak()
    before, began = peak(), time.process_time()
    outcome, problem = attempt(reader, folder / 'input', files)
    took, used = time.process_time() - began, peak() - before
    signal.setitimer(signal.ITIMER_PROF, 0)
    faulthandler.cancel_dump_traceback_later()
    allowed = max(2 * sum(map(len, files.values())), reader.limit) + SLACK
    if took > SECONDS:
      outcome, problem = 'fault', f'took {took:.1f} seconds'
    if used > allowed:
      outcome, problem = 'fault', f'took {used >> 20} MiB'
    if outcome == 'fault':
      result['faults'].append(f'{number}: {problem}')
      if flags.keep:
        write(flags.keep / f'{name}-{number}', files)
    else:
      result[outcome] += 1
    result['inputs'] += 1
    result['seconds'] = max(result['seconds'], round(took, 2))
    result['mib'] = max(result['mib'], used >> 20)
  result['total_seconds'] = round(time.process_time() - start, 1)
  return result


def attempt(reader, folder, files):
  """Reads files; returns 'read', 'refused' or 'fault', and what went wrong."""
  write(folder, files)
  try:
    with open(os.devnull, 'w') as nowhere:
      sys.stdout, stdout = nowhere, sys.stdout
      try:
        reader.read(folder)
      finally:
        sys.stdout = stdout
    return 'read', ''
  except (checks.ConfigError, checks.DataError) as err:
    if '\n' in checks.one_line(err) or len(str(err)) > 4000:
      return 'fault', f'a long message: {str(err)[:200]!r}'
    return 'refused', str(err)
  except BaseException as err:
    if isinstance(err, KeyboardInterrupt):
      raise
    frame = err.__traceback__
    while frame.tb_next:
      frame = frame.tb_next
    code = frame.tb_frame.f_code
    return 'fault', (f'{checks.describe(err)[:300]} in '
                     f'{code.co_filename}:{frame.tb_lineno}')


def damaged(seeds, reader, rng):
  """Returns the files of a seed, one of them damaged."""
  files = dict(rng.choice(seeds))
  name = rng.choice([name for name in files if reader.is_damaged(name)])
  mutate = mutations.mutated
  if name.endswith('.json'):
    mutate = mutations.mutated_json
  elif name.endswith('.safetensors'):
    mutate = mutations.mutated_header
  elif name.endswith(('.jsonl', '.csv', '.tsv')):
    mutate = mutations.mutated_lines
  files[name] = mutate(files[name], rng)
  return files


def write(folder, files):
  shutil.rmtree(folder, ignore_errors=True)
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def reset_peak():
  """Makes the largest memory that was used that which is used now."""
  pathlib.Path('/proc/self/clear_refs').write_text('5')


def peak():
  """Returns the largest memory that was used since, in bytes."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) * 1024


if __name__ == '__main__':
  sys.stderr = io.StringIO() if sys.stderr is None else sys.stderr
  main()
