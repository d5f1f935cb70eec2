"""A config file: how it is loaded, and how flags override its fields."""

from collections.abc import Iterable
import importlib.machinery
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import traceback
from typing import Optional

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from haikd import config as config_lib
from haikd.core import checks


def load(flag: Optional[str]) -> config_lib.ConfigDict:
  """Returns what `get_config` of a config file returns.

  Args:
    flag: the path of the file, with an optional `:variant`.

  Returns:
    The config, as the file made it.

  Raises:
    ConfigError: there is no such file, or it does not give a config.
  """
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
        f'{path!r}: {checks.describe(err)}{place}. Run with --debug for the '
        'traceback.') from err
  if not isinstance(config, config_lib.ConfigDict):
    raise checks.ConfigError(
        f'launch.main: get_config of {path!r} must return a ConfigDict; got '
        f'{type(config).__name__}. Start it from haikd.config.base(), and end '
        'it with `return config`.')
  return config


def override(config: config_lib.ConfigDict, argv: list[str],
             known: Iterable[str]) -> None:
  """Sets what `--config.field=value` says, and refuses any other argument.

  Args:
    config: is changed, and locked.
    argv: the program's name and what the other flags have left.
    known: the names of those flags, for messages.

  Raises:
    ConfigError: a field that is none, a value of the wrong type, or what is no
      override.
  """
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
    raise wrong_flag(err) from err
  if surplus:
    raise checks.ConfigError(
        f'launch.main: argument must be a flag; got {surplus[0]!r}. Write '
        '--flag=value, and see --help.')
  config.lock()


def wrong_flag(err: Exception,
               where: str = 'launch.main') -> checks.ConfigError:
  """Returns the error for a flag that absl refuses, at the given place."""
  text = checks.one_line(err).removeprefix('flag ').rstrip('.')
  return checks.ConfigError(
      f'{where}: every flag must be valid; got {text}. See --help.')


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


def _make_room(config, path):
  """Adds what an override names, if it lies in an open field of the config."""
  holder, place = config, ''
  open_fields = tuple(f'.{field}.' for field in config_lib.OPEN_FIELDS)
  if '/' in path and '[' not in path:
    group, _, key = path.partition('placement.')
    raise checks.ConfigError(
        f'launch.main: config.{path} must have a name with a slash in brackets;'
        f" got none. Write --config.{group}placement['{key}']=….")
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
