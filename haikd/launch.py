"""haikd: distil a large network into a small one.

  python -m haikd.launch --config=configs/digits_mlp_from_convnet.py
  python -m haikd.launch --config=configs/x.py --config.steps=500 --workdir=DIR
  python -m haikd.launch --config=configs/x.py --mode=eval
  python -m haikd.launch --config=configs/x.py --seeds=10

A config file has a function `get_config()` that starts from
`haikd.config.base()`, which documents every field. Any field can be overridden
with `--config.some.field=value`; `--config=configs/x.py:smoke` asks the file
for a variant. A run that was interrupted goes on when it is started again.

Exit codes: 0 done; 2 wrong config or flag; 3 data, checkpoint or file that
cannot be used; 4 training diverged; 130 interrupted.
"""

import logging
import os
import pathlib
import sys
import traceback
from typing import Optional

from absl import flags
from absl import logging as absl_logging
import jax
from ml_collections import config_flags

from haikd import checks
from haikd import config as config_lib
from haikd import job
from haikd import registry
from haikd import repeats

_MODES = {'train': job.train, 'eval': job.evaluate}


def main(argv: Optional[list[str]] = None) -> int:
  """Runs the command line.

  Args:
    argv: the program's name and its arguments; `sys.argv` by default.

  Returns:
    The exit code.
  """
  argv = sys.argv if argv is None else argv
  values = _define_flags(argv)
  try:
    _parse(values, argv)
    if values.help or len(argv) == 1:
      print(f'{__doc__}\n{values.get_help()}')
      return 0
    config = _load_config(values)
    _quiet()
    _use_compilation_cache()
    registry.load_plugins(config.plugins)
    config_lib.validate(config)
    if values.seeds > 1 and values.mode == 'train':
      repeats.train(config, _workdir(values), values.seeds)
    else:
      _MODES[values.mode](config, _workdir(values))
    return 0
  except (checks.ConfigError, checks.DataError, checks.DivergedError) as err:
    if '--debug' in argv:
      traceback.print_exc()
    print(f'haikd: {checks.one_line(err)}', file=sys.stderr)
    return err.exit_code
  except KeyboardInterrupt:
    print('haikd: interrupted; start it again to go on from the newest '
          'checkpoint.', file=sys.stderr)
    return 130


def _define_flags(argv):
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
      'config',
      help_string='Config file, with an optional :variant.',
      flag_values=values,
      sys_argv=argv)
  flags.DEFINE_string(
      'workdir',
      None,
      'Folder of the run; runs/<config> by default.',
      flag_values=values)
  flags.DEFINE_enum(
      'mode', 'train', sorted(_MODES), 'What to do.', flag_values=values)
  flags.DEFINE_integer(
      'seeds',
      1,
      'Train so many times, with seeds from config.seed on, and print means '
      'with 95 % intervals.',
      lower_bound=1,
      flag_values=values)
  flags.DEFINE_bool(
      'debug', False, 'Show the traceback of an error.', flag_values=values)
  flags.DEFINE_bool('help', False, 'Show this help.', flag_values=values)
  return values


def _parse(values, argv):
  """Parses the flags; whatever a config file raises becomes a ConfigError."""
  path = next((a.partition('=')[2] for a in argv if a.startswith('--config=')),
              '')
  if path:  # A config may import, and name as plugins, what lies beside it.
    folder = pathlib.Path(path.partition(':')[0]).resolve().parent
    sys.path.insert(0, str(folder))
  try:
    surplus = values(argv)[1:]
  except checks.ConfigError:
    raise
  except Exception as err:
    raise checks.ConfigError(
        f'launch.main: {_last_line(err)}. See --help.') from err
  if surplus:
    raise checks.ConfigError(
        f'launch.main: argument must be a flag; got {surplus[0]!r}. See '
        '--help.')


def _load_config(values):
  """Returns the config; one whose file is not there fails when it is read."""
  if values.config is None:
    raise checks.ConfigError(
        'launch.main: --config must name a config file; got none. See --help.')
  try:
    values.config.to_dict()
  except OSError as err:
    raise checks.ConfigError(
        'launch.main: --config must name a file that can be read; got '
        f"{values['config'].config_filename!r}.") from err
  return values.config


def _workdir(values):
  if values.workdir:
    return pathlib.Path(values.workdir)
  path, _, variant = values['config'].config_filename.partition(':')
  name = pathlib.Path(path).stem
  return pathlib.Path('runs') / (f'{name}-{variant}' if variant else name)


def _last_line(err):
  """Returns what went wrong, on one line.

  absl wraps what a config file raises in the text of its traceback, and
  ml_collections quotes what it raises once more.
  """
  if isinstance(err, KeyError):
    return ': '.join(str(err.args[0]).splitlines())
  lines = [line.strip() for line in str(err).splitlines() if line.strip()]
  return lines[-1].rstrip('.') if lines else type(err).__name__


def _quiet():
  """Keeps what the libraries tell their own developers from the user."""
  absl_logging.set_verbosity(absl_logging.ERROR)
  logging.getLogger('jax').setLevel(logging.ERROR)


def _use_compilation_cache():
  """Keeps compiled programs in the user's cache: half of the first step."""
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update('jax_compilation_cache_dir',
                      str(pathlib.Path(cache) / 'haikd' / 'compiled'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


if __name__ == '__main__':
  sys.exit(main())
