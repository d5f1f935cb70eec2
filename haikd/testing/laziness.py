"""The rules of the contract of a loss that is computed in pieces."""

from collections.abc import Iterator
import operator

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import attention_mask
from haikd.core import base
from haikd.testing import cases
from haikd.testing import differences

_WIDTH = 7  # Features of the hidden states that logits are computed from.
# Positions of maps that are cut into several blocks, and size of a head.
_POSITIONS, _HEAD = 160, 3
_RTOL, _ATOL = 1e-4, 1e-5


def additive(case: cases.Case) -> Iterator[str]:
  """Yields if a loss is not the sum that `additive=True` promises."""
  if not case.entry.additive:
    return
  for mask in case.masks():
    inputs = case.filled(case.inputs(), mask, 0.0)
    if case.on_maps:
      if mask.ndim == 1:
        return
      parts, what = _rows_of_maps(inputs, mask), 'rows of maps'
    else:
      parts, what = _positions(inputs, mask), 'positions'
    whole = case.call(inputs, mask)
    got = [case.call_unguarded(part, real) for part, real in parts]
    total, count = (float(sum(x)) for x in zip(*got))
    if case.on_maps:  # The count is taken once, from the mask.
      count = float(whole.count)
    if problem := differences.first(
        cases.Measured(total, count, ()),
        cases.Measured(whole.total, whole.count, ())):
      yield (f'a loss with additive=True must be the sum over its {what}; got '
             f'{problem}. Leave additive=True out.')
      return


def lazy(case: cases.Case) -> Iterator[str]:
  """Yields if lazy logits or maps give something else than arrays."""
  if case.entry.on == 'logits':
    student, teacher, mask = _lazy_logits(case)
  elif case.on_maps and case.entry.additive and len(case.shape('mask')) == 2:
    student, teacher, mask = _lazy_maps()
  else:
    return
  labels = case.inputs().labels

  @jax.jit
  def measure(student, teacher):

    def total(student, teacher):
      result = case.call(cases.Inputs(student, teacher, labels), mask)
      return result.total, result

    (_, result), gradient = jax.value_and_grad(
        total, has_aux=True, allow_int=True)(student, teacher)
    return result, gradient

  @jax.jit
  def measure_arrays(student, teacher):

    def total(student):
      arrays = cases.Inputs(
          student.materialise(), teacher.materialise(), labels)
      result = case.call(arrays, mask)
      return result.total, result

    (_, result), gradient = jax.value_and_grad(
        total, has_aux=True, allow_int=True)(student)
    return result, gradient

  kind = type(student).__name__
  # Not of a mask, which has no gradient.
  names = [name for name, value in student._asdict().items()
           if isinstance(value, jax.Array)]
  got, expected = (
      cases.Measured(result.total, result.count,
                     tuple(getattr(gradient, name) for name in names))
      for result, gradient in (measure(student, teacher),
                               measure_arrays(student, teacher)))
  if problem := differences.first(
      got, expected, rtol=_RTOL, atol=_ATOL,
      sides=[f"student's {name}" for name in names]):
    yield (f'the loss must give for {kind} what it gives for arrays; got '
           f'{problem}. Leave additive=True out.')


def _positions(inputs, mask):
  """Yields each position by itself, as a batch of one."""
  flat = inputs.map(
      lambda x: x.reshape(mask.size, 1, *x.shape[mask.ndim:]))
  for number, real in enumerate(np.asarray(mask).reshape(-1)):
    yield flat.map(operator.itemgetter(number)), jnp.asarray([real])


def _rows_of_maps(inputs, mask):
  """Yields each row of the maps, with all keys."""
  for i in range(mask.shape[1]):
    row = np.s_[:, :, i:i + 1]
    yield (cases.Inputs(inputs.student[row], inputs.teacher[row], None),
           mask[:, i:i + 1])


def _lazy_logits(case):
  rng = np.random.default_rng(0)
  shape, mask = case.shape('student'), case.masks()[0]

  def side(classes):
    draw = lambda *size: jnp.asarray(rng.normal(size=size), jnp.float32)
    return base.LinearLogits(draw(*shape[:-1], _WIDTH), draw(_WIDTH, classes),
                             draw(classes))

  return side(shape[-1]), side(case.shape('teacher')[-1]), mask


def _lazy_maps():
  rng = np.random.default_rng(0)
  causal = attention_mask.AttentionMask(None, None, causal=True)
  draw = lambda: jnp.asarray(
      rng.normal(size=(2, _POSITIONS, 2, _HEAD)), jnp.float32)
  student, teacher = (base.QueryKey(draw(), draw(), causal) for _ in range(2))
  lengths = jnp.array([[_POSITIONS], [5]])
  return student, teacher, jnp.arange(_POSITIONS) < lengths
