"""The aligners: they bring a layer of student and teacher to one shape.

Each is a Haiku function, so that it may have parameters; these have none.
Features are channels-last.
"""

import dataclasses
from typing import Optional, Union

import jax
import jax.numpy as jnp

from haikd import attention
from haikd.align import grids
from haikd.align import pooling
from haikd.core import base
from haikd.core import checks
from haikd.core import masking
from haikd.core import registry

# What aligners take: arrays and, if they are registered as lazy, lazy values.
Value = Union[base.Logits, attention.MeanMaps]


@registry.register_aligner(lazy=True, keeps_logits=True)
def pool(student: Value, teacher: Value, *, mask: jax.Array, on: str,
         grid: Optional[bool] = None,
         class_token: str = grids.DROP) -> base.Pair:
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
      features. Of these one side may be a map `[B, h, w, C]` and the other
      tokens `[B, N, D]` of an image, which then become a map.
    grid: whether features `[B, N, D]` on both sides are tokens of images, to be
      averaged as maps are; None to refuse those that look like it, as they have
      a class token.
    class_token: 'drop' leaves tokens before those of places out; 'add' adds
      their sum to each place (Ranftl et al., arXiv:2103.13413, a readout).

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
  if on != 'attention':
    student, teacher = grids.to_maps(
        student, teacher, mask=mask, grid=grid, class_token=class_token)
  return _pool_arrays(student, teacher, mask, on)


def _pool_arrays(student, teacher, mask, on):
  """Does what `pool` does, on arrays other than logits."""
  check_comparable(student, teacher)
  if on != 'attention':
    target = tuple(map(min, student.shape, teacher.shape))
    return shrink(student, teacher, mask, target, target)
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
  pair = shrink(student, teacher, mask, target, target)
  student, teacher = (
      jnp.moveaxis(pooled * (maps.shape[2] / target[2]), 3, 1)
      for pooled, maps in ((pair.student, student), (pair.teacher, teacher)))
  return base.Pair(student, teacher, pair.mask)


@registry.register_aligner(lazy=True, keeps_logits=True)
def none(student: Value, teacher: Value, *, mask: jax.Array,
         on: str) -> base.Pair:
  """Leaves both sides as they are, for losses to check their shapes.

  Most losses demand equal shapes; some, such as `similarity_distribution` and
  `universal_logit`, take any width.

  Additive over `B`.

  Args:
    student: any shape.
    teacher: any shape; for logits, that of `student` but for the last axis.
    mask: bool, true where a position counts.
    on: what the arrays are.

  Returns:
    A Pair of the arguments.

  Raises:
    ConfigError: logits do not have the same positions.
  """
  if on == 'logits':
    _check_same_positions(student, teacher)
  return base.Pair(student, teacher, mask)


def shrink(student: jax.Array, teacher: jax.Array, mask: jax.Array,
           student_target: tuple[int, ...],
           teacher_target: tuple[int, ...]) -> base.Pair:
  """Pools both sides and the mask.

  Args:
    student: floating, as long as its target or longer in each axis.
    teacher: likewise.
    mask: bool, the leading axes of the side that has more positions.
    student_target: the shape of the student's side.
    teacher_target: that of the teacher's.

  Raises:
    ConfigError: the mask fits neither side.
  """
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


def check_comparable(student: jax.Array, teacher: jax.Array) -> None:
  """Raises ConfigError unless ranks and batches agree."""
  if student.ndim != teacher.ndim or student.shape[:1] != teacher.shape[:1]:
    raise checks.ConfigError(
        'student and teacher must have the same rank and batch; got '
        f'student.shape={student.shape}, teacher.shape={teacher.shape}. Tap '
        'layers of the same kind, or register an aligner that reshapes them.')


def _check_same_positions(student, teacher):
  """Raises ConfigError unless logits agree but for their vocabulary."""
  if student.shape[:-1] != teacher.shape[:-1]:
    raise checks.ConfigError(
        'student and teacher must have logits at the same positions; got '
        f'student.shape={student.shape}, teacher.shape={teacher.shape}. Give '
        'both networks the same inputs.')


def _check_same_logits(student, teacher):
  """Raises ConfigError unless the shapes agree."""
  _check_same_positions(student, teacher)
  difference = abs(student.shape[-1] - teacher.shape[-1])
  if difference:
    raise checks.ConfigError(
        'student and teacher must have the same vocabulary; got student.shape='
        f'{student.shape}, teacher.shape={teacher.shape}, which differ by '
        f'{difference} classes. Give both networks one tokenizer; where tables '
        'of tokens are padded, set used_classes of both to the size of the '
        'tokenizer; or use the loss universal_logit, or distil features or '
        'attention instead of logits.')
