"""The programs that a run compiles, how long that takes, and for what.

JAX says of each program how long tracing, lowering and XLA took, and whether it
came from the cache of compiled programs.
"""

from collections.abc import Iterator, Sequence
import contextlib
import threading
from typing import Any, NamedTuple

import jax

from haikd.processes import watchdog

_TRACED = '/jax/core/compile/jaxpr_trace_duration'
_LOWERED = '/jax/core/compile/jaxpr_to_mlir_module_duration'
_COMPILED = '/jax/core/compile/backend_compile_duration'
_HIT = '/jax/compilation_cache/cache_hits'
# What the large functions of `engine.program` are called.
_WORDS = dict(train_step='training step', eval_step='evaluation',
              init='initialisation', not_finite='check before saving')
_SMALL = 0.1  # Seconds below which programs are not named one by one.
COLUMNS = ('program', 'trace, s', 'lowering, s', 'XLA, s', 'from the cache')

_thread = threading.local()


class Program(NamedTuple):
  """A program that was compiled.

  Attributes:
    name: what it does, and of which network.
    trace: seconds in which JAX traced it.
    lowering: seconds in which it was lowered to what XLA reads.
    xla: seconds in which XLA compiled it, or read it from the cache.
    is_cached: whether it came from the cache.
  """

  name: str
  trace: float
  lowering: float
  xla: float
  is_cached: bool

  def seconds(self) -> float:
    """Returns what all of it took."""
    return self.trace + self.lowering + self.xla


@contextlib.contextmanager
def of(title: str) -> Iterator[None]:
  """Names the network that this thread compiles programs of inside.

  Args:
    title: of the network.
  """
  before = getattr(_thread, 'title', '')
  _thread.title = title
  try:
    yield
  finally:
    _thread.title = before


class Record:
  """What is compiled while it is open, by a `with` statement.

  Attributes:
    programs: in the order in which they were ready.
  """

  def __init__(self) -> None:
    self.programs: list[Program] = []
    self._traced: dict[str, float] = {}
    # By name: seconds of tracing and lowering, of what XLA has not got yet.
    self._lowered: dict[str, list[tuple[float, float]]] = {}

  def __enter__(self) -> 'Record':
    jax.monitoring.register_event_duration_secs_listener(self._took)
    jax.monitoring.register_event_listener(self._happened)
    return self

  def __exit__(self, *unused) -> None:
    jax.monitoring.unregister_event_duration_listener(self._took)
    jax.monitoring.unregister_event_listener(self._happened)

  def describe(self) -> str:
    """Returns how many programs were compiled and how many were read."""
    large = [x for x in self.programs if x.seconds() >= _SMALL]
    made, read = ([x for x in large if x.is_cached == cached]
                  for cached in (False, True))
    total = lambda part: sum(x.xla for x in part)
    texts = [f'{len(made)} programs were compiled in {total(made):.1f} s'
             ] if made or not read else []
    if read:
      texts.append(f'{len(read)} programs came from the cache in '
                   f'{total(read):.1f} s')
    return ', '.join(texts)

  def _happened(self, event: str, **unused: Any) -> None:
    if event == _HIT:
      _thread.is_cached = True

  def _took(self, event: str, duration_secs: float, **details: Any) -> None:
    if event not in (_TRACED, _LOWERED, _COMPILED):
      return
    name, seconds = _name(details['fun_name']), duration_secs
    if event == _TRACED:  # The last of a name is that of its outermost call.
      self._traced[name] = seconds
      return
    if event == _LOWERED:
      traced = self._traced.pop(name, 0.0)
      self._lowered.setdefault(name, []).append((traced, seconds))
      seconds += traced
    else:
      before = self._lowered.get(name) or [(0.0, 0.0)]
      is_cached = getattr(_thread, 'is_cached', False)
      _thread.is_cached = False
      self.programs.append(
          Program(name, *before.pop(0), seconds, is_cached))
    watchdog.attribute(watchdog.COMPILATION, seconds)


def rows(programs: Sequence[Program]) -> list[list[str]]:
  """Returns the rows of a table with `COLUMNS`; small programs are one row.

  Args:
    programs: in their order.
  """
  large = [x for x in programs if x.seconds() >= _SMALL]
  small = [x for x in programs if x.seconds() < _SMALL]
  table = [
      [x.name, *(f'{y:.2f}' for y in (x.trace, x.lowering, x.xla)),
       'yes' if x.is_cached else 'no'] for x in large]
  if small:
    sums = (sum(part) for part in zip(*(x[1:4] for x in small)))
    table.append([f'{len(small)} small ones', *(f'{x:.2f}' for x in sums), ''])
  return table


def _name(function):
  """Returns what a program does, given the name of its function."""
  name = function.removeprefix('jit(').removesuffix(')')
  title = getattr(_thread, 'title', '')
  if name not in _WORDS:
    return name
  return f'{_WORDS[name]} of {title}' if title else _WORDS[name]
