"""haikd: distil a large network into a small one.

  python -m haikd.launch --config=configs/digits_mlp_from_convnet.py
  python -m haikd.launch --config=configs/x.py --config.steps=500 --workdir=DIR
  python -m haikd.launch --config=configs/x.py --mode=eval
  python -m haikd.launch --config=configs/x.py --seeds=10

A config file has a function `get_config()` that starts from
`haikd.config.base()`, which documents every field. Any field can be overridden
with `--config.some.field=value`, also one that an open field such as
`config.student.options` does not hold yet; `--config=configs/x.py:smoke` asks
the file for a variant. A run that was interrupted goes on when it is started
again.

Exit codes: 0 done; 1 a defect, or something unforeseen in your own code; 2
wrong config, flag or plugin; 3 data, checkpoint or file that cannot be used; 4
training diverged; 130 interrupted.
"""

import importlib.machinery
import importlib.util
import inspect
import logging
import os
import pathlib
import re
import sys
import traceback
from typing import Optional

from absl import flags
from absl import logging as absl_logging
import jax
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from haikd import checks
from haikd import config as config_lib
from haikd import job
from haikd import paths
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
  argv = list(sys.argv if argv is None else argv)
  values = _define_flags()
  try:
    overrides = _parse(values, argv)
    if values.help or len(argv) == 1:
      print(f'{__doc__}\n{values.get_help()}')
      return 0
    if values.seeds > 1 and values.mode != 'train':
      raise checks.ConfigError(
          f'launch.main: --seeds must be left out with --mode={values.mode}; '
          f'got --seeds={values.seeds}. Give the --workdir of one seed.')
    config = _load_config(values.config)
    _override(config, overrides, known=tuple(values))
    _quiet()
    _use_compilation_cache()
    config_lib.validate(config)
    registry.load_plugins(config.plugins)
    if values.seeds > 1:
      repeats.train(config, _workdir(values), values.seeds)
    else:
      _MODES[values.mode](config, _workdir(values))
    return 0
  except (checks.ConfigError, checks.DataError, checks.DivergedError) as err:
    if _wants_debug(values, argv):
      traceback.print_exc()
    print(f'haikd: {checks.one_line(err)}', file=sys.stderr)
    return err.exit_code
  except KeyboardInterrupt:
    print('haikd: interrupted; start it again to go on from the newest '
          'checkpoint.', file=sys.stderr)
    return 130
  except Exception as err:  # Nobody foresaw it: still one line.
    if _wants_debug(values, argv):
      traceback.print_exc()
    else:
      print(f'haikd: {_describe(err)}; run with --debug for the traceback',
            file=sys.stderr)
    return 1


