"""Initialises with programs that compile fast on CPU.

A network draws each parameter by itself, with a key that it splits off the last
one. XLA compiles every draw and every split anew, which takes most of the time
of a first start. Here all draws of one shape and distribution are the
iterations of one loop, and so are the splits. The numbers stay the same, except
for the last bit, which XLA may round in another way.
"""

from collections.abc import Callable, Iterator
import dataclasses
from typing import Any, NamedTuple, Optional

import jax
from jax import lax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from haikd.core import jax_internals
from haikd.core import random_bits

# A loop holds its draws a second time, whole on each device. The limit is
# therefore lower where devices hold parts of a network. Draws above it are few;
# they are made as usual.
_MAX_BYTES, _MAX_BYTES_OF_MANY = 2**27, 2**22


@dataclasses.dataclass(frozen=True, eq=False, repr=False)  # JAX asks for it.
class Traced:
  """A function of a PRNG key that was traced once.

  Attributes:
    jaxpr: closed, without the code that nothing uses.
    results: what it returns, a pytree of ShapeDtypeStructs.
    max_bytes: that a loop may draw; 0 to make all draws as usual.
  """

  jaxpr: Any
  results: Any
  max_bytes: int

  @property
  def __name__(self) -> str:
    """The name of the program that is compiled of it."""
    return 'init'

  def __call__(self, rng: jax.Array) -> Any:
    """Returns the results for a key."""
    outputs = _run(self.jaxpr, rng, self.max_bytes)
    return jax.tree.unflatten(jax.tree.structure(self.results), outputs)


def trace(function: Callable[[jax.Array], Any],
          mesh: jax.sharding.Mesh) -> Traced:
  """Returns a traced function.

  Args:
    function: of a typed PRNG key; returns a pytree of arrays.
    mesh: that it is to run on.
  """
  max_bytes = 0
  if mesh.devices.flat[0].platform == 'cpu':
    max_bytes = _MAX_BYTES if mesh.size == 1 else _MAX_BYTES_OF_MANY

  def run(rng):
    if not max_bytes:
      return function(rng)
    return random_bits.as_usual(function(random_bits.in_parts(rng, max_bytes)))

  make = lambda traced: jax.make_jaxpr(
      traced, return_shape=True)(jax.random.key(0))
  try:
    closed, results = make(run)
  except Exception:  # It needs keys of JAX's kind, or raises an error again.
    max_bytes = 0
    closed, results = make(function)
  live = jax_internals.drop_dead_code(closed.jaxpr)
  return Traced(core.ClosedJaxpr(live, closed.consts), results, max_bytes)


def _run(closed, rng, max_bytes):
  """Evaluates a jaxpr, its equal draws and its chains of splits in loops."""
  if not max_bytes:
    return core.jaxpr_as_fun(closed)(rng)
  jaxpr = closed.jaxpr
  values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, rng)))
  read = lambda x: x.val if isinstance(x, core.Literal) else values[x]
  made_by = {x: eqn for eqn in jaxpr.eqns for x in eqn.outvars}
  loops = *_chains(jaxpr, made_by), *_equal_draws(jaxpr, max_bytes)
  loop_of = {id(eqn): loop for loop in loops for eqn in loop.eqns}
  numbers = _numbers(max((len(loop.eqns) for loop in loops), default=0))

  def evaluate(loop):
    for eqn, outputs in zip(loop.eqns, loop.run(read, numbers)):
      values.update(zip(eqn.outvars, outputs))

  # What an equation or its loop needs is evaluated first, then all of the loop.
  for eqn in jaxpr.eqns:
    waiting = [eqn]
    while waiting:
      loop = loop_of.get(id(waiting[-1])) or _Alone([waiting[-1]])
      missing = [x for x in loop.needs if x not in values]
      if missing:
        waiting.extend(made_by[x] for x in missing)
      elif not set(waiting.pop().outvars) & values.keys():
        evaluate(loop)
  return list(map(read, jaxpr.outvars))


def _numbers(count):
  """Returns the numbers from 0 that take single results out of a loop's.

  XLA compiles a kernel for each number that it knows. It does not see that
  these end as they began, so one kernel takes out any result.
  """
  rotate = lambda _, numbers: (*numbers[1:], *numbers[:1])
  return lax.fori_loop(0, count, rotate, tuple(map(np.int32, range(count))))


def _take(array, number):
  return lax.dynamic_index_in_dim(
      array, number, keepdims=False, allow_negative_indices=False)


class _Alone(NamedTuple):
  """An equation by itself."""

  eqns: list[Any]

  @property
  def needs(self) -> list[Any]:
    """The variables that it needs."""
    return _variables(self.eqns[0])

  def run(self, read: Callable, numbers: Any) -> list[Any]:
    """Returns its outputs, in a list."""
    del numbers  # It is no loop.
    eqn, = self.eqns
    params = eqn.primitive.get_bind_params(eqn.params)
    with eqn.ctx.manager:
      results = eqn.primitive.bind(*map(read, eqn.invars), **params)
    return [results if eqn.primitive.multiple_results else [results]]


