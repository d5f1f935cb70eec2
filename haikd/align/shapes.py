"""The aligners: one layer of student and teacher, brought to one shape.

Each is a Haiku function, so that it may own parameters; only `project` does.
Features come channels last.
"""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp

from haikd import attention
from haikd.align import pooling
from haikd.core import base
from haikd.core import checks
from haikd.core import masking
from haikd.core import registry


@registry.register_aligner(lazy=True, keeps_logits=True)
def pool(student: jax.Array, teacher: jax.Array, *, mask: jax.Array,
         on: str) -> base.Pair:
  """Averages the larger side of every axis down to the smaller one.

  Nothing to learn, and no axis is ever mixed with another. Positions are
  averaged where the mask is true, and the mask is pooled with them. Of maps,
  heads and queries are averaged and keys are summed, so that rows which sum to
  1 still do. Logits are left as they are: their classes have no order to pool
  along.

  Additive over `B`, which is never pooled.

  Args:
    student: `[B, ..., D]` floating; `[B, H, N, N]` if `on` is 'attention', or
      MeanMaps, which stay uncomputed where the positions agree.
    teacher: the same rank and `B`.
    mask: bool, `[B]`, `[B, N]` or any leading axes of the side that has more
      positions.
    on: what the arrays are: 'logits', 'attention', or anything else for
      features.

  Returns:
    A Pair of one shape. What is pooled is float32. A position of the mask
    counts if any that went into it did. What stands behind the mask is not to
    be used: a registered loss never sees it.

  Raises:
    ConfigError: ranks, batches or vocabularies differ, or the mask fits
      neither side.
  """
  where = 'align.pool'
  if on == 'logits':
    _check_same_logits(where, student, teacher)
    return base.Pair(student, teacher, mask)
  if isinstance(student, attention.MeanMaps):
    if student.shape[2:] == teacher.shape[2:]:
      heads = min(student.heads, teacher.heads)
      return base.Pair(*(dataclasses.replace(x, heads=heads)
                         for x in (student, teacher)), mask)
    student, teacher = student.materialise(), teacher.materialise()
  _check_comparable(where, student, teacher)
  if on != 'attention':
    target = tuple(map(min, student.shape, teacher.shape))
    return _shrink(where, student, teacher, mask, target, target)
  if student.ndim != 4:
    raise checks.ConfigError(
        f'{where}: student and teacher must be maps [B, H, N, N]; got '
        f'student.shape={student.shape}, teacher.shape={teacher.shape}. Tap '
        'the attention weights, or align something else than attention.')
  heads = min(student.shape[1], teacher.shape[1])
  student, teacher = (
      _pool(maps, (maps.shape[0], heads, *maps.shape[2:]))
      for maps in (student, teacher))
  if student.shape == teacher.shape:
    return base.Pair(student, teacher, mask)
  # [B, queries, keys, H], so that positions come second, as in features.
  student, teacher = (
      _clean_keys(jnp.moveaxis(maps, 1, 3), mask) for maps in (student, teacher)
  )
  target = tuple(map(min, student.shape, teacher.shape))
  pair = _shrink(where, student, teacher, mask, target, target)
  student, teacher = (
      jnp.moveaxis(pooled * (maps.shape[2] / target[2]), 3, 1)
      for pooled, maps in ((pair.student, student), (pair.teacher, teacher)))
  return base.Pair(student, teacher, pair.mask)


@registry.register_aligner()
def project(student: jax.Array, teacher: jax.Array, *, mask: jax.Array,
            on: str) -> base.Pair:
  """Maps the student's features to the teacher's width by a learned layer.

  The map is trained with the student, in float32, and left out of what is
  exported: the student need not arrange its features as the teacher does, only
  hold what is in them. It is there when the widths agree, too. Positions are
  pooled as in `pool`.

  Additive over `B`.

  Args:
    student: `[B, ..., D]` floating.
    teacher: `[B, ..., E]` floating, the same rank and `B`.
    mask: bool, `[B]`, `[B, N]` or any leading axes, without the last, of the
      side that has more positions.
    on: what the arrays are; neither 'logits' nor 'attention'.

  Returns:
    A Pair, both `[B, ..., E]`; the student's is float32.

  Raises:
    ConfigError: logits or maps, ranks or batches that differ, or a mask that
      fits neither side.

  References:
    Romero et al., FitNets: Hints for Thin Deep Nets, arXiv:1412.6550, the
    regressor of equation 3.
  """
  where = 'align.project'
  if on in ('logits', 'attention'):
    raise checks.ConfigError(
        f'{where}: on must be features, which a learned layer may rearrange; '
        f"got on={on!r}. Use align='pool'.")
  _check_comparable(where, student, teacher)
  if mask.ndim >= student.ndim:
    raise checks.ConfigError(
        f'{where}: mask must leave the axis of the features; got mask.shape='
        f'{mask.shape}, student.shape={student.shape}.')
  positions = tuple(map(min, student.shape[:-1], teacher.shape[:-1]))
  pair = _shrink(where, student, teacher, mask,
                 (*positions, student.shape[-1]),
                 (*positions, teacher.shape[-1]))
  # Flat, because a product of two matrices is what runs fast everywhere.
  rows = pair.student.astype(jnp.float32).reshape(-1, student.shape[-1])
  rows = hk.Linear(teacher.shape[-1], name='project')(rows)
  return pair._replace(student=rows.reshape(pair.teacher.shape))


