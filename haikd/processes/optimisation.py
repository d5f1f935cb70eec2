"""On a CPU, LLVM optimises programs at its level 1; XLA would choose 3.

CPU time at level 1 divided by that at level 3, in turn on one core (JAX 0.10.2,
Intel Xeon with AVX-512, the cases of `python -m haikd.bench --cores=1` with
`XLA_FLAGS=--xla_backend_optimization_level=1` and `3`):

  compiling `logits`, `vision`, `digits_vit`, `fashion_convnet`   0.81-0.88
  steps of images                                                 0.96-0.98
  steps of text, without records                                  0.97-1.00
  steps on records                                                1.00-1.01
  losses alone                                                    0.91-1.00

Losses of the first steps agree to 1e-7. Level 0 halves the time of compiling
again, and doubles that of steps.
"""

from collections.abc import Mapping
from importlib import metadata
from importlib import util
import os

from haikd.processes import command_line

_VARIABLE = 'XLA_FLAGS'  # XLA reads it when JAX first looks for devices.
_FLAG = '--xla_backend_optimization_level'
_LEVEL = 1


def use() -> None:
  """Sets the level for haikd's command line, unless the caller has set it.

  A process that is not haikd's own is left alone, and so is one that may find
  an accelerator: the flag holds for all that XLA compiles.
  """
  if command_line.is_own() and not may_have_accelerator(os.environ):
    os.environ[_VARIABLE] = with_level(os.environ)


def with_level(environment: Mapping[str, str]) -> str:
  """Returns the flags of a process, with a level if they have none."""
  flags = environment.get(_VARIABLE, '')
  return flags if _FLAG in flags else f'{flags} {_FLAG}={_LEVEL}'.strip()


def may_have_accelerator(environment: Mapping[str, str]) -> bool:
  """Returns whether JAX may find more than CPUs, without asking it."""
  if platforms := environment.get('JAX_PLATFORMS'):
    return platforms != 'cpu'
  # A package of plugins for JAX has this module or an entry point of its name.
  return any(map(util.find_spec, ('jax_plugins', 'libtpu'))) or bool(
      metadata.entry_points(group='jax_plugins'))
