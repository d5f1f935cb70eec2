"""haikd: distil a large network into a small one.

  python -m haikd.launch --config=configs/digits_mlp_from_convnet.py
  python -m haikd.launch --config=configs/x.py --config.steps=500 --workdir=DIR
  python -m haikd.launch --config=configs/x.py --mode=eval
  python -m haikd.launch --config=configs/x.py --seeds=10
  python -m haikd.launch --config=configs/x.py --mode=sweep --seeds=3
  python -m haikd.launch --config=configs/x.py --mode=plan --topology=v5e:16x16
  python -m haikd.launch --config=configs/x.py --mode=export --format=stablehlo
  python -m haikd.launch --config=configs/x.py --mode=teach

`python -m haikd` and `haikd` are the same.

A config file has a function `get_config()` that starts from
`haikd.config.base()`, which documents every field. Any field can be overridden
with `--config.some.field=value`. An override may also add a key to an open
field such as `config.student.options`. `--config=configs/x.py:smoke` asks the
file for a variant; --mode=sweep compares variants with one another.
`--config=haikd:digits_mlp_from_convnet` is one that comes with haikd. Start an
interrupted run again to resume it.

Several processes can work as one run. On a TPU pod, GKE, Slurm and under Open
MPI they find one another; elsewhere give each --coordinator=host:port
--num_processes=N --process_id=I. They must share the workdir.

Compiled programs are kept in ~/.cache/haikd/compiled (below XDG_CACHE_HOME). If
JAX_COMPILATION_CACHE_DIR is set, it is another folder; empty, it keeps none.
On Linux, large arrays lie in huge pages, which makes steps on a CPU faster;
GLIBC_TUNABLES=glibc.malloc.hugetlb=0 keeps them in small ones.

Exit codes: 0 done; 1 a bug, or an unforeseen error in your own code; 2 wrong
config, flag or plugin; 3 unusable data, checkpoint, file or server; 4 training
diverged; 5 the planned step does not fit; 6 another process of the run has
failed, is dead or hangs; 7 the run does not get on; 75 stopped by SIGTERM and
saved, so that a new start resumes the run; 130 interrupted; 141 nobody reads
the output any more.
"""

import functools
import pathlib
import shlex
import signal
import sys
import traceback
from typing import Optional

from absl import flags

from haikd import config as config_lib
from haikd.config import file as config_file
from haikd.core import checks
from haikd.core import garbage
from haikd.core import notes
from haikd.core import plugins
from haikd.processes import distributed
from haikd.processes import leaving
from haikd.processes import watchdog
from haikd.run import console
from haikd.run import environment
from haikd.run import launch_flags
from haikd.storage import paths

# Errors that a user can fix, each with an exit code of its own.
_FORESEEN = (checks.ConfigError, checks.DataError, checks.DivergedError,
             checks.DoesNotFitError, checks.LostProcessError)
_BROKEN_PIPE = 128 + signal.SIGPIPE
_FLAGS = dict(  # Each of one mode, and what holds in others.
    topology=('plan', 'A run uses the devices that it finds.'),
    output=('export', 'A run writes to its --workdir.'),
    format=('export', 'Export when the run is done.'),
    server=('teach', 'Training reads what --mode=teach has recorded.'),
    profile=('train', 'Only training has steps to trace.'),
    allow_config_change=('train', 'Only training goes on with another config.'))


def main(argv: Optional[list[str]] = None) -> int:
  """Runs the command line.

  Args:
    argv: the program's name and its arguments; `sys.argv` by default.

  Returns:
    The exit code.
  """
  environment.open_closed_streams()
  argv = list(sys.argv if argv is None else argv)
  values = launch_flags.define()
  try:
    overrides = _parse(values, argv)
    if values.help or len(argv) == 1:
      print(f'{__doc__}\n{values.get_help()}')
      return 0
    _check_mode(values)
    if values.mode != 'plan':
      distributed.initialize(values.coordinator, values.num_processes,
                             values.process_id)
    load = functools.partial(_load, values, overrides)
    with notes.printed(distributed.is_first()):
      config = load(values.config)
      environment.quiet()
      _say_start(values)
      if values.mode != 'plan':
        environment.check_devices()
      environment.use_compilation_cache()
      plugins.load(config.plugins)
      with watchdog.watched(config.guard.hang_after, ends_process=True):
        _run(config, values, _command(argv), load)
    distributed.finish()
    return 0
  except checks.StoppedError as err:
    distributed.finish()  # All processes stop at the same step.
    print(f'haikd{distributed.label()}: {err}', file=sys.stderr)
    return err.exit_code
  except (Exception, KeyboardInterrupt, SystemExit) as err:
    if console.nobody_reads(err):  # They have seen enough.
      if distributed.is_many():
        distributed.leave(_BROKEN_PIPE, err)
      return _BROKEN_PIPE
    if isinstance(err, SystemExit):
      raise
    # An unforeseen error is printed as one line, too.
    debug = _wants_debug(values, argv)
    if debug:
      traceback.print_exc()
    cause = distributed.explain(err)
    if (code := _exit_code(cause)) != 1 or not debug:  # A bug has a traceback.
      print(f'haikd{distributed.label()}: {_line(cause)}', file=sys.stderr)
    if distributed.is_many():
      distributed.leave(code, cause)
    return code


