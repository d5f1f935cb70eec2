"""How much memory a process may use, and how much it has used."""

import os
import types

import numpy as np
import pytest

from haikd.core import memory

GIB = 2**30
HUGE = '9223372036854771712'  # What version 1 says where there is no limit.


@pytest.mark.parametrize('groups, limits, expected', (
    # Version 2: a container, a job of Slurm with a limit above its step.
    ('0::/', {'memory.max': str(3 * GIB)}, 3 * GIB),
    ('0::/job/step', {'job/memory.max': str(GIB),
                      'job/step/memory.max': 'max'}, GIB),
    # Version 1; a container sees the path of its host, which is not there.
    ('4:memory:/docker/abc', {'memory/memory.limit_in_bytes': str(GIB)}, GIB),
    ('4:cpu,memory:/a\n0::/', {'memory/a/memory.limit_in_bytes': str(2 * GIB),
                               'memory/memory.limit_in_bytes': HUGE}, 2 * GIB),
    ('1:name=systemd:/\n3:cpuset:/', {'memory/memory.limit_in_bytes': '1'},
     None),
    ('0::/', {'memory.max': 'max'}, None),
    ('0::/', {}, None)))
def test_limit_of_a_control_group_counts(
    tmp_path, monkeypatch, groups, limits, expected):
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  for name, content in limits.items():
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content + '\n')
  (tmp_path / 'groups').write_text(groups + '\n')
  found = list(memory._limits(tmp_path / 'groups', tmp_path))
  assert min([total, *found]) == (expected or total)


def test_limit_is_that_of_this_process(tmp_path, monkeypatch):
  monkeypatch.setattr(memory, '_limits', lambda groups, root: [GIB])
  assert memory.of_host() == GIB


def test_without_control_groups_the_machine_is_the_limit(tmp_path):
  assert not list(memory._limits(tmp_path / 'none', tmp_path))


@pytest.mark.parametrize('stats, expected', [
    ([dict(peak_bytes_in_use=3), dict(peak_bytes_in_use=5)], ('device', 5)),
    ([None, {}], None),  # A plugin that does not say.
])
def test_peak_is_that_of_the_fullest_device(stats, expected):
  devices = [types.SimpleNamespace(platform='gpu', memory_stats=lambda x=x: x)
             for x in stats]
  assert memory.peak(devices) == expected


def test_peak_on_cpu_is_that_of_the_process():
  devices = [types.SimpleNamespace(platform='cpu')]
  owner, _ = memory.peak(devices)
  block = np.ones(2**28, np.uint8)
  assert owner == 'process'
  assert memory.peak(devices)[1] >= len(block)
