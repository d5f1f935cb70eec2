"""What the compiler made of a step: its collectives, and what hides them."""

from collections.abc import Iterator, Mapping
import math
import re
from typing import NamedTuple, Optional

import numpy as np

from haikd.engine import counting
from haikd.plan import hlo

_KINDS = tuple(sorted(set(counting.KINDS.values())))
# A fusion of this name is a reduce-scatter, written as a reduction and a slice,
# for which the compiler has one routine.
_FUSED_SCATTER = 'all-reduce-scatter'
_CHAINED = 'async_collective_fusion_config'
_CHAIN_START, _CHAIN_DONE = 'AsyncCollectiveStart', 'AsyncCollectiveDone'
_SENT = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_MEETING = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')
_PRODUCTS = ('dot', 'convolution')
_KERNELS = ('tpu_custom_call', '__gpu$xla', 'cublas', 'cudnn', '__onednn')


class Collective(NamedTuple):
  """One collective of a compiled module.

  Attributes:
    kind: as in counting.Traffic.
    axes: the mesh axes that it goes over, () if its groups could not be read.
    times: how often one step runs it.
    payload: bytes each time, as in counting.Traffic.
    wire: bytes that a device sends each time.
    hidden: whether matrix products run between its start and its end.
  """

  kind: str
  axes: tuple[str, ...]
  times: float
  payload: float
  wire: float
  hidden: bool


class Schedule(NamedTuple):
  """What a compiled module sends. Made by `read`.

  Attributes:
    collectives: all collectives.
    open_loops: loops of unknown length, which count once.
  """

  collectives: tuple[Collective, ...]
  open_loops: int

  def traffic(self) -> tuple[counting.Traffic, ...]:
    """Returns the sums by kind and axes."""
    sums: dict[tuple, list] = {}
    for one in self.collectives:
      numbers = sums.setdefault((one.kind, one.axes), [0.0, 0.0, 0.0])
      for i, number in enumerate((1.0, one.payload, one.wire)):
        numbers[i] += one.times * number
    return counting.total(sums)

  def hidden(self, axes: Optional[tuple[str, ...]] = None) -> Optional[float]:
    """Returns the fraction of the bytes sent that is hidden.

    Args:
      axes: count only collectives over these; all by default.

    Returns:
      A fraction, or None if nothing is sent.
    """
    chosen = [x for x in self.collectives if axes is None or x.axes == axes]
    sent = sum(x.times * x.wire for x in chosen)
    if not sent:
      return None
    return sum(x.times * x.wire for x in chosen if x.hidden) / sent


def read(text: str, mesh: Mapping[str, int],
         between: tuple[str, ...] = ()) -> Schedule:
  """Reads the collectives of a compiled module.

  An asynchronous collective has one of three forms: a pair of instructions that
  start it and wait for it; such a pair around a computation that holds it; or,
  on TPU, a chain of fusions, the first of which starts it, the last of which
  waits, and the others of which do other work meanwhile. It is hidden if a
  matrix product, a kernel or a loop is scheduled between its ends. Between
  slices of TPUs, data goes through the hosts, as a pair of `send` and `recv`
  that names the collective it belongs to.

  Args:
    text: the text of the module, scheduled and optimised.
    mesh: the sizes of the axes, in order; programs number devices along it.
    between: the axes that join slices.

  Returns:
    A Schedule.
  """
  module = hlo.parse(text)
  reader = _Reader(module, dict(mesh), between)
  collectives = tuple(reader.walk(module.entry, 1.0))
  return Schedule(collectives, reader.open_loops)


