"""What a term compares, before it is aligned: the student's and the teacher's.

Here, and only here, the teacher's gradient is stopped.
"""

import math
from typing import Any, Optional

import jax
import jax.numpy as jnp

from haikd import attention
from haikd.core import base
from haikd.core import checks
from haikd.core import masking
from haikd.network import network as network_lib
from haikd.objective import terms

EMBEDDING = 'embedding'  # The tap that has a vector for each text.
Layers = tuple[tuple[int, tuple[int, ...]], ...]  # Student, and teacher's.


def pairs(term: terms.Term, layers: Layers, student: network_lib.NetworkOutput,
          teacher: Optional[network_lib.NetworkOutput],
          batch: base.Batch, *, lazy: bool) -> list[base.Pair]:
  """Returns the pairs of a term, one for each layer that it compares.

  Args:
    term: a term of the objective.
    layers: which student layer goes with which teacher layers, whose mean is
      taken; not used for logits, which have one pair.
    student: what the student gave for the batch.
    teacher: what the teacher gave, or None if the term needs none.
    batch: the batch.
    lazy: whether to leave logits as they are that were not computed yet, and
      attention maps, as `attention.MeanMaps`.

  Returns:
    Pairs; the teacher's is None for a term that needs no teacher.
  """
  kind = term.entry.on
  if kind == terms.LOGITS:
    sides = dict(student=student)
    if term.needs_teacher:
      sides['teacher'] = teacher
    for side, output in sides.items():
      if isinstance(output.logits, base.Embedding):
        raise checks.ConfigError(
            f'pairing.pairs: a loss on logits must have logits; got an '
            f'Embedding from config.{side}. Set config.distillation.alpha = 0,'
            ' take data without classes as labels, and add losses on '
            "'embedding' to config.losses.")
    mask = target_mask(batch, student.logits)
    logits = [student.logits]
    if term.needs_teacher:
      logits.append(jax.lax.stop_gradient(teacher.logits))
    if not lazy:
      logits = [masking.materialise(x, mask) for x in logits]
    return [base.Pair(*(*logits, None)[:2], mask)]
  found = []
  for i, group in layers:
    value = _captured(student, kind, i)
    mask = tap_mask(batch.mask, value, kind)
    targets = []
    if term.needs_teacher:
      targets = [_captured(teacher, kind, j) for j in group]
    if lazy and _are_maps(kind, value, targets):
      value = _mean_maps([value])
      target = jax.lax.stop_gradient(_mean_maps(targets)) if targets else None
    else:
      value = _materialise(value, mask)
      target = _target(targets, mask) if targets else None
    found.append(base.Pair(value, target, mask))
  return found


def with_logits(output: Optional[network_lib.NetworkOutput],
                batch: base.Batch) -> Optional[network_lib.NetworkOutput]:
  """Returns an output whose logits, if any, are computed, once for all."""
  if output is None or output.logits is None:
    return output
  mask = target_mask(batch, output.logits)
  return output._replace(logits=masking.materialise(output.logits, mask))


def target_mask(batch: base.Batch, logits: base.Output) -> jax.Array:
  """Returns where logits, or vectors, count: bool, their leading axes."""
  if isinstance(logits, base.Embedding):
    return _reduced(batch.mask, logits.vectors.ndim - 1)
  mask = batch.mask if batch.target_mask is None else batch.target_mask
  if isinstance(logits, base.LinearLogits):
    logits = logits.hidden
  return _reduced(mask, logits.ndim - 1)


def tap_mask(mask: jax.Array, value: Any, kind: str) -> jax.Array:
  """Returns where a captured value counts.

  A vector for a whole text counts where the text has a position that does. Of
  several texts an example, which a network has laid one after the other, each
  has its own part of the mask.

  Args:
    mask: of the batch: bool, `[B]`, `[B, N]` or `[B, S, N]`.
    value: what was captured.
    kind: of the tap.

  Returns:
    A bool mask: `mask` itself, where its shape begins that of the value.
  """
  if isinstance(value, (base.QueryKey, base.LinearLogits)):
    value = value[0]  # Query or hidden, which has the axes of the positions.
  shape = jnp.shape(value)
  texts = math.prod(mask.shape[:-1])
  is_flat = shape[:1] == (texts,) and shape[:mask.ndim] != mask.shape
  if mask.ndim > 2 and is_flat and (kind != EMBEDDING or
                                    texts != mask.shape[0]):
    mask = mask.reshape(texts, -1)
  # By chance D may be N: of an embedding the rank alone decides.
  if kind == EMBEDDING or shape[:mask.ndim] != mask.shape:
    return _reduced(mask, len(shape) - 1)
  return mask


def _reduced(mask, rank):
  """Returns where any of what stands behind the first axes counts."""
  surplus = tuple(range(rank, mask.ndim))
  return mask.any(axis=surplus) if surplus else mask


def _are_maps(kind, value, targets):
  """Returns whether all are attention maps not computed yet, of one shape."""
  return (kind == 'attention' and
          all(isinstance(x, base.QueryKey) for x in (value, *targets)) and
          len({x.shape for x in targets}) <= 1)


def _mean_maps(values):
  return attention.MeanMaps(tuple(values), values[0].shape[1])


def _target(values, mask):
  """Returns the mean of the teacher's layers as a constant."""
  values = [_materialise(value, mask) for value in values]
  if len(values) > 1:
    values = [sum(x.astype(jnp.float32) for x in values) / len(values)]
  return jax.lax.stop_gradient(values[0])


def _materialise(value, mask):
  if isinstance(value, base.QueryKey):
    # From the very arrays that the network computes its own maps from, so that
    # the compiler does it once. Cleaning them would save no gradient: what is
    # wrong with them has gone through the network's attention already.
    value = value.materialise()
  return masking.materialise(value, mask)


def _captured(output, kind, index):
  """Returns what a tap holds: an array, or what is not computed yet."""
  value = output.taps[kind][index]
  if not isinstance(
      value, (jax.Array, base.QueryKey, base.LinearLogits)):
    raise checks.ConfigError(
        f'pairing.pairs: taps.{kind} must match modules that return one array; '
        f'got {type(value).__name__}. Narrow the glob, or offer the array with '
        'haikd.tap.')
  return value
