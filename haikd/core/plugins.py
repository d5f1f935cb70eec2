"""Plugins: modules that register something when they are imported.

The config names them, or an installed package announces itself under the
entry-point group `haikd.plugins`.
"""

from collections.abc import Iterable
import importlib
import importlib.metadata

from haikd.core import checks

GROUP = 'haikd.plugins'


def load(modules: Iterable[str] = ()) -> None:
  """Imports the modules that a config names and those that packages announce.

  Args:
    modules: dotted names, `config.plugins`.

  Raises:
    ConfigError: a module cannot be imported, whatever it raises.
  """
  for module in modules:
    import_module(
        module, 'config.plugins must name modules that can be imported',
        'Install its package, or put it beside the config file.')
  for point in importlib.metadata.entry_points(group=GROUP):
    package = point.dist.name if point.dist else point.name
    import_module(
        point.value.partition(':')[0],
        f'installed package {package!r}, which announces a plugin, must be '
        'importable', f'Fix it, or run `pip uninstall {package}`.')


def import_module(module: str, rule: str, if_missing: str) -> None:
  """Imports a module of a user's.

  Args:
    module: its dotted name.
    rule: '<subject> must <rule>', the beginning of the message of an error.
    if_missing: its last sentence if there is no such module.

  Raises:
    ConfigError: it cannot be imported, whatever it raises.
  """
  try:
    importlib.import_module(module)
  except checks.ConfigError:  # A registration that is refused; it is named.
    raise
  # A plugin is user code, which may raise anything and call sys.exit.
  except (Exception, SystemExit) as err:
    is_missing = isinstance(err, ModuleNotFoundError) and (
        f'{module}.'.startswith(f'{err.name}.'))
    remedy = (if_missing if is_missing else
              'Fix that module; --debug shows the traceback.')
    raise checks.ConfigError(
        f'{rule}; got {module!r} ({checks.describe(err)}). {remedy}') from err