class _Reader:
  """Walks the computations of a module, from its entry."""

  def __init__(self, module, mesh, between):
    self._module, self._mesh, self._between = module, mesh, between
    self._devices = math.prod(mesh.values())
    self._of_interest: dict[str, bool] = {}
    self._works: dict[str, bool] = {}
    self.open_loops = 0

  def walk(self, name: str, times: float) -> Iterator[Collective]:
    """Yields the collectives of a computation that runs `times` times."""
    lines = self._module.computations[name]
    for place, line in enumerate(lines):
      kind = line.opcode.removesuffix('-start')
      if line.opcode == 'while':
        yield from self._loop(line, name, times)
      elif kind in _KINDS:
        hidden = line.opcode != kind and self._hides(lines, place)
        one = self._collective(kind, line, name, times, hidden)
        if kind == 'all-reduce' and all(map(_is_update, line.operands)):
          # Small arrays are gathered as a sum of arrays with one part not 0.
          one = one._replace(kind='all-gather')
        yield one
      elif _SENT.search(line.attributes) and line.opcode == 'send':
        yield self._through_hosts(lines, place, times)
      elif line.opcode == 'fusion':
        yield from self._fusion(lines, place, times)
      elif line.opcode == 'async-start':
        for called in self._called(line):
          for one in self.walk(called, times):
            yield one._replace(hidden=self._hides(lines, place))
      else:
        for called in self._called(line):
          yield from self.walk(called, times)

  def _loop(self, line, name, times):
    trips = hlo.trip_count(self._module, line, name)
    if not any(map(self._has_collectives, line.called('body'))):
      return
    known = 1 if trips is None else trips
    sent = [one for body in line.called('body')
            for one in self.walk(body, times * known)]
    # A chain of fusions that began before the loop may go on inside.
    self.open_loops += trips is None and bool(sent)
    yield from sent

  def _fusion(self, lines, place, times):
    """Yields what a fusion starts.

    On TPU, a collective that overlaps with matrix products appears in each
    fusion of a chain. It counts once, at the first, which alone has
    AsyncCollectiveStart.
    """
    for called in self._called(lines[place]):
      body = self._module.computations[called]
      for one in body:
        if one.opcode not in _KINDS:
          continue
        hidden = False
        if _CHAINED in one.attributes:
          if not any(_CHAIN_START in x.attributes for x in body):
            continue
          hidden = self._works_along(lines, place)
        scatter = called.startswith(_FUSED_SCATTER) and one.opcode == (
            'all-reduce')
        yield self._collective('reduce-scatter' if scatter else one.opcode, one,
                               called, times, hidden)

  def _through_hosts(self, lines, place, times):
    """Returns the collective that a `send` to other slices belongs to."""
    sent = lines[place]
    kind = _SENT.search(sent.attributes)[1].lower().replace('_', '-')
    kind = kind if kind in _KINDS else 'collective-permute'
    meeting = _MEETING.search(sent.attributes)[1]
    ours = {x.name for x in lines if x.opcode == 'recv' and
            f'rendezvous="{meeting}"' in x.attributes}
    hidden = False
    for line in lines[place + 1:]:
      if line.opcode == 'recv-done' and ours & set(line.operands):
        break
      hidden = hidden or self._is_work(line)
    width = math.prod(self._mesh[name] for name in self._between)
    payload = hlo.size(sent.shape) - 4  # Less the word that goes along.
    payload *= width if kind == 'all-gather' else 1
    wire = counting.on_the_wire(kind, payload, max(width, 1))
    return Collective(kind, self._between, times, payload, wire, hidden)

  def _works_along(self, lines, start):
    """Returns whether a fusion of the chain that starts here has products."""
    names = {lines[start].name}
    for line in lines[start:]:
      if line is not lines[start] and not names & set(line.operands):
        continue
      if line.opcode == 'get-tuple-element':
        names.add(line.name)
      if line.opcode == 'fusion':
        for called in line.called('calls'):
          body = self._module.computations.get(called, ())
          if any(x.opcode in _KINDS and _CHAINED in x.attributes for x in body):
            if self._has_work(called):
              return True
            names.add(line.name)
          if any(_CHAIN_DONE in x.attributes for x in body):
            return False
    return False

  def _hides(self, lines, start):
    """Returns whether work is scheduled between a start and its done."""
    names = {lines[start].name}
    for line in lines[start + 1:]:
      if names & set(line.operands):
        if line.opcode.endswith('-done'):
          return False
        if line.opcode.endswith('-update'):
          names.add(line.name)
      if self._is_work(line):
        return True
    return False

  def _is_work(self, line):
    if line.opcode in _PRODUCTS or line.opcode == 'while':
      return True
    if line.opcode == 'custom-call':
      return any(kernel in line.attributes for kernel in _KERNELS)
    return line.opcode in ('fusion', 'call') and any(
        map(self._has_work, line.called('calls', 'to_apply')))

  def _has_work(self, name):
    if name not in self._works:
      self._works[name] = False
      self._works[name] = any(
          map(self._is_work, self._module.computations.get(name, ())))
    return self._works[name]

  def _called(self, line):
    """Returns the computations that a line calls and that hold collectives."""
    if line.opcode in ('reduce', 'scatter', 'sort', 'map', 'reduce-window'):
      return []
    return [x for x in line.called() if self._has_collectives(x)]

  def _has_collectives(self, name):
    if name not in self._of_interest:
      self._of_interest[name] = False
      self._of_interest[name] = any(
          x.opcode.removesuffix('-start') in _KINDS or
          _SENT.search(x.attributes) or
          any(map(self._has_collectives, x.called()))
          for x in self._module.computations.get(name, ()))
    return self._of_interest[name]

  def _collective(self, kind, line, computation, times, hidden):
    shapes = {x.name: x.shape for x in self._module.computations[computation]}
    taken = sum(hlo.size(shapes[x]) for x in line.operands if x in shapes)
    groups = hlo.device_groups(line.attributes, self._devices)
    if kind == 'collective-permute':
      width, axes = 2, self._axes_of(groups, any_pair=True)
      taken = hlo.size(shapes[line.operands[0]])
    else:
      width = len(groups[0]) if groups else self._devices
      axes = self._axes_of(groups)
    payload = taken * width if kind == 'all-gather' else taken
    wire = counting.on_the_wire(kind, payload, width)
    return Collective(kind, axes, times, payload, wire, hidden)

  def _axes_of(self, groups, any_pair=False):
    """Returns the axes along which the devices of a group differ."""
    if not groups:
      return ()
    axes = set()
    for group in groups if any_pair else groups[:1]:
      places = np.array(
          np.unravel_index(np.array(group), tuple(self._mesh.values())))
      differ = (places != places[:, :1]).any(axis=1)
      axes |= {name for name, yes in zip(self._mesh, differ) if yes}
    return tuple(name for name in self._mesh if name in axes)


def _is_update(operand):
  return operand.lstrip('%').startswith('dynamic-update-slice')
