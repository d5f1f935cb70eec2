"""The aligner that learns: it maps the student's features to the teacher's."""

from collections.abc import Callable, Mapping
from typing import Any, Optional

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from haikd.align import grids
from haikd.align import shapes
from haikd.core import base
from haikd.core import checks
from haikd.core import registry

Params = Mapping[str, Any]

_NAME = 'project'
_INITS = _RANDOM, _IDENTITY, _ORTHOGONAL, _PCA = (
    'random', 'identity', 'orthogonal', 'pca')


def calibrate(init: str = _RANDOM,
              **_: Any) -> Optional[Callable[[Params, np.ndarray], Params]]:
  """Returns what makes the first parameters depend on the teacher's states.

  Args:
    init: the option of `project`.
    **_: its other options.
  """
  return _principal if init == _PCA else None


def _principal(params, teacher):
  """Takes the student's features for the teacher's principal components."""
  last = f'{_NAME}_up' if f'{_NAME}_up' in params else _NAME
  count, width = params[last]['w'].shape
  mean = teacher.mean(axis=0, dtype=np.float64)
  _, _, directions = np.linalg.svd(teacher - mean, full_matrices=False)
  directions = directions[:count]
  weights = np.zeros((count, width), np.float32)
  weights[:len(directions)] = directions
  changed = {**params[last], 'w': weights}
  if 'b' in changed:
    changed['b'] = np.asarray(mean, np.float32)
  return {**params, last: changed}


@registry.register_aligner(calibrate=calibrate)
def project(student: jax.Array, teacher: jax.Array, *, mask: jax.Array,
            on: str, bias: bool = True, rank: Optional[int] = None,
            init: str = _RANDOM, grid: Optional[bool] = None,
            class_token: str = grids.DROP) -> base.Pair:
  """Maps the student's features to the teacher's width by a learned layer.

  The layer is trained with the student, in float32, and not exported. It lets
  the student arrange its features in its own way, as long as they hold the
  teacher's information. It is there even if the widths agree. Positions are
  pooled as in `pool`; on maps it is a convolution of 1 x 1.

  Additive over `B`.

  Args:
    student: `[B, ..., D]` floating.
    teacher: `[B, ..., E]` floating, the same rank and `B`; or one side a map
      `[B, h, w, C]` and the other tokens `[B, N, D]` of an image.
    mask: bool, `[B]`, `[B, N]` or any leading axes, except the last, of the
      side that has more positions.
    on: what the arrays are; neither 'logits' nor 'attention'.
    bias: whether the layer has a bias.
    rank: of the map, which is then the product of two; None for a full one.
    init: how it starts: 'random'; 'identity', which leaves the first features
      as they are; 'orthogonal'; or 'pca', which takes the student's features
      for the teacher's principal components on a sample of the training split.
    grid: as for `pool`.
    class_token: as for `pool`.

  Returns:
    A Pair, both `[B, ..., E]`; the student's is float32.

  Raises:
    ConfigError: the arrays are logits or maps of attention, their ranks or
      batches differ, the mask fits neither side, or an option is out of its
      range.

  References:
    Romero et al., FitNets: Hints for Thin Deep Nets, arXiv:1412.6550, the
    regressor.
  """
  if on in ('logits', 'attention'):
    raise checks.ConfigError(
        "align='project' must be used with a loss on features; got a loss on "
        f"{on!r}. Use align='pool'.")
  student, teacher = grids.to_maps(
      student, teacher, mask=mask, grid=grid, class_token=class_token)
  shapes.check_comparable(student, teacher)
  if mask.ndim >= student.ndim:
    raise checks.ConfigError(
        'mask must not have the axis of the features; got mask.shape='
        f'{mask.shape}, student.shape={student.shape}.')
  positions = tuple(map(min, student.shape[:-1], teacher.shape[:-1]))
  pair = shapes.shrink(student, teacher, mask, (*positions, student.shape[-1]),
                       (*positions, teacher.shape[-1]))
  # Flat, because a product of two matrices runs fast everywhere.
  rows = pair.student.astype(jnp.float32).reshape(-1, student.shape[-1])
  rows = _mapped(rows, teacher.shape[-1], bias, rank, init)
  return pair._replace(student=rows.reshape(pair.teacher.shape))


def _mapped(rows, width, bias, rank, init):
  initialiser = _initialiser(init)
  if rank is None:
    return hk.Linear(
        width, with_bias=bias, w_init=initialiser, name=_NAME)(rows)
  most = min(rows.shape[-1], width)
  if type(rank) is not int or not 0 < rank <= most:
    raise checks.ConfigError(
        'align_options.rank must be None, or from 1 to the smaller of both '
        f'widths; got {rank!r}, widths {rows.shape[-1]} and {width}.')
  # The student's features, the first of them, reach the middle unchanged.
  down = _initialiser(_IDENTITY) if init == _PCA else initialiser
  rows = hk.Linear(
      rank, with_bias=False, w_init=down, name=f'{_NAME}_down')(rows)
  return hk.Linear(
      width, with_bias=bias, w_init=initialiser, name=f'{_NAME}_up')(rows)


def _initialiser(init):
  if init == _RANDOM:
    return None
  if init == _ORTHOGONAL:
    return hk.initializers.Orthogonal()
  if init in (_IDENTITY, _PCA):  # `calibrate` follows.
    return lambda shape, dtype: jnp.eye(*shape, dtype=dtype)
  raise checks.ConfigError(
      f'align_options.init must be one of {", ".join(_INITS)}; got {init!r}. '
      f'{checks.suggest(str(init), _INITS)}')
