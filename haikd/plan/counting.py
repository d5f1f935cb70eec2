"""What a step computes and sends, counted in its jaxpr.

Unlike the compiler's own count, a jaxpr says how often each loop runs. Dead
code is removed first, as the compiler does.
"""

from collections.abc import Iterator, Mapping
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import numpy as np

from haikd.core import jax_internals

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
  """

  flops: float
  bytes: float
  traffic: tuple[Traffic, ...]
  open_loops: int


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
  counter = _Counter(_Sources())
  counter.walk(live, 1.0, _Place({}, frozenset(), devices))
  return Counted(counter.flops, counter.bytes, total(counter.traffic),
                 counter.open_loops)


class _Place(NamedTuple):
  """Where an equation is.

  Attributes:
    sizes: the sizes of all mesh axes.
    manual: the names of the manual ones.
    split: the number of devices that share the work of one equation.
  """

  sizes: Mapping[str, int]
  manual: frozenset
  split: int


class _Counter:
  """Sums over the equations of a jaxpr.

  Args:
    sources: of the values that its loops may be limited by.
  """

  def __init__(self, sources: '_Sources'):
    self.flops, self.bytes, self.open_loops = 0.0, 0.0, 0
    self.traffic: dict[tuple, list] = {}
    self._sources = sources

  def walk(self, jaxpr, times, place):
    """Counts `times` runs of a jaxpr."""
    self._sources.add(jaxpr)
    for eqn in jaxpr.eqns:
      name = eqn.primitive.name
      if name in ('dot_general', 'conv_general_dilated'):
        work = _dot_flops if name == 'dot_general' else _conv_flops
        self.flops += times * work(eqn) / place.split
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
        for inner in _inner(eqn.params):
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


class _Sources:
  """Finds where values come from, also through functions and scans."""

  def __init__(self):
    self._made_by = {}  # By variable, the equation.
    # By variable, what it equals on the other side of a call.
    self._same_as = {}

  def add(self, jaxpr):
    """Adds the equations of a jaxpr."""
    for eqn in jaxpr.eqns:
      self._made_by.update(dict.fromkeys(eqn.outvars, eqn))
      self._same_as.update(_through(eqn))

  def max_rounds(self, loop):
    """Returns how often a `while` runs at most, if its limit is a minimum."""
    for limit in map(self._source, loop.invars):
      if getattr(limit, 'primitive', None) is lax.min_p:
        known = [x.val for x in map(self._source, limit.invars)
                 if hasattr(x, 'val')]
        return int(known[0]) if known else None
    return None

  def _source(self, value):
    """Returns the literal or equation that makes a value, behind any casts."""
    while not hasattr(value, 'val'):
      made = self._made_by.get(value)
      if value in self._same_as:
        value = self._same_as[value]
      elif made is None or len(made.invars) != 1:
        return made
      else:
        value = made.invars[0]
    return value


def _through(eqn):
  """Returns what variables outside and inside of a function or scan equal.

  An array that a scan goes through, or returns, counts as its rows.
  """
  inner = list(_inner(eqn.params))
  if len(inner) != 1 or eqn.primitive.name == 'shard_map':
    return {}
  arguments, results = inner[0].invars, inner[0].outvars
  if (len(arguments), len(results)) != (len(eqn.invars), len(eqn.outvars)):
    return {}
  pairs = [*zip(arguments, eqn.invars), *zip(eqn.outvars, results)]
  if eqn.primitive.name == 'scan':  # What it carries changes.
    sizes = jax_internals.scan_sizes(eqn.params)
    carried = {*arguments[sizes.consts:sizes.consts + sizes.carry],
               *eqn.outvars[:sizes.carry]}
    pairs = [(x, y) for x, y in pairs if x not in carried]
  return dict(pairs)


def _enter(eqn, place):
  """Returns the place inside a `shard_map`."""
  sizes = dict(eqn.params['mesh'].shape)
  manual = place.manual | eqn.params['newly_manual_axes']
  split = math.prod(n for name, n in sizes.items() if name not in manual)
  return _Place(sizes, manual, split)


def _inner(params: Mapping[str, Any]) -> Iterator[Any]:
  """Yields the jaxprs among the parameters of an equation."""
  for value in params.values():
    for one in value if isinstance(value, (tuple, list)) else (value,):
      one = getattr(one, 'jaxpr', one)
      if hasattr(one, 'eqns'):
        yield one


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
