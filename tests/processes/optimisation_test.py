"""haikd's own processes compile at a lower level, where only CPUs are."""

from importlib import metadata
import os
import subprocess
import sys
import textwrap

import pytest

from haikd.processes import optimisation

_CONFIG = """
    import os
    from haikd import config as config_lib

    def get_config():
      print(os.environ.get('XLA_FLAGS'))
      config = config_lib.base()
      config.steps = -1  # Refused, before anything runs.
      return config
"""


@pytest.mark.parametrize('flags, expected', [
    (None, '--xla_backend_optimization_level=1'),
    ('--xla_a=2', '--xla_a=2 --xla_backend_optimization_level=1'),
    ('--xla_backend_optimization_level=3',
     '--xla_backend_optimization_level=3')])
def test_what_the_caller_has_set_stays(flags, expected):
  environment = {} if flags is None else dict(XLA_FLAGS=flags)
  assert optimisation.with_level(environment) == expected


@pytest.mark.parametrize('platforms, modules, points, may', [
    ('cpu', ['jax_plugins', 'libtpu'], ['cuda'], False),
    ('cuda,cpu', [], [], True), ('cpu,cuda', [], [], True),
    ('', [], [], False), (None, [], [], False),
    (None, ['jax_plugins'], [], True), (None, ['libtpu'], [], True),
    (None, [], ['cuda'], True)])
def test_a_plugin_may_bring_an_accelerator(
    platforms, modules, points, may, monkeypatch):
  monkeypatch.setattr(
      optimisation.util, 'find_spec', lambda name: name in modules or None)
  monkeypatch.setattr(metadata, 'entry_points', lambda group: (
      points if group == 'jax_plugins' else ['another']))
  environment = {} if platforms is None else dict(JAX_PLATFORMS=platforms)
  assert optimisation.may_have_accelerator(environment) == may


def flags(tmp_path, *command, **environment):
  """Returns the flags that a process has once it reads its config."""
  path = tmp_path / 'config.py'
  path.write_text(textwrap.dedent(_CONFIG))
  others = {name: x for name, x in os.environ.items() if name != 'XLA_FLAGS'}
  return subprocess.run(
      [sys.executable, *command, f'--config={path}'], timeout=120, text=True,
      env={**others, 'JAX_PLATFORMS': 'cpu', **environment},
      stdout=subprocess.PIPE, check=False).stdout


def test_command_line_compiles_at_the_level(tmp_path):
  assert (flags(tmp_path, '-m', 'haikd.launch') ==
          '--xla_backend_optimization_level=1\n')


@pytest.mark.parametrize('command, environment', [
    (['-c', 'from haikd import launch; launch.main()'], {}),
    (['-m', 'haikd'], dict(JAX_PLATFORMS='cuda'))])
def test_other_processes_are_left_alone(command, environment, tmp_path):
  assert flags(tmp_path, *command, **environment) == 'None\n'
