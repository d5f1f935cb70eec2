"""Loads a config file, and overrides its fields with flags."""

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

# The name of the module that a config file becomes; other processes have none.
MODULE = 'config_file'
# Before the name of a config that comes with haikd.
_OURS = 'haikd:'
# In a checkout this is a link to configs/; a wheel has the files.
_FOLDER = pathlib.Path(config_lib.__file__).parents[1] / 'configs'


def split(flag: Optional[str]) -> tuple[str, Optional[str]]:
  """Returns the path of a config file, and its variant; None for none.

  Args:
    flag: the path of the file, or `haikd:<name>`; with an optional `:variant`.

  Raises:
    ConfigError: there is no flag, or haikd has no config of that name.
  """
  if not flag:
    raise checks.ConfigError(
        f'--config must name a config file; got {flag!r}. See --help.')
  path, colon, variant = flag.removeprefix(_OURS).partition(':')
  if flag.startswith(_OURS):
    names = [file.stem for file in _FOLDER.glob('*.py')]
    if path not in names:
      raise checks.ConfigError(
          f'--config=haikd:… must name a config that comes with haikd; got '
          f'{path!r}. {checks.suggest(path, names)}')
    path = str(_FOLDER / f'{path}.py')
  return path, variant if colon else None


def load(flag: Optional[str]) -> config_lib.ConfigDict:
  """Returns what `get_config` of a config file returns.

  Args:
    flag: as for `split`.

  Returns:
    The config that the file returns.

  Raises:
    ConfigError: there is no such file, or it does not return a config.
  """
  path, variant = split(flag)
  if not os.access(path, os.R_OK) or not os.path.isfile(path):
    raise checks.ConfigError(
        f'--config must name a file that can be read; got {path!r}. Give its '
        'path from the current folder, or haikd:<name> for one of haikd.')
  # A config may import modules beside it, and name them as plugins.
  sys.path.insert(0, str(pathlib.Path(path).resolve().parent))
  try:
    get_config = _import_file(path).get_config
    config = _call(get_config, path, () if variant is None else (variant,))
  except checks.ConfigError:
    raise
  # A config file is a program, which may raise anything and call sys.exit.
  except (Exception, SystemExit) as err:
    lines = [frame.lineno for frame in traceback.extract_tb(err.__traceback__)
             if frame.filename == path]
    line = f' (line {lines[-1]})' if lines else ''
    raise checks.ConfigError(
        f'--config must name a file that returns a config; got {path!r}: '
        f'{checks.describe(err)}{line}. Run with --debug for the traceback.'
    ) from err
  if not isinstance(config, config_lib.ConfigDict):
    raise checks.ConfigError(
        f'get_config of {path!r} must return a ConfigDict; got '
        f'{type(config).__name__}. Start it from haikd.config.base(), and end '
        'it with `return config`.')
  return config


def override(config: config_lib.ConfigDict, argv: list[str],
             known: Iterable[str]) -> None:
  """Sets fields from `--config.field=value`, and refuses any other argument.

  Args:
    config: the config to change; it is locked afterwards.
    argv: the program's name, then the arguments that are left when the
      program has parsed its own flags.
    known: the names of the program's own flags, to suggest one for a typo.

  Raises:
    ConfigError: an unknown field, a value of the wrong type, or an argument
      that is not an override.
  """
  config.unlock()
  values = flags.FlagValues()
  values.set_gnu_getopt(True)
  try:
    argv = _set_none(config, argv)
    for arg in argv[1:]:
      if match := re.match(r'--?(?:no)?config\.([^=]+)', arg):
        _add_missing(config, match[1])
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
        f'--{err.flagname} must be a known flag; got {err.flagname!r}. '
        f'{checks.suggest(err.flagname, known)}') from err
  except Exception as err:  # absl and ml_collections raise many types.
    raise wrong_flag(err) from err
  if surplus:
    raise checks.ConfigError(
        f'argument must be a flag; got {surplus[0]!r}. Write --flag=value, and '
        'see --help.')
  config.lock()


