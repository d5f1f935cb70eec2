"""What a term compares, before it is aligned: the student's and the teacher's.

Here, and only here, the teacher's gradient is stopped.
"""

from typing import Optional

import jax
import jax.numpy as jnp

from haikd import base
from haikd import checks
from haikd import masking
from haikd import network
from haikd import terms

Layers = tuple[tuple[int, tuple[int, ...]], ...]  # Student, and teacher's.


def pairs(term: terms.Term, layers: Layers, student: network.Output,
          teacher: Optional[network.Output],
          batch: base.Batch) -> list[base.Pair]:
  """Returns the pairs of a term, one for each layer that it compares.

  Args:
    term: a term of the objective.
    layers: which student layer goes with which teacher layers, whose mean is
      taken; not used for logits, which have one pair.
    student: what the student gave for the batch.
    teacher: what the teacher gave, or None if the term needs none.
    batch: the batch.

  Returns:
    Pairs of arrays; the teacher's is None for a term that needs no teacher.
  """
  kind = term.entry.on
  if kind == terms.LOGITS:
    mask = target_mask(batch, student.logits)
    logits = masking.materialise(student.logits, mask)
    if not term.needs_teacher:
      return [base.Pair(logits, None, mask)]
    return [base.Pair(logits, _target([teacher.logits], mask), mask)]
  mask = batch.mask
  found = []
  for i, group in layers:
    value, target = _materialise(kind, student.taps[kind][i], mask), None
    if term.needs_teacher:
      target = _target([teacher.taps[kind][j] for j in group], mask, kind)
    found.append(base.Pair(value, target, mask))
  return found


def with_logits(output: network.Output, batch: base.Batch) -> network.Output:
  """Returns an output whose logits are computed, once for all terms."""
  mask = target_mask(batch, output.logits)
  return output._replace(logits=masking.materialise(output.logits, mask))


def target_mask(batch: base.Batch, logits: base.Logits) -> jax.Array:
  """Returns where logits count: bool, the leading axes of the logits."""
  mask = batch.mask if batch.target_mask is None else batch.target_mask
  if isinstance(logits, base.LinearLogits):
    logits = logits.hidden
  surplus = tuple(range(logits.ndim - 1, mask.ndim))
  return mask.any(axis=surplus) if surplus else mask


def _target(values, mask, kind=terms.LOGITS):
  """Returns the mean of the teacher's layers as a constant."""
  values = [_materialise(kind, value, mask) for value in values]
  if len(values) > 1:
    values = [sum(x.astype(jnp.float32) for x in values) / len(values)]
  return jax.lax.stop_gradient(values[0])


def _materialise(kind, value, mask):
  if isinstance(value, base.QueryKey):
    # From the very arrays that the network computes its own maps from, so that
    # the compiler does it once. Cleaning them would save no gradient: what is
    # wrong with them has gone through the network's attention already.
    value = value.materialise()
  value = masking.materialise(value, mask)
  if not isinstance(value, jax.Array):
    raise checks.ConfigError(
        f'pairing.pairs: taps.{kind} must match modules that return one array; '
        f'got {type(value).__name__}. Narrow the glob, or offer the array with '
        'haikd.tap.')
  return value
