"""haikd: distil a large network into a small one.

  python -m haikd.launch --config=configs/digits_mlp_from_convnet.py
  python -m haikd.launch --config=configs/x.py --config.steps=500 --workdir=DIR
  python -m haikd.launch --config=configs/x.py --mode=eval

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

_MODES = {'train': job.train, 'eval': job.evaluate}

_FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, with an optional :variant.',
    flag_values=_FLAGS)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of the run; runs/<config> by default.',
    flag_values=_FLAGS)
_MODE = flags.DEFINE_enum(
    'mode', 'train', sorted(_MODES), 'What to do.', flag_values=_FLAGS)
_DEBUG = flags.DEFINE_bool(
    'debug', False, 'Show the traceback of an error.', flag_values=_FLAGS)
_HELP = flags.DEFINE_bool(
    'help', False, 'Show this help.', short_name='h', flag_values=_FLAGS)


def main(argv: Optional[list[str]] = None) -> int:
  """Runs the command line.

  Args:
    argv: the program's name and its arguments; `sys.argv` by default.

  Returns:
    The exit code.
  """
  argv = sys.argv if argv is None else argv
  try:
    config, workdir = _parse(argv)
    if config is None:
      print(f'{__doc__}\n{_FLAGS.get_help()}')
      return 0
    _quiet()
    _use_compilation_cache()
    registry.load_plugins(config.plugins)
    config_lib.validate(config)
    _MODES[_FLAGS.mode](config, workdir)
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


def _parse(argv):
  """Returns the config and the workdir; (None, None) if help was asked for."""
  try:
    surplus = _FLAGS(argv)[1:]
    if _FLAGS.help or len(argv) == 1:
      return None, None
    if surplus:
      raise flags.Error(f'unexpected argument {surplus[0]!r}')
    if _FLAGS.config is None:
      raise flags.Error('--config must name a config file')
    config = _FLAGS.config
    config.to_dict()  # A file that could not be read raises here.
  except checks.ConfigError:
    raise
  except Exception as err:  # Whatever the user's config file raises.
    raise checks.ConfigError(
        f'launch.main: {_last_line(err)}. See --help.') from err
  name, _, variant = _FLAGS['config'].config_filename.partition(':')
  default = pathlib.Path('runs') / '-'.join(
      filter(None, (pathlib.Path(name).stem, variant)))
  # A config may name plugins that lie beside it.
  sys.path.insert(0, str(pathlib.Path(name).resolve().parent))
  return config, pathlib.Path(_FLAGS.workdir or default)


def _last_line(err):
  """Returns what went wrong; flags wrap a config's error in its traceback."""
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
