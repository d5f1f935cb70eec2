"""Reads the text of a compiled module into computations and instructions."""

from collections.abc import Mapping, Sequence
import math
import re
from typing import NamedTuple, Optional

import numpy as np

_BYTES = {'pred': 1, 'token': 0, 'opaque': 0, 'c64': 8, 'c128': 16}
_ARRAY = re.compile(r'([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]')
_HEAD = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_LINE = re.compile(r'\s+(?:ROOT )?%?([\w.\-]+) = ')
_NAME = re.compile(r'%([\w.\-]+)')
_CALLED = re.compile(r'\b(calls|to_apply|body|condition|true_computation|'
                     r'false_computation|called_computations|'
                     r'branch_computations)=(\{[^}]*\}|%?[\w.\-]+)')


class Instruction(NamedTuple):
  """One line of a module.

  Attributes:
    name: without the percent sign.
    shape: the type of its result, as text.
    opcode: such as `fusion` or `all-gather-start`.
    operands: names of instructions.
    attributes: the rest of the line.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str

  def called(self, *roles: str) -> list[str]:
    """Returns the computations it calls as any of these roles, or all."""
    return [
        name for role, names in _CALLED.findall(self.attributes)
        if not roles or role in roles
        for name in re.findall(r'[\w.\-]+', names)
    ]


class Module(NamedTuple):
  """A compiled module.

  Attributes:
    entry: the name of the first computation.
    computations: `{name: its instructions in the order they are scheduled}`.
  """

  entry: str
  computations: Mapping[str, Sequence[Instruction]]


def parse(text: str) -> Module:
  """Reads a module.

  Args:
    text: what XLA prints. Operands have names, with or without types.

  Returns:
    A Module.
  """
  computations: dict[str, list[Instruction]] = {}
  entry, current = '', None
  for line in text.splitlines():
    if current is None or not line.startswith(' '):
      if match := _HEAD.match(line):
        current = computations.setdefault(match[2], [])
        entry = match[2] if match[1] else entry
    elif match := _LINE.match(line):
      current.append(_instruction(match[1], line[match.end():]))
  return Module(entry, computations)


def _instruction(name, text):
  end = _closing(text, 0) + 1 if text.startswith('(') else text.index(' ')
  shape, rest = text[:end], text[end:].lstrip()
  opening = rest.index('(')
  closing = _closing(rest, opening)
  inside = rest[opening + 1:closing]
  if rest[:opening] == 'constant':
    operands = (inside,)  # Its value.
  else:
    operands = tuple(_NAME.findall(inside))
  return Instruction(name, shape, rest[:opening], operands, rest[closing + 1:])


def _closing(text, opening):
  """Returns where the parenthesis that opens at `opening` closes."""
  depth = 0
  for match in re.finditer(r'[()]', text[opening:]):
    depth += 1 if match[0] == '(' else -1
    if not depth:
      return opening + match.start()
  raise ValueError(f'text must close its parentheses; got {text!r}.')


def size(shape: str) -> int:
  """Returns the bytes of a type, such as `(f32[2,3]{1,0}, s32[])`."""
  return sum(
      math.prod(int(n) for n in sides.split(',') if n) * _item(kind)
      for kind, sides in _ARRAY.findall(re.sub(r'\{[^{}]*\}', '', shape)))


def _item(kind):
  if kind in _BYTES:
    return _BYTES[kind]
  bits = re.match(r'[a-z]+(\d+)', kind)
  return int(bits[1]) / 8 if bits else 0


def trip_count(module: Module, loop: Instruction,
               computation: str) -> Optional[int]:
  """Returns how often a `while` runs.

  XLA may have noted it. Else the condition has to compare a counter with a
  constant, and the counter has to start at a constant and grow by one, as that
  of a scan does.

  Args:
    module: the module of the loop.
    loop: the instruction.
    computation: the name of the computation that holds it.

  Returns:
    The number, or None if it is not known.
  """
  known = re.search(r'known_trip_count":?=?\{"?n"?:"?(\d+)', loop.attributes)
  if known:
    return int(known[1])
  conditions = loop.called('condition')
  lines = {x.name: x for x in module.computations.get(conditions[0], ())}
  compare = next((x for x in lines.values() if x.opcode == 'compare'), None)
  if compare is None or 'direction=LT' not in compare.attributes:
    return None
  counter, limit = (lines.get(name) for name in compare.operands)
  index = counter and re.search(r'index=(\d+)', counter.attributes)
  if not index or limit is None:
    return None
  around = {x.name: x for x in module.computations[computation]}
  initial = around.get(loop.operands[0])
  if initial is None or initial.opcode != 'tuple':
    return None

  def constant(line, lines):
    while line is not None and line.opcode in ('copy', 'bitcast'):
      line = lines.get(line.operands[0])
    if line is not None and line.opcode == 'constant':
      return int(line.operands[0])
    return None

  first = constant(around.get(initial.operands[int(index[1])]), around)
  if limit.opcode == 'get-tuple-element':  # The loop carries its limit.
    place = int(re.findall(r'index=(\d+)', limit.attributes)[0])
    last = constant(around.get(initial.operands[place]), around)
  else:
    last = constant(limit, lines)
  return None if first is None or last is None else max(last - first, 0)


def device_groups(attributes: str,
                  devices: int) -> Optional[list[tuple[int, ...]]]:
  """Reads which devices take part in a collective together.

  Args:
    attributes: the attributes of the collective. They have `replica_groups` as
      lists, as an iota (`[4,2]<=[2,4]T(1,0)`) or as axes of a mesh
      (`mesh['a'=2,'b'=4] {'b'}`), or `source_target_pairs`.
    devices: the number of devices.

  Returns:
    Groups of positions in the flattened mesh, or the pairs of a permutation;
    None if they cannot be read.
  """
  iota = re.search(
      r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?',
      attributes)
  if iota:
    shape, sides, order = ([int(n) for n in (part or '').split(',') if n]
                           for part in iota.groups())
    ids = np.arange(math.prod(sides)).reshape(sides)
    ids = ids.transpose(order) if order else ids
    return [tuple(row) for row in ids.reshape(shape).tolist()]
  named = re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', attributes)
  if named:
    sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
    along = re.findall(r"'(\w+)'", named[2])
    names = [name for name in sizes if name not in along] + along
    ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    ids = ids.transpose([list(sizes).index(name) for name in names])
    width = math.prod(sizes[name] for name in along)
    return [tuple(row) for row in ids.reshape(-1, width).tolist()]
  lists = re.search(r'(?:replica_groups|source_target_pairs)='
                    r'\{((?:\{[\d,]*\},?)*)\}', attributes)
  if not lists:
    return None
  groups = [tuple(int(n) for n in group.split(',') if n)
            for group in re.findall(r'\{([\d,]*)\}', lists[1])]
  groups = [group for group in groups if group]
  return groups or [tuple(range(devices))]
