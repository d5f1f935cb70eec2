"""What a step computes and sends, counted in its jaxpr.

Unlike the compiler's own count, a jaxpr says how often each loop runs. Dead
code is removed first, as the compiler does.
"""

from collections.abc import Mapping
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from haikd.core import jax_internals
from haikd.core import scopes
from haikd.engine import loop_limits

# The kind of each primitive, which may also end in `_start`.
KINDS = {
    'all_gather': 'all-gather',
    'all_gather_invariant': 'all-gather',
    'all_gather_reduced': 'all-gather',
    'reduce_scatter': 'reduce-scatter',
    'unreduced_reduce_scatter': 'reduce-scatter',
    'psum': 'all-reduce',
    'psum_invariant': 'all-reduce',
    'unreduced_psum': 'all-reduce',
    'pmax': 'all-reduce',
    'pmin': 'all-reduce',
    'all_to_all': 'all-to-all',
    'ppermute': 'collective-permute',
}


class Traffic(NamedTuple):
  """Collectives of one kind over the same axes, in one step of one device.

  Attributes:
    kind: all-gather, reduce-scatter, all-reduce, all-to-all or
      collective-permute.
    axes: mesh axes, in the order of the mesh.
    count: how many of them a step runs.
    payload: bytes of the array that a gather makes; for other kinds, bytes of
      what they take.
    wire: bytes that a device sends if the collective goes around a ring; see
      `on_the_wire`.
  """

  kind: str
  axes: tuple[str, ...]
  count: float  # type: ignore[assignment]  # Hides a method of tuples.
  payload: float
  wire: float


class Counted(NamedTuple):
  """What one device does in one step.

  Attributes:
    flops: operations of matrix products and convolutions; nothing else counts.
    bytes: bytes that these read and write, each operand and result once.
    traffic: the collectives of the step as written, over manual axes; the
      compiler adds those over automatic axes.
    open_loops: loops whose length is not known before they run; their bodies
      count once.
    teacher_flops: those of `flops` that are the teacher's forward pass.
  """

  flops: float
  bytes: float
  traffic: tuple[Traffic, ...]
  open_loops: int
  teacher_flops: float = 0.0


def on_the_wire(kind: str, payload: float, size: int) -> float:
  """Returns the bytes that a device sends in a collective over `size` devices.

  Args:
    kind: the kind of the collective.
    payload: bytes, as in Traffic.
    size: the number of devices n that take part.

  Returns:
    (n - 1) / n of the payload for a gather, a scatter or an exchange, twice
    that for an all-reduce, and the payload for a permutation.
  """
  if kind == 'collective-permute':
    return payload
  return (2 if kind == 'all-reduce' else 1) * payload * (size - 1) / size


def total(traffic: Mapping[tuple, list]) -> tuple[Traffic, ...]:
  """Returns `{(kind, axes): [count, payload, wire]}` as a tuple of Traffic."""
  return tuple(
      Traffic(kind, axes, *numbers)
      for (kind, axes), numbers in sorted(traffic.items()))


def count(jaxpr: Any, devices: int) -> Counted:
  """Counts what a step does.

  Inside `shard_map`, shapes are local along its manual axes and global along
  the others. Work is assumed to be split evenly over those others, as the
  compiler does for `tensor`; outside of `shard_map`, over all devices.

  Args:
    jaxpr: the ClosedJaxpr of the step.
    devices: the number of devices that run it.

  Returns:
    What one device does.
  """
  live = jax_internals.drop_dead_code(jaxpr.jaxpr)
  counter = _Counter(loop_limits.Sources())
  counter.walk(live, 1.0, _Place({}, frozenset(), devices, False))
  return Counted(counter.flops, counter.bytes, total(counter.traffic),
                 counter.open_loops, counter.teacher_flops)


class _Place(NamedTuple):
  """Where an equation is.

  Attributes:
    sizes: the sizes of all mesh axes.
    manual: the names of the manual ones.
    split: the number of devices that share the work of one equation.
    is_teacher: whether it is of the teacher's forward pass.
  """

  sizes: Mapping[str, int]
  manual: frozenset
  split: int
  is_teacher: bool


