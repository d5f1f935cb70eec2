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
    _import(
        module, 'config.plugins must name modules that can be imported',
        'Install its package, or put it beside the config file.')
  for point in importlib.metadata.entry_points(group=GROUP):
    package = point.dist.name if point.dist else point.name
    _import(
        point.value.partition(':')[0],
        f'installed package {package!r}, which announces a plugin, must be '
        'importable', f'Fix it, or run `pip uninstall {package}`.')


def _import(module, rule, if_missing):
  try:
    importlib.import_module(module)
  except checks.ConfigError:  # A registration that is refused; it is named.
    raise
  except Exception as err:  # A plugin is user code and may raise anything.
    is_missing = isinstance(err, ModuleNotFoundError) and (
        f'{module}.'.startswith(f'{err.name}.'))
    remedy = (if_missing if is_missing else
              'Fix that module; --debug shows the traceback.')
    raise checks.ConfigError(
        f'{rule}; got {module!r} ({checks.describe(err)}). {remedy}') from err
