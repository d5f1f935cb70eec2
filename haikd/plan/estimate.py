"""What a compiled step needs of a chip, and how fast it can be at best."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

import jax
import numpy as np

from haikd.core import base
from haikd.engine import mesh as mesh_lib
from haikd.plan import chips
from haikd.plan import compiling
from haikd.plan import counting

# What may bind a step; also the order in which they are shown.
COMPUTE, MEMORY, LINKS, NETWORK = BINDING = ('compute', 'memory', 'links',
                                             'network')


class Sent(NamedTuple):
  """What a device sends over some axes in one step.

  Attributes:
    axes: names joined by `+`; `?` where the compiled groups were not read.
    over: 'links' between chips, or the 'network' between slices or hosts.
    kinds: `{kind: [count, bytes sent]}`.
    bytes: sent by one device.
    hidden: the part of the bytes that goes while matrices are multiplied, or
      None if it is not known.
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
    topology: as it was asked for.
    devices: how many.
    mesh: sizes of its axes.
    batch_size: of the whole batch.
    microbatch: examples that a device works on at once.
    memory: bytes, by what the compiler calls them; None if it refused.
    state: bytes as they lie in memory, by what they are for.
    peak: bytes altogether; what was missing on top of all there is, if the
      compiler refused.
    available: bytes there are, or None if unknown.
    flops: of matrix products.
    bytes: that these and the update move between memory and chip.
    sent: by axes, as compiled; as written, where no text could be had.
    asked: the collectives as the step is written: over `replica` and `fsdp`.
    seconds: `{what: at least so long}` for each of BINDING, None without
      published peaks.
    bound: the longest of them: no step is faster.
    binds: which that is.
    exposed: a bound that also adds what is sent while nothing is multiplied;
      None if that is not known.
    open_loops: loops whose length is not known: what is in them counts once,
      and all sums are too small.
    compile_seconds: what compiling took.
    largest_microbatch: that fits, or None if it was not looked for.
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
    """Returns the bytes that are left, below 0 if they do not suffice."""
    return None if self.available is None else self.available - self.peak


def estimate(topology: str, step: compiling.Step, compiled: compiling.Compiled,
             chip: chips.Chip, *, microbatches: int = 1) -> Estimate:
  """Puts together what is known of a compiled step.

  Args:
    topology: its name.
    step: what was compiled.
    compiled: what was learnt from it.
    chip: what one device can do.
    microbatches: parts that a device makes of its share of the batch.

  Returns:
    An Estimate.
  """
  state = categories(step)
  available = compiled.available or chip.memory
  if compiled.memory is not None:
    peak = compiled.memory.peak()
  else:
    peak = available + compiled.missing
  # The update reads and writes all that is trained, besides the products.
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
  size = compiling.bytes_per_device
  return {
      'parameters': size(state.params),
      'optimizer': size(state.opt_state),
      'average': size(state.ema),
      'other': size((state.step, state.net_state, state.loss_scale)),
      'teacher': size(step.frozen),
      'batch': size(step.batch),
  }


def _sent(compiled, mesh, chip):
  """Yields what is sent, as compiled or, failing that, as asked for."""
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
              chip: chips.Chip) -> tuple[str, Optional[float]]:
  """Returns how fast a device can send around a ring over some axes, at best.

  Between slices (of GPUs, hosts) it is the network that counts; what is sent
  there is taken to be split among the devices of a slice first. Between chips,
  all links along the sides of the slice that the axes cover are used, both ways
  where a side is closed into a ring.

  Args:
    mesh: of the devices.
    axes: over which the collective goes.
    chip: what a device can do.

  Returns:
    'links' or 'network', and bytes a second, None if that is not published.
  """
  group = mesh.devices[tuple(
      slice(None) if name in axes else 0 for name in mesh.axis_names)]
  group = list(np.ravel(group))
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
    whole = len({d.coords[side] for d in here})
    if extent > 1:
      links += 2 if extent == whole and whole % chip.ring == 0 else 1
  # Devices that share a chip reach one another through its memory.
  return LINKS, chip.link_rate * links if links else chip.memory_rate


def _over(amount, rate):
  if not amount:
    return 0.0
  return None if rate is None else amount / rate


def _sum(values: Any) -> Optional[float]:
  values = list(values)
  return None if None in values else float(sum(values))