class _Counter:
  """Sums over the equations of a jaxpr.

  Args:
    sources: of the values that its loops may be limited by.
  """

  def __init__(self, sources: loop_limits.Sources):
    self.flops, self.bytes, self.open_loops = 0.0, 0.0, 0
    self.teacher_flops = 0.0
    self.traffic: dict[tuple, list] = {}
    self._sources = sources

  def walk(self, jaxpr, times, place):
    """Counts `times` runs of a jaxpr."""
    self._sources.add(jaxpr)
    outside = place
    for eqn in jaxpr.eqns:
      name, place = eqn.primitive.name, outside
      if scopes.is_teacher(eqn):
        place = outside._replace(is_teacher=True)
      if name in ('dot_general', 'conv_general_dilated'):
        work = _dot_flops if name == 'dot_general' else _conv_flops
        flops = times * work(eqn) / place.split
        self.flops += flops
        self.teacher_flops += flops * place.is_teacher
        self.bytes += times / place.split * sum(
            _bytes(v) for v in (*eqn.invars, *eqn.outvars))
      elif name.removesuffix('_start') in KINDS:
        self._collective(eqn, times, place)
      elif name == 'scan':
        self.walk(eqn.params['jaxpr'].jaxpr, times * eqn.params['length'],
                  place)
      elif name == 'cond':
        self._add_costliest(eqn.params['branches'], times, place)
      elif name == 'shard_map':
        self.walk(eqn.params['jaxpr'], times, _enter(eqn, place))
      else:
        rounds = self._sources.max_rounds(eqn) if name == 'while' else 1
        self.open_loops += rounds is None
        for inner in loop_limits.inner_jaxprs(eqn.params):
          self.walk(inner, times * (rounds or 1), place)

  def _add_costliest(self, branches, times, place):
    """Adds the branch with the most flops; on a tie, with the most traffic."""
    counters = []
    for branch in branches:
      counter = _Counter(self._sources)
      counter.walk(branch.jaxpr, times, place)
      counters.append(counter)
    costliest = max(
        counters,
        key=lambda x: (x.flops, sum(wire for *_, wire in x.traffic.values())))
    self.flops += costliest.flops
    self.teacher_flops += costliest.teacher_flops
    self.bytes += costliest.bytes
    self.open_loops += costliest.open_loops
    for key, numbers in costliest.traffic.items():
      self._add(key, *numbers)

  def _collective(self, eqn, times, place):
    kind = KINDS[eqn.primitive.name.removesuffix('_start')]
    names = eqn.params.get('axis_name', eqn.params.get('axes'))
    names = names if isinstance(names, (tuple, list)) else (names,)
    axes = tuple(name for name in place.sizes if name in names)
    groups = eqn.params.get('axis_index_groups')
    size = len(groups[0]) if groups else math.prod(
        place.sizes[name] for name in axes)
    if size == 1:
      return
    arrays = eqn.outvars if kind == 'all-gather' else eqn.invars
    payload = sum(_bytes(v) for v in arrays) / place.split
    self._add((kind, axes), times, times * payload,
              times * on_the_wire(kind, payload, size))

  def _add(self, key, *numbers):
    sums = self.traffic.setdefault(key, [0.0] * len(numbers))
    sums[:] = [x + y for x, y in zip(sums, numbers)]


def _enter(eqn, place):
  """Returns the place inside a `shard_map`."""
  sizes = dict(eqn.params['mesh'].shape)
  manual = place.manual | eqn.params['newly_manual_axes']
  split = math.prod(n for name, n in sizes.items() if name not in manual)
  return place._replace(sizes=sizes, manual=manual, split=split)


def _bytes(variable):
  aval = variable.aval
  if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
    return 0  # A PRNG key.
  return math.prod(aval.shape) * np.dtype(aval.dtype).itemsize


def _dot_flops(eqn):
  (contracted, _), _ = eqn.params['dimension_numbers']
  lhs = eqn.invars[0].aval.shape
  return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(
      lhs[axis] for axis in contracted)


def _conv_flops(eqn):
  spec = eqn.params['dimension_numbers'].rhs_spec
  kernel = eqn.invars[1].aval.shape
  inputs = kernel[spec[1]] * math.prod(kernel[axis] for axis in spec[2:])
  # A dilated input's zeros are skipped by any sensible kernel: not counted.
  holes = math.prod(eqn.params['lhs_dilation'])
  return 2 * math.prod(eqn.outvars[0].aval.shape) * inputs / holes
