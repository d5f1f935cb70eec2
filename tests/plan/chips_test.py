"""Chips: names of topologies, devices that are here, and half of a chip."""

import types

import jax
from jax.experimental import topologies
import pytest

from haikd.core import checks
from haikd.engine import peaks
from haikd.plan import chips


@pytest.mark.parametrize('name, chip, shape, slices', [
    ('v5e:16x16', 'v5e', (16, 16), 1),
    ('v5p:8x8x8', 'v5p', (8, 8, 8), 1),
    ('v5p:16x16x24', 'v5p', (16, 16, 24), 1),
    ('2*v5e:16x16', 'v5e', (16, 16), 2),
    (' V6E:4x4 ', 'v6e', (4, 4), 1),
    ('cpu:8', 'cpu', (8,), 1),
    ('gpu', 'gpu', (), 1),
])
def test_topology_is_read(name, chip, shape, slices):
  topology = chips.parse_topology(name)
  assert topology == (name.strip(), chip, shape, slices)


@pytest.mark.parametrize('name, match', [
    ('v5x:4x4', "begin with a known chip; got 'v5x:4x4'. Did you mean"),
    ('v5e', r'sides of a slice of v5e; .* Write it as v5e:4x4\.'),
    ('v5e:4x4x4', r'Write it as v5e:4x4\.'),
    ('v5p:4x4', r'Write it as v5p:4x4x4\.'),
    ('v5e:0x4', 'sides of a slice'),
    ('0*v5e:4x4', 'sides of a slice'),
    ('cpu', r'Write it as cpu:8\.'),
    ('2*cpu:8', 'several slices of TPUs only'),
    ('v5e:', 'look like v5e:16x16'),
    ('', 'look like v5e:16x16'),
])
def test_wrong_topology_is_refused(name, match):
  with pytest.raises(checks.ConfigError, match=match):
    chips.parse_topology(name)


def test_known_chips_are_named_where_one_is_not():
  with pytest.raises(checks.ConfigError, match='Known: cpu, gpu, .*v5e, v5p'):
    chips.parse_topology('abc:2x2')


def test_devices_of_this_machine_are_found():
  devices = chips.find_devices(chips.parse_topology('cpu:4'))
  assert devices == jax.devices()[:4]


def test_more_devices_than_there_are_is_an_error():
  with pytest.raises(
      checks.ConfigError, match='at most 8 devices on this machine'):
    chips.find_devices(chips.parse_topology('cpu:9'))


def test_device_that_is_half_a_chip_has_half_of_everything():
  devices = [types.SimpleNamespace(core_on_chip=i % 2) for i in range(8)]
  half = chips.chip_of(chips.parse_topology('tpu7x:2x2x1'), devices)
  whole = peaks.CHIPS['tpu7x']
  for name in ('flops', 'memory', 'memory_rate', 'link_rate', 'network_rate'):
    assert getattr(half, name) == getattr(whole, name) / 2


def test_most_devices_of_all_topologies_are_reserved(monkeypatch):
  updates = {}
  monkeypatch.setattr(chips.jax.config, 'update', updates.__setitem__)
  chips.reserve([chips.parse_topology(name)
                 for name in ('cpu:2', 'cpu:6', 'cpu:3', 'v5e:4x4')])
  assert updates == dict(jax_num_cpu_devices=6)
  chips.reserve([chips.parse_topology('v5e:8x8')])
  assert updates == dict(jax_num_cpu_devices=6)


@pytest.mark.parametrize('name, asked', [
    ('v5e:4x8', dict(platform='tpu', topology_name='v5e:4x8')),
    ('2*v5e:4x8', dict(platform='tpu', topology_name='v5e:4x8',
                       num_slices=2)),
])
def test_compiler_is_asked_for_all_slices(monkeypatch, name, asked):
  seen = []

  def describe(**options):
    seen.append(options)
    return types.SimpleNamespace(devices=('device',))

  monkeypatch.setattr(chips.importlib, 'import_module', lambda name: None)
  monkeypatch.setattr(topologies, 'get_topology_desc', describe)
  assert chips.find_devices(chips.parse_topology(name)) == ['device']
  assert seen == [asked]


def test_cpu_has_no_peaks_and_a_share_of_the_memory():
  eight = chips.chip_of(chips.parse_topology('cpu:8'), jax.devices())
  four = chips.chip_of(chips.parse_topology('cpu:4'), jax.devices()[:4])
  assert eight.flops is eight.memory_rate is eight.link_rate is None
  assert four.memory == 2 * eight.memory > 0


@pytest.mark.parametrize('kind, name', [
    ('NVIDIA A100-SXM4-40GB', 'a100-40gb'),
    ('NVIDIA A100-SXM4-80GB', 'a100-80gb'),
    ('NVIDIA H100 80GB HBM3', 'h100'),
    ('NVIDIA H200', 'h200'),
])
def test_gpu_is_known_by_its_kind(kind, name):
  stats = {}
  devices = [types.SimpleNamespace(
      device_kind=kind, platform='gpu', memory_stats=lambda: stats)]
  topology = chips.parse_topology('gpu')
  assert chips.chip_of(topology, devices) == peaks.CHIPS[name]
  stats['bytes_limit'] = 6e10  # What JAX takes of it.
  assert chips.chip_of(topology, devices) == peaks.CHIPS[name]._replace(
      memory=6e10)


def test_part_of_a_name_is_not_the_gpu():
  devices = [types.SimpleNamespace(
      device_kind='NVIDIA GH200 480GB', platform='gpu', memory_stats=dict)]
  chip = chips.chip_of(chips.parse_topology('gpu'), devices)
  assert (chip.name, chip.memory) == ('gpu', None)


def test_missing_compiler_is_one_line_with_the_remedy(monkeypatch):
  def missing(name):
    raise ImportError(name)

  monkeypatch.setattr(chips.importlib, 'import_module', missing)
  with pytest.raises(checks.ConfigError, match=r"pip install 'haikd\[plan\]'"):
    chips.find_devices(chips.parse_topology('v5e:2x2'))