@registry.register_aligner(lazy=True, keeps_logits=True)
def none(student: jax.Array, teacher: jax.Array, *, mask: jax.Array,
         on: str) -> base.Pair:
  """Leaves both sides as they are; a loss demands that their shapes agree.

  Some take any width, such as `similarity_distribution`.

  Additive over `B`.

  Args:
    student: any shape.
    teacher: any shape; of logits, like `student`.
    mask: bool, true where a position counts.
    on: what the arrays are.

  Returns:
    A Pair of the arguments.

  Raises:
    ConfigError: logits whose shapes differ.
  """
  if on == 'logits':
    _check_same_logits('align.none', student, teacher)
  return base.Pair(student, teacher, mask)


def _shrink(where, student, teacher, mask, student_target, teacher_target):
  """Pools both sides, the mask with them."""
  lead = mask.ndim
  longer = tuple(map(max, student.shape[:lead], teacher.shape[:lead]))
  if mask.shape != longer:
    raise checks.ConfigError(
        f'{where}: mask must have the leading axes of the side that has more '
        f'positions; got mask.shape={mask.shape}, student.shape='
        f'{student.shape}, teacher.shape={teacher.shape}. Mask examples only, '
        'or tap layers where the positions are those of the data.')
  # The part of each pooled position that counts.
  share = _pool(mask, student_target[:lead])
  student = _pool_where(student, mask, share, student_target)
  teacher = _pool_where(teacher, mask, share, teacher_target)
  return base.Pair(student, teacher, share > 0)


def _pool_where(array, mask, share, target):
  """Pools what counts; zeros elsewhere."""
  masked = array.shape[:mask.ndim] == mask.shape
  if masked:
    array = masking.clean(array, mask)
  if array.shape != target:
    array = _pool(array, target)
    if masked and share.shape != mask.shape:
      array /= masking.expand(jnp.where(share > 0, share, 1.0), array.ndim)
  return masking.clean(array, share > 0)


def _pool(array, target):
  # ADAPTIVE is VALID wherever the sizes divide.
  return pooling.avg_pool_array_to_target_shape(
      array.astype(jnp.float32), target, pooling.PaddingMode.ADAPTIVE)


def _clean_keys(maps, mask):
  """Zeros padded keys of `[B, queries, keys, H]` if the mask knows them."""
  if maps.shape[:3:2] != mask.shape:
    return maps
  maps = masking.clean(jnp.swapaxes(maps, 1, 2), mask)
  return jnp.swapaxes(maps, 1, 2)


def _check_comparable(where, student, teacher):
  if student.ndim != teacher.ndim or student.shape[:1] != teacher.shape[:1]:
    raise checks.ConfigError(
        f'{where}: student and teacher must have the same rank and batch; got '
        f'student.shape={student.shape}, teacher.shape={teacher.shape}. Tap '
        'layers of one kind, or register an aligner that reshapes them.')


def _check_same_logits(where, student, teacher):
  """Raises ConfigError unless the shapes agree."""
  if student.shape == teacher.shape:
    return
  got = f'student.shape={student.shape}, teacher.shape={teacher.shape}'
  if student.shape[:-1] != teacher.shape[:-1]:
    raise checks.ConfigError(
        f'{where}: student and teacher must have logits at the same positions; '
        f'got {got}. Give both networks the same inputs.')
  apart = abs(student.shape[-1] - teacher.shape[-1])
  raise checks.ConfigError(
      f'{where}: student and teacher must have the same vocabulary; got {got}, '
      f'{apart} classes apart. Give the student the '
      "teacher's tokenizer and number of classes, or distil features or "
      'attention in place of logits.')
