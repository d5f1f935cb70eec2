"""What a compiled step needs of a chip, and a bound on its speed."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

import jax
import numpy as np

from haikd.core import base
from haikd.core import memory as memory_lib
from haikd.engine import counting
from haikd.engine import mesh as mesh_lib
from haikd.engine import peaks
from haikd.plan import compiling

# What may bind a step, in the order in which it is shown.
COMPUTE, MEMORY, LINKS, NETWORK = BINDING = ('compute', 'memory', 'links',
                                             'network')


class Sent(NamedTuple):
  """What a device sends over some axes in one step.

  Attributes:
    axes: names joined by `+`; `?` if the compiled groups could not be read.
    over: 'links' between chips, or the 'network' between slices or hosts.
    kinds: `{kind: [count, bytes sent]}`.
    bytes: sent by one device.
    hidden: the fraction of the bytes that is sent while matrices are
      multiplied, or None if it is not known.
    seconds: at the published rates, or None without them.
  """

  axes: str
  over: str
  kinds: Mapping[str, list]
  bytes: float
  hidden: Optional[float]
  seconds: Optional[float]


class Estimate(NamedTuple):
  """What a step takes of each device. Made by `estimate`.

  Attributes:
    topology: its name, as requested.
    devices: their number.
    mesh: sizes of its axes.
    batch_size: examples in the global batch.
    microbatch: examples that a device works on at once.
    memory: bytes by the compiler's names; None if it refused the step.
    state: bytes held from step to step, by what they are for.
    peak: bytes needed at once; if the compiler refused, the available bytes and
      those it misses.
    available: bytes of memory, or None if unknown.
    flops: operations of matrix products.
    bytes: bytes that products and the update move between memory and chip.
    sent: traffic by axes, as compiled, or as written if the compiler's text is
      not available.
    asked: the collectives as the step is written, over `replica` and `fsdp`.
    seconds: `{what: a lower bound}` for each of BINDING, None without published
      peaks.
    bound: the largest of them: no step is faster.
    binds: the name of that one.
    exposed: a bound that also adds what is sent while nothing is multiplied;
      None if that is not known.
    open_loops: loops of unknown length: their bodies count once, so all sums
      are too small.
    compile_seconds: how long compiling took.
    largest_microbatch: the largest that fits, or None if not searched for.
  """

  topology: str
  devices: int
  mesh: Mapping[str, int]
  batch_size: int
  microbatch: int
  memory: Optional[Mapping[str, float]]
  state: Mapping[str, float]
  peak: float
  available: Optional[float]
  flops: float
  bytes: float
  sent: tuple[Sent, ...]
  asked: tuple[counting.Traffic, ...]
  seconds: Mapping[str, Optional[float]]
  bound: Optional[float]
  binds: Optional[str]
  exposed: Optional[float]
  open_loops: int
  compile_seconds: float
  largest_microbatch: Optional[int] = None

  def margin(self) -> Optional[float]:
    """Returns the bytes left, below 0 if too few; None if it is not known."""
    return None if self.available is None else self.left()

  def left(self) -> float:
    """Returns the bytes left, where the memory is known."""
    assert self.available is not None
    return self.available - self.peak


def estimate(topology: str, step: compiling.Step, compiled: compiling.Compiled,
             chip: peaks.Chip, *, microbatches: int = 1) -> Estimate:
  """Combines what is known of a compiled step.

  Args:
    topology: the name of the topology.
    step: the step that was compiled.
    compiled: what compiling it told.
    chip: the peaks of one device.
    microbatches: parts that a device makes of its share of the batch.

  Returns:
    An Estimate.
  """
  state = categories(step)
  available = compiled.available or chip.memory
  if compiled.memory is not None:
    peak = compiled.memory.peak()
  else:
    peak = (available or 0.0) + compiled.missing
  # Beside the products, the update reads and writes all that is trained.
  moved = compiled.counted.bytes + 2 * sum(
      state[name] for name in ('parameters', 'optimizer', 'average'))
  sent = tuple(_sent(compiled, step.mesh, chip))
  seconds = {
      COMPUTE: _over(compiled.counted.flops, chip.flops),
      MEMORY: _over(moved, chip.memory_rate),
      LINKS: _sum(x.seconds for x in sent if x.over == LINKS),
      NETWORK: _sum(x.seconds for x in sent if x.over == NETWORK),
  }
  bound = binds = exposed = None
  if None not in seconds.values():
    bound, binds = max((seconds[name], name) for name in BINDING)
    if all(x.hidden is not None for x in sent):
      exposed = max(
          bound,
          max(seconds[COMPUTE], seconds[MEMORY]) +
          sum((1 - x.hidden) * x.seconds for x in sent))
  batch_size = jax.tree.leaves(step.batch)[0].shape[0]
  shards = mesh_lib.batch_shards(step.mesh)
  return Estimate(
      topology=topology,
      devices=step.mesh.size,
      mesh=dict(step.mesh.shape),
      batch_size=batch_size,
      microbatch=batch_size // (shards * microbatches),
      memory=compiled.memory and compiled.memory._asdict(),
      state=state,
      peak=peak,
      available=available,
      flops=compiled.counted.flops,
      bytes=moved,
      sent=sent,
      asked=compiled.counted.traffic,
      seconds=seconds,
      bound=bound,
      binds=binds,
      exposed=exposed,
      open_loops=max(compiled.counted.open_loops,
                     compiled.schedule.open_loops if compiled.schedule else 0),
      compile_seconds=compiled.seconds)


def categories(step: compiling.Step) -> dict[str, float]:
  """Returns the bytes a device holds from step to step, by what they are for.

  Args:
    step: with a TrainState.

  Returns:
    Bytes of parameters, optimizer, average (the running mean of parameters),
    other (state of layers, counters), teacher and batch.
  """
  state: base.TrainState = step.state
  size = memory_lib.bytes_per_device
  return {
      'parameters': size(state.params),
      'optimizer': size(state.opt_state),
      'average': size(state.ema),
      'other': size((state.step, state.net_state, state.loss_scale)),
      'teacher': size(step.frozen),
      'batch': size(step.batch),
  }


def _sent(compiled, mesh, chip):
  """Yields what is sent, as compiled if known, else as written."""
  schedule = compiled.schedule
  traffic = compiled.counted.traffic if schedule is None else schedule.traffic()
  by_axes: dict[tuple, dict[str, list]] = {}
  for one in traffic:
    by_axes.setdefault(one.axes, {})[one.kind] = [one.count, one.wire]
  for axes, kinds in by_axes.items():
    wire = sum(sent for _, sent in kinds.values())
    over, rate = rate_over(mesh, axes or mesh.axis_names, chip)
    yield Sent(
        axes='+'.join(axes) or '?',
        over=over,
        kinds=kinds,
        bytes=wire,
        hidden=schedule and schedule.hidden(axes),
        seconds=_over(wire, rate))


def rate_over(mesh: jax.sharding.Mesh, axes: tuple[str, ...],
              chip: peaks.Chip) -> tuple[str, Optional[float]]:
  """Returns how fast a device can send around a ring over some axes, at best.

  Between slices (of GPUs, hosts) the network binds; the traffic is assumed to
  be split among the devices of a slice first. Between chips, all links along
  the sides of the slice that the axes cover are used, both ways if a side is
  closed into a ring.

  Args:
    mesh: the mesh of the devices.
    axes: the axes that the collective goes over.
    chip: the peaks of a device.

  Returns:
    'links' or 'network', and bytes a second, None if that is not published.
  """
  group = list(np.ravel(mesh.devices[tuple(
      slice(None) if name in axes else 0 for name in mesh.axis_names)]))
  tpu = hasattr(group[0], 'coords') and chip.ring > 0
  islands = {
      getattr(d, 'slice_index', 0) if tpu else d.process_index for d in group
  }
  if len(islands) > 1:
    rate = chip.network_rate
    return NETWORK, rate and rate * len(group) / len(islands)
  if not tpu:
    return LINKS, chip.link_rate
  here = [d for d in mesh.devices.flat
          if getattr(d, 'slice_index', 0) in islands]
  links = 0
  for side in range(len(group[0].coords)):
    extent = len({d.coords[side] for d in group})
    length = len({d.coords[side] for d in here})
    if extent > 1:
      links += 2 if extent == length and length % chip.ring == 0 else 1
  if not links:  # Devices that share a chip exchange through its memory.
    return LINKS, chip.memory_rate
  return LINKS, chip.link_rate and chip.link_rate * links


def _over(amount, rate):
  if not amount:
    return 0.0
  return None if rate is None else amount / rate


def _sum(values: Any) -> Optional[float]:
  values = list(values)
  return None if None in values else float(sum(values))
