"""Tokens of an image as the map that they are: CNN to ViT and back."""

import math
from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp

from haikd.core import checks

DROP, ADD = 'drop', 'add'
_PREFIXES = (0, 1, 2)  # Tokens before those of places: class and distillation.


class Grid(NamedTuple):
  """How tokens lie on an image.

  Attributes:
    prefix: how many tokens come before those of places.
    side: places in a row, and rows.
  """

  prefix: int
  side: int


def to_maps(student: Any, teacher: Any, *, mask: jax.Array,
            grid: Optional[bool], class_token: str) -> tuple[Any, Any]:
  """Returns tokens as maps where one side is a map, or `grid` is True.

  Args:
    student: `[B, ..., D]`.
    teacher: likewise.
    mask: bool, `[B, …]`.
    grid: whether both sides are tokens of images; None to refuse those that
      may be and are not as many.
    class_token: 'drop' leaves tokens before those of places out; 'add' adds
      their sum to each place.

  Returns:
    Both sides; tokens `[B, N, D]` that became a map are `[B, k, k, D]`.

  Raises:
    ConfigError: tokens that do not fill a square, or an unknown option.
  """
  if class_token not in (DROP, ADD):
    raise checks.ConfigError(
        f'class_token must be {DROP!r} or {ADD!r}; got {class_token!r}. '
        f'{checks.suggest(str(class_token), (DROP, ADD))}')
  ranks = {student.ndim, teacher.ndim}
  if ranks == {3} and mask.ndim == 1 and grid is None:
    _check_no_grids(student, teacher)
  if ranks == {3, 4} or ranks == {3} and grid:
    return (_to_map('student', student, class_token),
            _to_map('teacher', teacher, class_token))
  return student, teacher


def _to_map(side, tokens, class_token):
  if tokens.ndim == 4:
    return tokens
  found = _grid(tokens.shape[1])
  if found is None:
    raise checks.ConfigError(
        f"{side}'s tokens must fill a square, with at most {_PREFIXES[-1]} "
        f'others before, to be compared with a map; got {tokens.shape[1]} of '
        'them. Tap a layer whose tokens are places of the image.')
  places = tokens[:, found.prefix:]
  if class_token == ADD and found.prefix:
    prefix = tokens[:, :found.prefix].astype(jnp.float32)
    places = places + prefix.sum(axis=1, keepdims=True)
  return places.reshape(
      len(tokens), found.side, found.side, tokens.shape[-1])


def _grid(count: int) -> Optional[Grid]:
  for prefix in _PREFIXES:
    side = math.isqrt(max(count - prefix, 0))
    if side and side**2 == count - prefix:
      return Grid(prefix, side)
  return None


def _check_no_grids(student, teacher):
  """Refuses tokens that may be those of images of two patch sizes.

  Averaging them in a row would mix the ends of rows, and the class token.
  """
  counts = student.shape[1], teacher.shape[1]
  if counts[0] != counts[1] and all(map(_grid, counts)):
    raise checks.ConfigError(
        'align_options.grid must be given where both sides may be tokens of '
        f'an image and are not as many; got {counts[0]} of the student, '
        f'{counts[1]} of the teacher. Set grid=True if they are, or grid=False '
        'for a sequence.')