class _Chain(NamedTuple):
  """Splits in two, each of the first key that the one before gave."""

  eqns: list[Any]

  @property
  def needs(self) -> list[Any]:
    """The variables that they need."""
    return _variables(self.eqns[0])

  def run(self, read: Callable,
          numbers: tuple[jax.Array, ...]) -> Iterator[list[jax.Array]]:
    """Returns the outputs of each."""

    def split(key, _):
      keys = jax.random.split(key)
      return keys[0], keys

    _, keys = lax.scan(split, read(*self.needs), length=len(self.eqns))
    return ([_take(keys, number)] for _, number in zip(self.eqns, numbers))


class _Draws(NamedTuple):
  """Equal calls of a function of keys and constants."""

  eqns: list[Any]

  @property
  def needs(self) -> list[Any]:
    """The variables that they need, all keys."""
    return [x for eqn in self.eqns for x in _variables(eqn)]

  def run(self, read: Callable,
          numbers: tuple[jax.Array, ...]) -> Iterator[list[jax.Array]]:
    """Returns the outputs of each."""
    function = core.jaxpr_as_fun(self.eqns[0].params['jaxpr'])

    def draw(keys):
      keys = iter(keys)
      return function(*(x.val if isinstance(x, core.Literal) else next(keys)
                        for x in self.eqns[0].invars))

    keys = zip(*(map(read, _variables(eqn)) for eqn in self.eqns))
    outputs = lax.map(draw, list(map(jnp.stack, keys)))
    return ([_take(x, number) for x in outputs]
            for _, number in zip(self.eqns, numbers))


def _variables(eqn):
  """Returns what an equation takes beside constants."""
  return [x for x in eqn.invars if not isinstance(x, core.Literal)]


def _chains(jaxpr, made_by) -> Iterator[_Chain]:
  """Yields the chains of splits."""
  splits = [eqn for eqn in jaxpr.eqns if _is_split_in_two(eqn)]
  # By the id of a split, the first that splits its first key.
  follows: dict[int, Any] = {}
  for eqn in splits:
    before = _split_of_first_key(eqn.invars[0], made_by)
    if before is not None:
      follows.setdefault(id(before), eqn)
  in_chain = set(map(id, follows.values()))
  for eqn in splits:
    chain = [] if id(eqn) in in_chain else [eqn]
    while chain and id(chain[-1]) in follows:
      chain.append(follows[id(chain[-1])])
    if len(chain) > 1:
      yield _Chain(chain)


def _is_split_in_two(eqn):
  return (eqn.primitive.name == 'random_split' and
          eqn.params['shape'] == (2,) and eqn.invars[0].aval.shape == ())


def _split_of_first_key(key, made_by) -> Optional[Any]:
  """Returns the split in two whose first key this is; None if it is none.

  JAX up to 0.11 takes it by a slice, which it squeezes; later by `unstack`.
  """
  eqn = made_by.get(key)
  if eqn is not None and eqn.primitive.name == 'squeeze':
    eqn = made_by.get(eqn.invars[0])
    is_first = eqn is not None and eqn.primitive.name == 'slice' and (
        eqn.params['limit_indices'] == (1,))
  else:
    is_first = eqn is not None and eqn.primitive.name == 'unstack' and (
        eqn.outvars[0] is key)
  split = made_by.get(eqn.invars[0]) if is_first else None
  return split if split is not None and _is_split_in_two(split) else None


def _equal_draws(jaxpr, max_bytes) -> Iterator[_Draws]:
  """Yields the equal draws, in loops whose results are not too large.

  A draw whose key depends on another draw stays alone: a loop with both would
  need its own result.
  """
  drawn: set[Any] = set()  # Variables that depend on a draw.
  equal: dict[Any, list[Any]] = {}
  for eqn in jaxpr.eqns:
    depends = not drawn.isdisjoint(_variables(eqn))
    if _is_draw(eqn) and not depends:
      constants = tuple(np.asarray(x.val).item() for x in eqn.invars
                        if isinstance(x, core.Literal))
      equal.setdefault((id(eqn.params['jaxpr']), constants), []).append(eqn)
    if _is_draw(eqn) or depends:
      drawn.update(eqn.outvars)
  for eqns in equal.values():
    size = sum(x.aval.size * x.aval.dtype.itemsize for x in eqns[0].outvars)
    at_once = max(max_bytes // max(size, 1), 1)
    for first in range(0, len(eqns), at_once):
      some = eqns[first:first + at_once]
      if len(some) > 1:
        yield _Draws(some)


def _is_draw(eqn):
  """Returns whether an equation calls a function of keys and constants."""
  return eqn.primitive.name in ('jit', 'pjit') and bool(
      _variables(eqn)) and all(
          jnp.issubdtype(x.aval.dtype, jax.dtypes.prng_key)
          for x in _variables(eqn))