def _load(values, overrides, flag):
  """Returns the validated config that a flag names, with its overrides."""
  config = config_file.load(flag)
  config_file.override(config, overrides, known=tuple(values))
  if values.profile and not config.profile.steps:
    config.profile.steps = config_lib.profiled(config)
  config_lib.validate(config)
  return config


def _run(config, values, command, load):
  workdir = _workdir(values)
  # Imports are here since they take half a second: a line comes before them.
  if values.mode == 'plan':
    from haikd import plan
    plan.plan(config, values.topology or ['cpu:8'], workdir, debug=values.debug)
  elif values.mode == 'eval':
    from haikd.run import job
    job.evaluate(config, workdir, command)
  elif values.mode == 'export':
    from haikd.run import export
    print(export.export(config, workdir, values.output, values.format or 'hf'))
  elif values.mode == 'teach' and values.server:
    from haikd.run import served
    served.teach(config, workdir, values.server)
  elif values.mode == 'teach':
    from haikd.run import teach
    teach.teach(config, workdir)
  elif values.mode == 'sweep':
    from haikd.run import sweep
    sweep.train(
        lambda variant: load(f'{values.config}:{variant}') if variant else
        config, workdir, values.seeds, command)
  elif values.seeds > 1:
    from haikd.run import seeds
    seeds.train(config, workdir, values.seeds, command)
  else:
    with garbage.uncollected():
      from haikd.run import job
    job.train(config, workdir, command, values.allow_config_change)


def _command(argv):
  """Returns the command line as it can be typed."""
  return shlex.join(['python', '-m', 'haikd.launch', *argv[1:]])


def _say_start(values):
  """Says what is being done, long before the first step is compiled."""
  # What an export prints is the folder, for scripts to read.
  if values.mode != 'export' and distributed.is_first():
    print(f'compiling {values.config} for {_workdir(values)}', flush=True)


def _line(err):
  """Returns the line that the user sees for an error."""
  if isinstance(err, _FORESEEN):
    return checks.one_line(err)
  if isinstance(err, KeyboardInterrupt):
    return 'interrupted; start it again to resume from the newest checkpoint.'
  return f'{checks.describe(err)}; run with --debug for the traceback'


def _exit_code(err):
  if isinstance(err, _FORESEEN):
    return err.exit_code
  return 130 if isinstance(err, KeyboardInterrupt) else 1


def _parse(values, argv):
  """Parses the flags; returns the other arguments, the config's overrides."""
  try:
    return values(argv, known_only=True)
  except flags.Error as err:
    raise config_file.wrong_flag(err) from err


def _check_mode(values):
  """Refuses flags that the mode does not use."""
  if values.mode == 'sweep' and config_file.split(values.config)[1]:
    raise checks.ConfigError(
        '--config must have no variant with --mode=sweep, which trains those '
        f'of config.sweep.methods; got {values.config}. Leave it out.')
  other = ('' if values.mode in ('train', 'sweep') else f'--mode={values.mode}'
           ) or ('--allow_config_change' if values.allow_config_change else '')
  if values.seeds > 1 and other:
    raise checks.ConfigError(
        f'--seeds must be left out with {other}; got --seeds={values.seeds}. '
        'Give the --workdir of one seed.')
  for flag, (mode, remedy) in _FLAGS.items():
    if values[flag].value and values.mode != mode:
      raise checks.ConfigError(
          f'--{flag} must be left out unless --mode={mode}; got '
          f'--mode={values.mode}. {remedy}')


def _wants_debug(values, argv):
  return values.debug if values.is_parsed() else '--debug' in argv


def _workdir(values):
  if values.workdir:
    return paths.as_path(values.workdir)
  path, variant = config_file.split(values.config)
  name = pathlib.Path(path).stem
  return pathlib.Path('runs') / (f'{name}-{variant}' if variant else name)


if __name__ == '__main__':
  leaving.leave(main())
