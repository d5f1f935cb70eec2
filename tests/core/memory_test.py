"""The most memory that was used, and whose it is."""

import types

import numpy as np
import pytest

from haikd.core import memory


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
