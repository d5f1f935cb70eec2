"""Checks that the losses of a plugin keep the contract of a loss.

  python -m haikd.check my_pkg.losses [another.module …] [--debug]

imports the modules and tries each loss that they register; see
`haikd.testing.check_loss` for the rules. A line says that a loss keeps them, or
which one it breaks, what was expected and what came.

Exit codes: 0 all losses keep their contract; 1 a bug; 2 a loss breaks a rule, a
module cannot be imported, or none registers a loss; 130 interrupted; 141 nobody
reads what is printed.
"""

import os
import sys
from typing import Optional

from haikd import testing
from haikd.core import checks
from haikd.core import plugins
from haikd.core import registry
from haikd.run import command


def main(argv: Optional[list[str]] = None) -> int:
  """Runs the command line.

  Args:
    argv: the program's name and its arguments; `sys.argv` by default.

  Returns:
    The exit code.
  """
  modules = list(sys.argv if argv is None else argv)[1:]
  debug = '--debug' in modules
  modules = [name for name in modules if name != '--debug']
  if not modules or modules[0] in ('--help', '-h'):
    print(__doc__)
    return 0
  return command.run(lambda: _check(modules), debug=debug)


def _check(modules: list[str]) -> int:
  if os.getcwd() not in sys.path:  # A console script does not look there.
    sys.path.insert(0, os.getcwd())
  for module in modules:
    plugins.import_module(
        module, 'argument must be a module that can be imported',
        'Run it from the folder that the package is in.')
  names = [name for name in registry.losses.names()
           if _is_of(registry.losses[name].module, modules)]
  if not names:
    raise checks.ConfigError(
        'argument must be a module that registers a loss; got '
        f'{", ".join(modules)}. Name the one with @haikd.register_loss.')
  broken = 0
  for name in names:
    found = testing.violations(name)
    broken += bool(found)
    for line in found or [f'{name} keeps all {len(testing.RULES)} rules']:
      print(line, flush=True)
  return checks.ConfigError.exit_code if broken else 0


def _is_of(module: str, modules: list[str]) -> bool:
  return any(f'{module}.'.startswith(f'{name}.') for name in modules)


if __name__ == '__main__':
  sys.exit(main())
