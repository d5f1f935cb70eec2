"""The aligners: they bring a layer of student and teacher to one shape.

Each is a Haiku function, so that it may have parameters; only `project` does.
Features are channels-last.
"""

import dataclasses
from typing import Union

import haiku as hk
import jax
import jax.numpy as jnp

from haikd import attention
from haikd.align import pooling
from haikd.core import base
from haikd.core import checks
from haikd.core import masking
from haikd.core import registry

# What aligners take: arrays and, if they are registered as lazy, lazy values.
Value = Union[base.Logits, attention.MeanMaps]


@registry.register_aligner(lazy=True, keeps_logits=True)
def pool(student: Value, teacher: Value, *, mask: jax.Array,
         on: str) -> base.Pair:
  """Averages each axis of the larger side down to the smaller one.

  It has no parameters and never mixes axes. Positions are averaged where the
  mask is true, and the mask is pooled with them. In maps, heads and queries are
  averaged and keys are summed, so rows that sum to 1 still do. Logits are left
  as they are: their classes have no order along which to pool.

  Additive over `B`, which is never pooled.

  Args:
    student: `[B, ..., D]` floating; `[B, H, N, N]` or MeanMaps if `on` is
      'attention'; logits or LinearLogits if it is 'logits'. MeanMaps stay lazy
      if both sides have the same positions.
    teacher: of the same kind, rank and `B`.
    mask: bool, `[B]`, `[B, N]` or any leading axes of the side that has more
      positions.
    on: what the arrays are: 'logits', 'attention', or anything else for
      features.

  Returns:
    A Pair of one shape. Whatever is pooled is float32. A position of the mask
    counts if any position pooled into it did. Values behind the mask must not
    be used: a registered loss never sees them.

  Raises:
    ConfigError: ranks, batches or vocabularies differ, or the mask fits
      neither side.
  """
  if on == 'logits':
    _check_same_logits(student, teacher)
    return base.Pair(student, teacher, mask)
  if (isinstance(student, attention.MeanMaps) and
      isinstance(teacher, attention.MeanMaps)):
    if student.shape[2:] == teacher.shape[2:]:
      heads = min(student.heads, teacher.heads)
      return base.Pair(
          dataclasses.replace(student, heads=heads),
          dataclasses.replace(teacher, heads=heads), mask)
    student, teacher = student.materialise(), teacher.materialise()
  return _pool_arrays(student, teacher, mask, on)


def _pool_arrays(student, teacher, mask, on):
  """Does what `pool` does, on arrays other than logits."""
  _check_comparable(student, teacher)
  if on != 'attention':
    target = tuple(map(min, student.shape, teacher.shape))
    return _shrink(student, teacher, mask, target, target)
  if student.ndim != 4:
    raise checks.ConfigError(
        'student and teacher must be maps [B, H, N, N]; got '
        f'student.shape={student.shape}, teacher.shape={teacher.shape}. Tap '
        'the attention weights, or use a loss on features.')
  heads = min(student.shape[1], teacher.shape[1])
  student, teacher = (
      _pool(maps, (maps.shape[0], heads, *maps.shape[2:]))
      for maps in (student, teacher))
  if student.shape == teacher.shape:
    return base.Pair(student, teacher, mask)
  # [B, queries, keys, H]: positions come second, as in features.
  student, teacher = (
      _clean_keys(jnp.moveaxis(maps, 1, 3), mask) for maps in (student, teacher)
  )
  target = tuple(map(min, student.shape, teacher.shape))
  pair = _shrink(student, teacher, mask, target, target)
  student, teacher = (
      jnp.moveaxis(pooled * (maps.shape[2] / target[2]), 3, 1)
      for pooled, maps in ((pair.student, student), (pair.teacher, teacher)))
  return base.Pair(student, teacher, pair.mask)


