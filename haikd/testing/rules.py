"""The rules of the contract of a loss that hold for all losses.

Each yields what it finds wrong, as a sentence.
"""

from collections.abc import Iterator
import inspect
import operator

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.testing import cases
from haikd.testing import differences

_COPIES = 257  # The first count that bfloat16 cannot hold.
_LARGE = (1e4, np.nan, np.inf)  # What padding may hold.


def example(case: cases.Case) -> Iterator[str]:
  """Yields if there is nothing to make inputs from."""
  if 'attention' in case.entry.kinds and len(case.entry.kinds) > 1:
    yield ('the loss must have taps of one shape to be checked; got on='
           f'{case.entry.on}. Test it by hand.')
    return
  shapes = case.entry.example
  if not shapes or not {'student', 'mask'} <= set(shapes):
    yield (f'register_loss(example=…) must give shapes; got {shapes}. Write '
           'example=dict(student=(2, 3, 5), mask=(2, 3)).')
    return
  labels = inspect.signature(case.entry.function).parameters.get('labels')
  if labels is not None and labels.default is inspect.Parameter.empty and (
      'labels' not in shapes):
    yield (f'register_loss(example=…) must give the shape of labels; got '
           f'{shapes}. Add labels=….')


def runs(case: cases.Case) -> Iterator[str]:
  """Yields if it raises for its own example."""
  for way in ('eager', 'under jit'):
    try:
      arguments = case.inputs(), case.full_mask()
      if way == 'eager':
        case.call_unguarded(*arguments)
      else:
        jax.eval_shape(case.call_unguarded, *arguments)
    except Exception as err:  # The loss is code of its author's.
      yield (f'the loss must take its example {way}; got '
             f'{checks.describe(err)}. Pass options without a default to '
             'haikd.testing.check_loss.')
      return


def result(case: cases.Case) -> Iterator[str]:
  """Yields if it returns anything but two scalars that can be added up."""
  got = jax.eval_shape(case.call_unguarded, case.inputs(), case.full_mask())
  if not isinstance(got, base.LossSum):
    yield ('the loss must return a haikd.LossSum; got '
           f'{type(got).__name__}. End it with `return '
           'haikd.masked_mean(values, mask)`.')
    return
  legal = dict(total=(jnp.float32,), count=(jnp.float32, jnp.int32))
  for name, dtypes in legal.items():
    value = getattr(got, name)
    if value.shape or value.dtype not in dtypes:
      yield (f'{name} must be a scalar of '
             f'{" or ".join(np.dtype(x).name for x in dtypes)}; got '
             f'{name}.shape={value.shape}, {name}.dtype={value.dtype}. Sum in '
             'float32: a sum of bfloat16 stops at 256.')


def pure(case: cases.Case) -> Iterator[str]:
  """Yields if it gives something else each time, or has side effects."""
  arguments = case.inputs(), case.full_mask()
  first, second = (case.sums(*arguments) for _ in range(2))
  if problem := differences.first(second, first, exact=True):
    yield (f'the loss must give the same twice; got {problem}. Draw random '
           'numbers and keep state outside of it.')
  try:
    with jax.checking_leaks():
      effects = jax.make_jaxpr(case.call)(*arguments).effects
  except Exception as err:  # JAX raises a bare Exception.
    yield (f'the loss must keep no array of a call; got '
           f'{checks.describe(err)[:200]}. Return what you need, or offer it '
           'with haikd.tap in the network.')
    return
  if effects:
    yield ('the loss must have no side effect; got '
           f'{", ".join(sorted(map(str, effects)))}. Remove jax.debug and '
           'callbacks.')


def jit(case: cases.Case) -> Iterator[str]:
  """Yields if compiling changes more than rounding."""
  mask = case.masks()[0]
  compiled = case.measure(case.inputs(), mask)._replace(gradients=())
  # Not the gradient: op by op it takes longer than all other rules.
  eager = case.sums(case.inputs(), mask)
  if problem := differences.first(compiled, eager):
    yield (f'the loss must give the same compiled and eager; got {problem}. '
           'Branch with jnp.where, on nothing but the arguments.')


def empty(case: cases.Case) -> Iterator[str]:
  """Yields if something comes of nothing."""
  mask = jnp.zeros(case.shape('mask'), bool)
  for content in (1.0, np.nan):
    got = case.measure(case.filled(case.inputs(), mask, content), mask)
    zero = jax.tree.map(jnp.zeros_like, got)
    if problem := differences.first(got, zero, exact=True):
      yield (f'total, count and gradient must be 0 where the mask is false '
             f'everywhere; got {problem}. Use haikd.masked_mean, and divide by '
             'nothing that may be 0.')
      return