def wrong_flag(err: Exception) -> checks.ConfigError:
  """Returns the error for a flag that absl refuses."""
  text = checks.one_line(err).removeprefix('flag ').rstrip('.')
  flag, equals, _ = text.partition('=')
  rule = (f'{flag} must have a legal value'
          if flag.startswith('--') and equals else 'every flag must be valid')
  return checks.ConfigError(f'{rule}; got {text}. See --help.')


def _import_file(path):
  loader = importlib.machinery.SourceFileLoader(MODULE, path)
  module = importlib.util.module_from_spec(
      importlib.util.spec_from_loader(loader.name, loader))
  sys.modules[loader.name] = module  # Dataclasses look up their module there.
  loader.exec_module(module)
  if not callable(getattr(module, 'get_config', None)):
    raise checks.ConfigError(
        f'{path!r} must have a function get_config; got none. Write '
        "`def get_config(variant=''):` and return a config from it.")
  return module


def _call(get_config, path, variant):
  signature = inspect.signature(get_config)
  try:
    signature.bind(*variant)
  except TypeError as err:
    requested = f'the variant {variant[0]!r}' if variant else 'no variant'
    raise checks.ConfigError(
        f'get_config of {path!r} must take the variant after the colon of '
        f'--config; got {requested} for get_config{signature}. Write '
        "`def get_config(variant=''):`, and end it with "
        '`return config_lib.variant(config, variant)`.') from err
  return get_config(*variant)


def _set_none(config, argv):
  """Sets optional fields that flags give as None; returns the other flags.

  ml_collections would read the word as text, or refuse it for a number.
  """
  left = []
  for arg in argv:
    if left and arg == 'None' and left[-1].startswith(('--config.',
                                                       '-config.')):
      arg = f'{left.pop()}=None'  # Flag and value, each an argument.
    match = re.fullmatch(r'--?config\.([^=]+)=None', arg)
    if match is None or not _is_optional(match[1]):
      left.append(arg)
      continue
    _add_missing(config, match[1])
    *parents, last = config_path.split(match[1])
    group = config
    for name in parents:
      group = group[name]
    with group.ignore_type():
      group[last] = None
  return left


def _is_optional(path):
  """Returns whether a field may be None."""
  if path in config_lib.OPTIONAL_FIELDS:
    return True
  if path.startswith(tuple(f'{field}.' for field in config_lib.OPEN_FIELDS)):
    return True
  value = config_lib.base()
  for name in path.split('.'):
    if not isinstance(value, config_lib.ConfigDict) or name not in value:
      return False
    value = value[name]
  return value is None


def _add_missing(config, path):
  """Adds the parents of an overridden field, within open fields alone."""
  open_fields = tuple(f'config.{field}.' for field in config_lib.OPEN_FIELDS)
  if '/' in path and '[' not in path:
    quoted = re.sub(r'\.([^.]*/[^.]*)', r"['\1']", path)
    raise checks.ConfigError(
        f'config.{path} must have the name with a slash in brackets; got no '
        f'brackets. Write --config.{quoted}=….')
  try:
    *parents, last = names = config_path.split(path)
  except (SyntaxError, ValueError) as err:
    raise checks.ConfigError(
        f'config.{path} must be a path of fields, as config.data.name; got '
        f'{path!r}. Put other names in brackets and quotes.') from err
  group, field = config, 'config'  # The innermost field so far, and its path.
  for depth, name in enumerate(names):
    if not isinstance(group, config_lib.ConfigDict):
      raise checks.ConfigError(
          f'{field} must be a dict to have a field {name!r}; got {group!r}. '
          f'Override all of it: --{field}=….')
    if name not in group:
      if not f'{field}.'.startswith(open_fields):
        raise checks.ConfigError(
            f'{field}.{name} must be a field of the base config. '
            f'{checks.suggest(str(name), group)}')
      if depth == len(parents):
        return  # The field's type will be that of the value.
      group[name] = config_lib.ConfigDict()
    group, field = group[name], f'{field}.{name}'
  parent = config
  for name in parents:
    parent = parent[name]
  is_open = f'config.{path}'.startswith(open_fields)
  is_loose = names[0] == 'losses' and len(names) == 3 and last in (
      'weight', 'layers')
  if is_loose or is_open and (parent[last] is None or
                              type(parent[last]) is int):
    del parent[last]  # Its type may change: None to text, 1 to 0.5.
