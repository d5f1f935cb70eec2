"""The aligner that fuses several layers of the student, from last to first."""

from typing import Optional

import haiku as hk
import jax
import jax.numpy as jnp

from haikd.align import grids
from haikd.align import shapes
from haikd.core import base
from haikd.core import checks
from haikd.core import masking
from haikd.core import registry

_MOST_WIDE = 512  # The width of the fusion, at most, where none is given.


@registry.register_aligner(all_layers=True)
def knowledge_review(student: tuple[jax.Array, ...],
                     teacher: tuple[jax.Array, ...], *,
                     mask: tuple[jax.Array, ...], on: str,
                     width: Optional[int] = None, grid: Optional[bool] = None,
                     class_token: str = grids.DROP) -> tuple[base.Pair, ...]:
  """Fuses each layer of the student with all that follow it, by attention.

  An early layer of the teacher is thereby learned by later layers of the
  student too. From the last layer to the first, a convolution of 1 x 1 brings a
  map to `width` channels; what comes from the layers behind it is enlarged to
  its places and added, each of both multiplied by a map of attention that is a
  sigmoid of a convolution of 1 x 1 over both; a convolution of 3 x 3 then makes
  what is compared with the teacher. All of it is trained with the student, in
  float32, and not exported. The paper's loss on it is `hierarchical_context`.

  Additive over `B`.

  Args:
    student: maps `[B, h, w, D]` floating, or tokens `[B, N, D]` of images where
      the teacher has maps or `grid` is True; one a layer, the last one last.
    teacher: likewise, of other widths. Of both sides, the one with more places
      is averaged down, as in `pool`.
    mask: bool, `[B]` or any leading axes, except the last, of the side that has
      more places; one a layer.
    on: what the arrays are; neither 'logits' nor 'attention'.
    width: channels of the fusion; None for those of the student's last layer,
      at most 512.
    grid: as for `pool`.
    class_token: as for `pool`.

  Returns:
    Pairs of maps of the teacher's widths; the student's are float32.

  Raises:
    ConfigError: there are fewer than two layers, or what is compared is no
      map; ranks or batches differ, or an option is out of its range.

  References:
    Chen et al., Distilling Knowledge via Knowledge Review, arXiv:2104.09044,
    section 3.2, the attention based fusion. The authors' code normalises after
    each convolution over the batch, which would make a loss depend on how the
    batch is split; here convolutions have biases instead.
  """
  if on in ('logits', 'attention') or len(student) < 2:
    raise checks.ConfigError(
        "align='knowledge_review' must be used with a loss on two or more "
        f'layers of features; got {len(student)} of {on!r}. Name more layers, '
        "or use align='project'.")
  if width is not None and (type(width) is not int or width < 1):
    raise checks.ConfigError(
        f'align_options.width must be None or a positive int; got {width!r}.')
  pairs = [_to_pair(*sides, grid, class_token)
           for sides in zip(student, teacher, mask)]
  if width is None:
    width = min(pairs[-1].student.shape[-1], _MOST_WIDE)
  fused, found = None, []
  for number in reversed(range(len(pairs))):
    pair = pairs[number]
    real = jnp.broadcast_to(
        masking.expand(pair.mask, 3), pair.student.shape[:3])
    own = _convolve(pair.student.astype(jnp.float32), width, 1,
                    f'review_{number}_in')
    if fused is not None:
      behind = _enlarged(fused, own.shape)
      attention = jax.nn.sigmoid(_convolve(
          jnp.concatenate([own, behind], axis=-1), 2, 1,
          f'review_{number}_attention'))
      own = own * attention[..., :1] + behind * attention[..., 1:]
    fused = masking.clean(own, real)
    output = _convolve(fused, pair.teacher.shape[-1], 3,
                       f'review_{number}_out')
    found.append(pair._replace(student=output))
  return tuple(reversed(found))


def _to_pair(student, teacher, mask, grid, class_token):
  """Returns maps with the same places."""
  student, teacher = grids.to_maps(
      student, teacher, mask=mask, grid=grid, class_token=class_token)
  shapes.check_comparable(student, teacher)
  if student.ndim != 4 or mask.ndim > 3:
    raise checks.ConfigError(
        "align='knowledge_review' must be used on maps [B, h, w, C]; got "
        f'student.shape={student.shape}, mask.shape={mask.shape}. Set '
        "align_options.grid=True for tokens of images, or use align='project'.")
  places = tuple(map(min, student.shape[:-1], teacher.shape[:-1]))
  return shapes.shrink(student, teacher, mask, (*places, student.shape[-1]),
                       (*places, teacher.shape[-1]))


def _convolve(inputs, channels, side, name):
  # He et al.'s uniform initialisation without the gain of an activation.
  initialiser = hk.initializers.VarianceScaling(1.0, 'fan_in', 'uniform')
  if side > 1:
    return hk.Conv2D(channels, side, w_init=initialiser, name=name)(inputs)
  # Flat, because a product of two matrices runs fast everywhere.
  rows = inputs.reshape(-1, inputs.shape[-1])
  rows = hk.Linear(channels, w_init=initialiser, name=name)(rows)
  return rows.reshape(*inputs.shape[:-1], channels)


def _enlarged(values, shape):
  """Returns a map whose places are those nearest in another, upper left."""
  for axis in (1, 2):
    indices = jnp.arange(shape[axis]) * values.shape[axis] // shape[axis]
    values = jnp.take(values, indices, axis=axis)
  return values
