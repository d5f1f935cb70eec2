"""The topologies that chips come in."""

from collections.abc import Sequence
import importlib
import math
import re
from typing import Any, NamedTuple

import jax

from haikd.core import checks
from haikd.core import memory as memory_lib
from haikd.engine import peaks

# What the `device_kind` of a GPU of this machine contains.
_GPU_KINDS = (('A100', '40GB', 'a100-40gb'), ('A100', '80GB', 'a100-80gb'),
              ('H100', '', 'h100'), ('H200', '', 'h200'))
_FORM = re.compile(r'(?:(\d+)\*)?([a-z]\w*)(?::(\d+(?:x\d+)*))?')


class Topology(NamedTuple):
  """What `--topology` names. Made by `parse_topology`.

  Attributes:
    name: the name as written.
    chip: a key of peaks.CHIPS, 'cpu' or 'gpu'.
    shape: chips along each side of a slice; () for all of this machine.
    slices: the number of slices.
  """

  name: str
  chip: str
  shape: tuple[int, ...]
  slices: int


def parse_topology(name: str) -> Topology:
  """Reads the name of a topology.

  Args:
    name: `v5e:16x16`, `v5p:8x8x8`, `2*v5e:16x16` for two slices, `cpu:8`, or
      `gpu` for the GPUs of this machine.

  Returns:
    A Topology.

  Raises:
    ConfigError: the name has another form, or the chip is unknown.
  """
  match = _FORM.fullmatch(name.strip().lower())
  if not match:
    raise _wrong(name, 'look like v5e:16x16, 2*v5e:16x16, cpu:8 or gpu')
  slices, chip, sides = match.groups()
  if chip not in (*peaks.TPUS, 'cpu', 'gpu'):
    raise _wrong(name, 'begin with a known chip',
                 checks.suggest(chip, (*peaks.TPUS, 'cpu', 'gpu')))
  shape = tuple(int(side) for side in (sides or '').split('x') if side)
  number = int(slices or 1)
  sizes = {'cpu': (1,), 'gpu': (0,), 'v5e': (2,), 'v6e': (2,), 'v3': (2,)}
  if len(shape) not in sizes.get(chip, (3,)) or 0 in (*shape, number):
    written = {'cpu': 'cpu:8', 'gpu': 'gpu'}.get(
        chip, chip + (':4x4' if sizes.get(chip) else ':4x4x4'))
    raise _wrong(name, f'give the sides of a slice of {chip}',
                 f'Write it as {written}.')
  if number > 1 and chip not in peaks.TPUS:
    raise _wrong(name, 'have several slices of TPUs only')
  return Topology(name.strip(), chip, shape, number)


def _wrong(name, rule, remedy='See --help.'):
  return checks.ConfigError(f'--topology must {rule}; got {name!r}. {remedy}')


def reserve(topologies: Sequence[Topology]) -> None:
  """Splits the CPU into as many devices as needed, unless JAX uses it already.

  Args:
    topologies: all topologies that will be planned for.
  """
  counts = [x.shape[0] for x in topologies if x.chip == 'cpu']
  if counts:
    try:
      jax.config.update('jax_num_cpu_devices', max(counts))
    except RuntimeError:
      pass  # JAX has its devices already; `find_devices` counts them.


def find_devices(topology: Topology) -> list[Any]:
  """Returns the devices of a topology; TPUs that are not here only compile.

  Args:
    topology: the topology.

  Returns:
    As many devices as the topology has.

  Raises:
    ConfigError: no compiler for TPUs is installed, it refuses the shape, or
      this machine has fewer devices.
  """
  if topology.chip in peaks.TPUS:
    return _tpu_devices(topology)
  count = math.prod(topology.shape)
  try:
    devices = jax.devices(topology.chip)
  except RuntimeError as err:
    raise checks.ConfigError(
        '--topology must name devices of this machine, or TPUs; got '
        f'{topology.name!r} ({checks.one_line(err)}). Plan on a machine that '
        'has them.') from err
  if topology.shape and len(devices) < count:
    raise checks.ConfigError(
        f'--topology must ask for at most {len(devices)} devices on this '
        f'machine; got {topology.name!r}. Set XLA_FLAGS='
        f'--xla_force_host_platform_device_count={count}.')
  return devices[:count] if topology.shape else devices


def _tpu_devices(topology):
  from jax.experimental import topologies
  options = {'num_slices': topology.slices} if topology.slices > 1 else {}
  sides = 'x'.join(map(str, topology.shape))
  try:
    importlib.import_module('libtpu')  # JAX's own message is less clear.
    return list(
        topologies.get_topology_desc(
            platform='tpu', topology_name=f'{topology.chip}:{sides}',
            **options).devices)
  except ImportError as err:
    raise checks.ConfigError(
        '--topology must have its compiler installed; got '
        f'{topology.name!r} without libtpu. Run '
        "`pip install 'haikd[plan]'`.") from err
  except (RuntimeError, ValueError) as err:
    raise checks.ConfigError(
        '--topology must be one that the TPU compiler knows; got '
        f'{topology.name!r} ({checks.one_line(err)}). Give the sides of a '
        'slice that is sold.') from err


def chip_of(topology: Topology, devices: Sequence[Any]) -> peaks.Chip:
  """Returns the peaks of one device of a topology.

  Args:
    topology: the topology.
    devices: its devices.

  Returns:
    The chip, or half of it for older TPUs, whose devices are half a chip. For a
    CPU or an unknown GPU only the memory is known.
  """
  if topology.chip in peaks.TPUS:
    cores = len({device.core_on_chip for device in devices})
    chip = peaks.CHIPS[topology.chip]
    return chip._replace(
        **{name: getattr(chip, name) / cores for name in
           ('flops', 'memory', 'memory_rate', 'link_rate', 'network_rate')})
  kind = devices[0].device_kind
  for model, size, name in _GPU_KINDS:
    if re.search(rf'\b{model}\b', kind) and size in kind:
      # JAX takes three quarters of the memory, unless it is told otherwise.
      usable = memory_lib.of_device(devices)
      chip = peaks.CHIPS[name]
      return chip._replace(memory=usable or chip.memory)
  memory = memory_lib.of_device(devices)
  return peaks.Chip(topology.chip, None, memory, None, None, 0, None)