@registry.register_aligner()
def project(student: jax.Array, teacher: jax.Array, *, mask: jax.Array,
            on: str) -> base.Pair:
  """Maps the student's features to the teacher's width by a learned layer.

  The layer is trained with the student, in float32, and not exported. It lets
  the student arrange its features in its own way, as long as they hold the
  teacher's information. It is there even if the widths agree. Positions are
  pooled as in `pool`.

  Additive over `B`.

  Args:
    student: `[B, ..., D]` floating.
    teacher: `[B, ..., E]` floating, the same rank and `B`.
    mask: bool, `[B]`, `[B, N]` or any leading axes, except the last, of the
      side that has more positions.
    on: what the arrays are; neither 'logits' nor 'attention'.

  Returns:
    A Pair, both `[B, ..., E]`; the student's is float32.

  Raises:
    ConfigError: the arrays are logits or maps, their ranks or batches differ,
      or the mask fits neither side.

  References:
    Romero et al., FitNets: Hints for Thin Deep Nets, arXiv:1412.6550, the
    regressor of equation 3.
  """
  if on in ('logits', 'attention'):
    raise checks.ConfigError(
        "align='project' must be used with a loss on features; got a loss on "
        f"{on!r}. Use align='pool'.")
  _check_comparable(student, teacher)
  if mask.ndim >= student.ndim:
    raise checks.ConfigError(
        'mask must not have the axis of the features; got mask.shape='
        f'{mask.shape}, student.shape={student.shape}.')
  positions = tuple(map(min, student.shape[:-1], teacher.shape[:-1]))
  pair = _shrink(student, teacher, mask, (*positions, student.shape[-1]),
                 (*positions, teacher.shape[-1]))
  # Flat, because a product of two matrices runs fast everywhere.
  rows = pair.student.astype(jnp.float32).reshape(-1, student.shape[-1])
  rows = hk.Linear(teacher.shape[-1], name='project')(rows)
  return pair._replace(student=rows.reshape(pair.teacher.shape))


@registry.register_aligner(lazy=True, keeps_logits=True)
def none(student: Value, teacher: Value, *, mask: jax.Array,
         on: str) -> base.Pair:
  """Leaves both sides as they are, for losses to check their shapes.

  Most losses demand equal shapes; some, such as `similarity_distribution`, take
  any width.

  Additive over `B`.

  Args:
    student: any shape.
    teacher: any shape; for logits, that of `student`.
    mask: bool, true where a position counts.
    on: what the arrays are.

  Returns:
    A Pair of the arguments.

  Raises:
    ConfigError: the shapes of logits differ.
  """
  if on == 'logits':
    _check_same_logits(student, teacher)
  return base.Pair(student, teacher, mask)


def _shrink(student, teacher, mask, student_target, teacher_target):
  """Pools both sides and the mask."""
  lead = mask.ndim
  longer = tuple(map(max, student.shape[:lead], teacher.shape[:lead]))
  if mask.shape != longer:
    raise checks.ConfigError(
        'mask must have the leading axes of the side that has more positions; '
        f'got mask.shape={mask.shape}, student.shape={student.shape}, '
        f'teacher.shape={teacher.shape}. Mask examples only, or tap layers '
        'whose positions are those of the data.')
  # The fraction of each pooled position that counts.
  share = _pool(mask, student_target[:lead])
  student = _pool_where(student, mask, share, student_target)
  teacher = _pool_where(teacher, mask, share, teacher_target)
  return base.Pair(student, teacher, share > 0)


def _pool_where(array, mask, share, target):
  """Pools the values that count; zeros elsewhere."""
  masked = array.shape[:mask.ndim] == mask.shape
  if masked:
    array = masking.clean(array, mask)
  if array.shape != target:
    array = _pool(array, target)
    if masked and share.shape != mask.shape:
      array /= masking.expand(jnp.where(share > 0, share, 1.0), array.ndim)
  return masking.clean(array, share > 0)


def _pool(array, target):
  # Where the sizes divide, ADAPTIVE is VALID.
  return pooling.avg_pool_array_to_target_shape(
      array.astype(jnp.float32), target, pooling.PaddingMode.ADAPTIVE)


def _clean_keys(maps, mask):
  """Zeros the padded keys of `[B, queries, keys, H]`, if the mask has keys."""
  if maps.shape[:3:2] != mask.shape:
    return maps
  maps = masking.clean(jnp.swapaxes(maps, 1, 2), mask)
  return jnp.swapaxes(maps, 1, 2)


def _check_comparable(student, teacher):
  if student.ndim != teacher.ndim or student.shape[:1] != teacher.shape[:1]:
    raise checks.ConfigError(
        'student and teacher must have the same rank and batch; got '
        f'student.shape={student.shape}, teacher.shape={teacher.shape}. Tap '
        'layers of the same kind, or register an aligner that reshapes them.')


def _check_same_logits(student, teacher):
  """Raises ConfigError unless the shapes agree."""
  if student.shape == teacher.shape:
    return
  got = f'student.shape={student.shape}, teacher.shape={teacher.shape}'
  if student.shape[:-1] != teacher.shape[:-1]:
    raise checks.ConfigError(
        'student and teacher must have logits at the same positions; '
        f'got {got}. Give both networks the same inputs.')
  difference = abs(student.shape[-1] - teacher.shape[-1])
  raise checks.ConfigError(
      f'student and teacher must have the same vocabulary; got {got}, which '
      f'differ by {difference} classes. Give both networks one tokenizer; '
      'where tables of tokens are padded, set used_classes of both to the '
      'size of the tokenizer; or distil features or attention instead of '
      'logits.')