def finite(case: cases.Case) -> Iterator[str]:
  """Yields if a gradient is NaN or infinite."""
  inputs = case.inputs()
  equal = inputs._replace(teacher=inputs.student)
  nothing = jnp.zeros(case.shape('mask'), bool)
  gradient = jax.jit(jax.grad(
      lambda variables, inputs, mask: case.call_unguarded(
          inputs._replace(student=variables[0]), mask, variables[1]).total))
  tries = [('for random networks', inputs, case.full_mask()),
           ('for an empty mask', case.filled(inputs, nothing, 0.0), nothing)]
  if case.shape('student') == case.shape('teacher'):
    tries.append(('for equal networks', equal, case.full_mask()))
  for where, given, mask in tries:
    got = gradient((given.student, case.params), given, mask)
    wrong = [x for leaf in jax.tree.leaves(got)
             for x in np.ravel(leaf) if not np.isfinite(x)]
    if wrong:
      yield (f'the gradient must be finite {where}; got {wrong[0]}. Keep '
             'square roots and divisions away from 0: mask their arguments '
             'with jnp.where.')
      return


def padding(case: cases.Case) -> Iterator[str]:
  """Yields if labels in padding are seen; the guard cleans all else."""
  if case.inputs().labels is None:
    return
  for mask in case.masks():
    expected = case.measure(case.filled(case.inputs(), mask, 0.0), mask)
    for content in _LARGE:
      got = case.measure(case.filled(case.inputs(), mask, content), mask)
      if problem := differences.first(got, expected, exact=True):
        yield (f'labels in padding must change no bit; got {problem} with '
               f'{content} in padding. Replace them, with jnp.where, before '
               'you compute with them.')
        return


def rows(case: cases.Case) -> Iterator[str]:
  """Yields if an example that is padding counts."""
  keep = np.array([0, 1, 3])
  inputs = case.inputs()
  mask = case.full_mask().at[2].set(False)
  got = case.measure(inputs, mask)
  got = got._replace(gradients=jax.tree.map(lambda x: x[keep], got.gradients))
  expected = case.measure(inputs.map(lambda x: x[keep]), mask[keep])
  if problem := differences.first(got, expected):
    yield (f'an example without a real position must change nothing; got '
           f'{problem}. Use `mask` in every sum and mean.')


def columns(case: cases.Case) -> Iterator[str]:
  """Yields if positions that are padding for all examples count."""
  full = case.full_mask()
  if full.ndim != 2 or full.shape[1] < 2:
    return
  inputs, mask = case.inputs(), full.at[:, -1].set(False)

  def cut(array):
    return array[:, :, :-1, :-1] if case.on_maps else array[:, :-1]

  got = case.measure(case.filled(inputs, mask, 0.0), mask)
  got = got._replace(gradients=jax.tree.map(cut, got.gradients))
  labels = inputs.labels
  shorter = inputs._replace(labels=None).map(cut)._replace(
      labels=None if labels is None else labels[:, :-1])
  if problem := differences.first(got, case.measure(shorter, mask[:, :-1])):
    yield ('positions that are padding for all examples must change nothing; '
           f'got {problem}. Use `mask` in every sum and mean, and not the '
           'number of positions.')


def gradient(case: cases.Case) -> Iterator[str]:
  """Yields if nothing is learned."""
  by_student = case.measure(case.inputs(), case.full_mask()).gradients[0]
  if not any(map(np.any, jax.tree.leaves(by_student))):
    yield ('the gradient must reach the student; got zeros. Do not stop, round '
           'or compare the student.')


def count(case: cases.Case) -> Iterator[str]:
  """Yields if the count follows from values, or is rounded."""
  for mask in case.masks():
    one, other = (
        case.measure(case.inputs(seed)._replace(labels=case.inputs().labels),
                     mask).count for seed in (0, 1))
    if one != other:
      yield (f'count must depend on mask and labels alone; got {one} and '
             f'{other} for the same mask. Count where the mask is true.')
      return
  if case.entry.relational:  # Copies of an example add relations.
    return
  copies = lambda x: jnp.concatenate([x] * _COPIES)
  one = case.measure(case.inputs(), case.full_mask()).count
  many = case.measure(case.inputs().map(copies), copies(case.full_mask())).count
  if many != _COPIES * one:
    yield (f'count must be exact; got {many} for {_COPIES} times {one}. Sum '
           'the mask as int32 or float32.')


def order(case: cases.Case) -> Iterator[str]:
  """Yields if the order of examples matters."""
  moved = np.array([2, 0, 3, 1])
  inputs, mask = case.inputs(), case.masks()[0]
  expected = case.measure(inputs, mask)
  expected = expected._replace(
      gradients=jax.tree.map(lambda x: x[moved], expected.gradients))
  got = case.measure(inputs.map(lambda x: x[moved]), mask[moved])
  if problem := differences.first(got, expected):
    yield (f'the order of examples must not matter; got {problem} in another '
           'order. Which examples share a batch is chance.')


def shards(case: cases.Case) -> Iterator[str]:
  """Yields if the parts of a batch do not add up to it."""
  if case.entry.relational:
    return
  for mask in case.masks():
    whole = case.measure(case.inputs(), mask)
    first, second = (
        case.measure(case.inputs().map(operator.itemgetter(part)), mask[part])
        for part in (slice(0, 1), slice(1, None)))
    total = cases.Measured(
        first.total + second.total, first.count + second.count,
        jax.tree.map(lambda x, y: jnp.concatenate([x, y]), first.gradients,
                     second.gradients))
    if problem := differences.first(total, whole):
      yield ('the sums of two parts of a batch must be those of the batch; got '
             f'{problem}. Return sums, not means; a loss that relates examples '
             'to one another is registered with relational=True.')
      return
