"""How many cores a process may keep busy."""

import os

import pytest

from haikd.core import cgroups
from haikd.core import cores


@pytest.fixture(name='machine')
def _machine(tmp_path, monkeypatch):
  """Writes the control groups of a machine of 64 cores."""
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(64)))
  monkeypatch.setattr(cgroups, 'GROUPS', tmp_path / 'groups')
  monkeypatch.setattr(cgroups, 'ROOT', tmp_path)
  for name in cores._TASKS:
    monkeypatch.delenv(name, raising=False)

  def write(groups, files):
    (tmp_path / 'groups').write_text(groups + '\n')
    for name, content in files.items():
      path = tmp_path / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(content + '\n')

  return write


@pytest.mark.parametrize('groups, files, expected', (
    ('0::/', {}, 64),
    ('0::/', {'cpu.max': 'max 100000'}, 64),
    ('0::/', {'cpu.max': '250000 100000'}, 2),  # 2.5 cores.
    ('0::/', {'cpu.max': '50000 100000'}, 1),
    ('0::/pod/box', {'pod/cpu.max': '400000 100000',
                     'pod/box/cpu.max': 'max 100000'}, 4),
    # Version 1, where a container sees the path of its host.
    ('4:cpu,cpuacct:/docker/abc', {'cpu/cpu.cfs_quota_us': '600000',
                                   'cpu/cpu.cfs_period_us': '100000'}, 6),
    ('4:cpu:/', {'cpu/cpu.cfs_quota_us': '-1',
                 'cpu/cpu.cfs_period_us': '100000'}, 64),
    ('4:cpuset:/', {'cpu/cpu.cfs_quota_us': '100000',
                    'cpu/cpu.cfs_period_us': '100000'}, 64)))
def test_quota_of_a_container_counts(machine, groups, files, expected):
  machine(groups, files)
  assert cores.of_process() == expected


@pytest.mark.parametrize('name, value, expected', (
    ('SLURM_STEP_TASKS_PER_NODE', '1(x8)', 64),
    ('SLURM_STEP_TASKS_PER_NODE', '4(x2),3', 16),
    ('OMPI_COMM_WORLD_LOCAL_SIZE', '8', 8),
    ('OMPI_COMM_WORLD_LOCAL_SIZE', '200', 1)))
def test_processes_of_a_machine_share_its_cores(
    machine, monkeypatch, name, value, expected):
  machine('0::/', {})
  monkeypatch.setenv(name, value)
  assert cores.of_process() == expected
