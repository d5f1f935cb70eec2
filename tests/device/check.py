"""What does haikd do on an accelerator? Answers in one run of eight minutes.

  python tests/device/check.py --out DIR
  python tests/device/check.py --out DIR --parts numbers,step
  python tests/device/check.py --out DIR --tiny      (on a CPU)

Each part runs in a process of its own with its own share of the time, writes
DIR/<part>.json after every result, and prints a line for each:

  numbers  losses, pooling and steps of every model against the CPU backend
  step     a large language model's step: time, FLOPs, memory, by hand
  profile  where the time of that step goes, and its pieces timed alone
  jobs     whole jobs, ResNet-50 from ResNet-152, a kill and a resume
  bench    `python -m haikd.bench`

Exit codes: 0 all parts are done and right; 1 a part failed, was cut short, or
there is no accelerator; 2 a wrong argument.
"""

import argparse
import importlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# The shares of the time; what a part leaves goes to those after it.
PARTS = dict(numbers=110, step=160, profile=60, jobs=100, bench=50)
SECONDS, SECONDS_TINY = 480, 3600
_WANTS_GPU = 3  # Exit code of a part.


def main(argv=None):
  """Runs the command line and returns the exit code."""
  options = _parse(argv)
  if options.alone:
    return _run_alone(options)
  # What is started here ends with this process, also when it is stopped.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  out = pathlib.Path(options.out)
  out.mkdir(parents=True, exist_ok=True)
  end = time.monotonic() + options.seconds
  shares = [PARTS.get(name, 60) for name in options.parts]
  failed = []
  scratch = tempfile.mkdtemp(prefix='haikd-device-')
  try:
    for number, name in enumerate(options.parts):
      share = shares[number] / sum(shares[number:])
      seconds = max(share * (end - time.monotonic()), 1.0)
      error = _run_part(name, options, scratch, seconds)
      if error == _WANTS_GPU:
        return 1
      print(f'{name}: {error or "done"}', flush=True)
      if error:
        failed.append(name)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  if failed:
    print(f'failed: {", ".join(failed)}', flush=True)
  return 1 if failed else 0


def _parse(argv):
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--out', required=True, help='folder of the JSON files')
  parser.add_argument(
      '--parts', default=','.join(PARTS),
      help='parts with commas between them; all by default. Any other name is\n'
      'a module with a function run(report)')
  parser.add_argument(
      '--tiny', action='store_true', help='small sizes, for a CPU')
  parser.add_argument(
      '--only', default='',
      help='regular expression: which results of numbers and step to compute')
  parser.add_argument(
      '--seconds', type=float, default=None,
      help=f'time of all parts together; {SECONDS}, or {SECONDS_TINY} if tiny')
  parser.add_argument('--alone', default='', help=argparse.SUPPRESS)
  options = parser.parse_args(argv)
  options.parts = [x for x in options.parts.split(',') if x]
  try:
    re.compile(options.only)
  except re.error as err:
    parser.error(f'--only must be a regular expression; got {options.only!r} '
                 f'({err}).')
  for name in options.parts:
    if not name.replace('.', '').isidentifier():
      parser.error(f'--parts must be names with commas; got {name!r}. '
                   f'Known: {", ".join(PARTS)}.')
  if options.seconds is None:
    options.seconds = SECONDS_TINY if options.tiny else SECONDS
  return options


def _run_part(name, options, scratch, seconds):
  """Runs a part to its end; returns its error, None if it has none."""
  command = [sys.executable, str(HERE / 'check.py'), f'--alone={scratch}',
             f'--out={options.out}', f'--parts={name}', f'--seconds={seconds}',
             f'--only={options.only}']
  if options.tiny:
    command.append('--tiny')
  path = pathlib.Path(options.out) / f'{name}.json'
  path.unlink(missing_ok=True)
  # A session of its own, so that what a part has started ends with it.
  process = subprocess.Popen(
      command, cwd=ROOT, env=_environment(name, scratch),
      start_new_session=True)
  error = None
  try:
    code = process.wait(seconds)
    if code == _WANTS_GPU:
      return _WANTS_GPU
    if code:
      error = f'ended with exit code {code}'
  except subprocess.TimeoutExpired:
    error = f'cut short after its {seconds:.0f} s'
  finally:
    _kill_group(process)
  return _close(name, path, options.tiny, error)


def _kill_group(process):
  try:
    os.killpg(process.pid, signal.SIGKILL)
  except ProcessLookupError:
    pass
  process.wait()


def _close(name, path, tiny, error):
  """Writes into a part's file what it could not write itself."""
  sys.path.insert(0, str(HERE))
  from parts import report
  if path.exists():
    content = json.loads(path.read_text())
  else:
    content = dict(part=name, tiny=tiny, done=False, error=None, results={})
  content['error'] = content['error'] or error
  if not content['done'] and content['error'] is None:
    content['error'] = 'ended before it was done'
  report.write_json(path, content)
  return content['error']


def _environment(name, scratch):
  """Returns the environment of a part."""
  environment = dict(os.environ)
  folders = [str(ROOT), str(HERE), str(ROOT / 'tests' / 'bench'),
             environment.get('PYTHONPATH', '')]
  environment['PYTHONPATH'] = os.pathsep.join(filter(None, folders))
  environment.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  platforms = environment.get('JAX_PLATFORMS', '')
  if platforms and 'cpu' not in platforms.split(','):
    environment['JAX_PLATFORMS'] = f'{platforms},cpu'
  environment['JAX_COMPILATION_CACHE_DIR'] = f'{scratch}/compiled'
  if name in ('jobs', 'bench'):  # Several processes share the device.
    environment['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
  else:
    environment.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.92')
  return environment


def _run_alone(options):
  """Runs one part in this process."""
  from parts import report as report_lib
  name, = options.parts
  scratch = pathlib.Path(options.alone) / name
  scratch.mkdir(parents=True, exist_ok=True)
  report = report_lib.Report(
      name, options.out, scratch, tiny=options.tiny,
      seconds=options.seconds - 5, only=options.only)
  try:
    report.describe_device()
    module = f'parts.{name}' if name in PARTS else name
    importlib.import_module(module).run(report)
  except report_lib.WantsGpuError as err:
    report.finish(report_lib.one_line(err))
    print(f'check.py: {err}', file=sys.stderr)
    return _WANTS_GPU
  except Exception as err:
    traceback.print_exc()
    report.finish(report_lib.one_line(err))
    return 1
  report.finish()
  return 0


if __name__ == '__main__':
  # The modules of haikd and of the parts may be imported from here.
  sys.path[:0] = [str(HERE)]
  sys.exit(main())