def _define_flags():
  values = flags.FlagValues()
  flags.DEFINE_string(
      'config',
      None,
      'Config file, with an optional :variant; --config.field=value overrides.',
      flag_values=values)
  flags.DEFINE_string(
      'workdir',
      None,
      'Folder of the run, on disk or gs://bucket/…; runs/<config> by default.',
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
  values.set_gnu_getopt(True)
  return values


def _parse(values, argv):
  """Parses the flags; returns what is left, the config's overrides."""
  try:
    return values(argv, known_only=True)
  except flags.Error as err:
    raise _wrong_flag(err) from err


def _load_config(flag):
  """Returns what `get_config` of a config file returns."""
  if not flag:
    raise checks.ConfigError(
        f'launch.main: --config must name a config file; got {flag!r}. See '
        '--help.')
  path, colon, variant = flag.partition(':')
  if not os.access(path, os.R_OK) or not os.path.isfile(path):
    raise checks.ConfigError(
        f'launch.main: --config must name a file that can be read; got {path!r}'
        '. Give its path from the current folder.')
  # A config may import, and name as plugins, what lies beside it.
  sys.path.insert(0, str(pathlib.Path(path).resolve().parent))
  try:
    get_config = _import_file(path).get_config
    config = _call(get_config, path, (variant,) if colon else ())
  except checks.ConfigError:
    raise
  except Exception as err:  # A config file is a program.
    lines = [frame.lineno for frame in traceback.extract_tb(err.__traceback__)
             if frame.filename == path]
    place = f' (line {lines[-1]})' if lines else ''
    raise checks.ConfigError(
        f'launch.main: --config must name a file that gives a config; got '
        f'{path!r}: {_describe(err)}{place}. Run with --debug for the '
        'traceback.') from err
  if not isinstance(config, config_lib.ConfigDict):
    raise checks.ConfigError(
        f'launch.main: get_config of {path!r} must return a ConfigDict; got '
        f'{type(config).__name__}. Start it from haikd.config.base(), and end '
        'it with `return config`.')
  return config


def _import_file(path):
  loader = importlib.machinery.SourceFileLoader('config_file', path)
  module = importlib.util.module_from_spec(
      importlib.util.spec_from_loader(loader.name, loader))
  sys.modules[loader.name] = module  # Dataclasses look for their module there.
  loader.exec_module(module)
  if not callable(getattr(module, 'get_config', None)):
    raise checks.ConfigError(
        f'launch.main: {path!r} must have a function get_config; got none. '
        "Write `def get_config(variant=''):` and return a config from it.")
  return module


def _call(get_config, path, variant):
  signature = inspect.signature(get_config)
  try:
    signature.bind(*variant)
  except TypeError as err:
    asked = f'the variant {variant[0]!r}' if variant else 'no variant'
    raise checks.ConfigError(
        f'launch.main: get_config of {path!r} must take what stands behind the '
        f'colon of --config; got {asked} for get_config{signature}. Write '
        "`def get_config(variant=''):`, and end it with "
        '`return config_lib.variant(config, variant)`.') from err
  return get_config(*variant)


def _override(config, argv, known):
  """Sets what `--config.field=value` says, and refuses any other argument."""
  config.unlock()
  values = flags.FlagValues()
  values.set_gnu_getopt(True)
  try:
    for arg in argv[1:]:
      if match := re.match(r'--?(?:no)?config\.([^=]+)', arg):
        _make_room(config, match[1])
    config_flags.DEFINE_config_dict(
        'config',
        config,
        flag_values=values,
        lock_config=False,
        accept_new_attributes=True,
        sys_argv=argv)
    surplus = values(argv)[1:]
  except checks.ConfigError:
    raise
  except flags.UnrecognizedFlagError as err:
    raise checks.ConfigError(
        f'launch.main: --{err.flagname} must be a flag there is; got '
        f'{err.flagname!r}. {checks.suggest(err.flagname, known)}') from err
  except Exception as err:  # absl and ml_collections raise many.
    raise _wrong_flag(err) from err
  if surplus:
    raise checks.ConfigError(
        f'launch.main: argument must be a flag; got {surplus[0]!r}. Write '
        '--flag=value, and see --help.')
  config.lock()


def _make_room(config, path):
  """Adds what an override names, if it lies in an open field of the config."""
  holder, place = config, ''
  open_fields = tuple(f'.{field}.' for field in config_lib.OPEN_FIELDS)
  *parents, last = names = config_path.split(path)
  for depth, name in enumerate(names):
    if not isinstance(holder, config_lib.ConfigDict):
      raise checks.ConfigError(
          f'launch.main: config{place} must be a dict to have a field {name!r};'
          f' got {holder!r}. Override it as a whole.')
    if name not in holder:
      if not f'{place}.'.startswith(open_fields):
        raise checks.ConfigError(
            f'launch.main: config{place}.{name} must be a field of the base '
            f'config. {checks.suggest(str(name), holder)}')
      if depth == len(parents):
        return  # Its type will be that of the value.
      holder[name] = config_lib.ConfigDict()
    holder, place = holder[name], f'{place}.{name}'
  if names[0] == 'losses' and len(names) == 3 and last in ('weight', 'layers'):
    del config.losses[names[1]][last]  # These may change their type.


def _wrong_flag(err):
  text = checks.one_line(err).removeprefix('flag ').rstrip('.')
  return checks.ConfigError(
      f'launch.main: every flag must be valid; got {text}. See --help.')


def _describe(err):
  return f'{type(err).__name__}: {checks.one_line(err)}'.rstrip('.')


def _wants_debug(values, argv):
  return values.debug if values.is_parsed() else '--debug' in argv


def _workdir(values):
  if values.workdir:
    return paths.as_path(values.workdir)
  path, _, variant = values.config.partition(':')
  name = pathlib.Path(path).stem
  return pathlib.Path('runs') / (f'{name}-{variant}' if variant else name)


def _quiet():
  """Keeps what the libraries tell their own developers from the user."""
  absl_logging.set_verbosity(absl_logging.ERROR)
  logging.getLogger('jax').setLevel(logging.ERROR)
  # Its errors are raised as well.
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)


def _use_compilation_cache():
  """Keeps compiled programs in the user's cache: half of the first step."""
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update('jax_compilation_cache_dir',
                      str(pathlib.Path(cache) / 'haikd' / 'compiled'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


if __name__ == '__main__':
  sys.exit(main())
