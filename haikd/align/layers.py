"""Which layer of the student learns from which layers of the teacher."""

from collections.abc import Sequence
from typing import Optional, Union

from haikd.core import checks

Selection = Optional[Union[str, Sequence[int], Sequence[Sequence[int]]]]
LayerPairs = tuple[tuple[int, tuple[int, ...]], ...]

_WHERE = 'align.pair_layers'
_FORMS = ("Legal: None, 'uniform', 'last', 'pool', a tuple of indices such as "
          '(0, 2), or of (student, teacher) pairs such as ((0, 1), (2, 5))')


def pair_layers(selection: Selection, student_depth: int,
                teacher_depth: int) -> LayerPairs:
  """Pairs layers of the student with layers of the teacher.

  Args:
    selection: what to pair. None is every layer of the student, one to one if
      the depths agree and 'uniform' otherwise. A flat tuple takes the same
      index on both sides, pairs are (student, teacher); -1 is a side's last
      layer, and so on backwards. 'uniform' spreads the student over the
      teacher: layer i of S learns from layer round((i + 1) * L / S) - 1 of L,
      a half rounded to the even side, as Python does. 'last' pairs the last
      layers. 'pool' cuts the teacher's layers into S groups in a row, as equal
      as can be, whose means the student's layers learn from.
    student_depth: how many layers of the student were captured.
    teacher_depth: the same of the teacher.

  Returns:
    `((student_index, (teacher_index, ...)), ...)`, indices from 0 up. More than
    one teacher index stands for the mean of these layers.

  Raises:
    ConfigError: a layer that is not there, a pair given twice, nothing to
      pair, or a selection of none of these forms.

  References:
    'uniform': Jiao et al., TinyBERT, arXiv:1909.10351, section 3.1.
  """
  if min(student_depth, teacher_depth) < 1:
    raise checks.ConfigError(
        f'{_WHERE}: both networks must have a layer to pair; got student_depth='
        f'{student_depth}, teacher_depth={teacher_depth}. Set taps that match.')
  if selection is None:
    if student_depth == teacher_depth:
      return tuple((i, (i,)) for i in range(student_depth))
    return _uniform(student_depth, teacher_depth)
  if isinstance(selection, str):
    return _named(selection, student_depth, teacher_depth)
  if not isinstance(selection, (tuple, list)) or not selection:
    raise checks.ConfigError(f'{_WHERE}: layers must name at least one layer; '
                             f'got layers={selection!r}. {_FORMS}.')
  pairs = tuple(
      _to_pair(item, student_depth, teacher_depth) for item in selection)
  for pair in pairs:
    if pairs.count(pair) > 1:
      raise checks.ConfigError(
          f'{_WHERE}: layers must be different pairs; got layers={selection!r},'
          f' where student {pair[0]} with teacher {pair[1][0]} comes more than '
          "once. Give the term a larger weight if that is what you want.")
  return pairs


def _named(selection, student_depth, teacher_depth):
  if selection == 'uniform':
    return _uniform(student_depth, teacher_depth)
  if selection == 'last':
    return ((student_depth - 1, (teacher_depth - 1,)),)
  if selection != 'pool':
    raise checks.ConfigError(
        f'{_WHERE}: layers must be of a known form; got layers={selection!r}. '
        f"{checks.suggest(selection, ('uniform', 'last', 'pool'))} {_FORMS}.")
  if student_depth > teacher_depth:
    raise checks.ConfigError(
        f"{_WHERE}: layers='pool' must have a teacher layer for each layer of "
        f'the student; got student_depth={student_depth}, teacher_depth='
        f"{teacher_depth}. Use 'uniform'.")
  bounds = [
      i * teacher_depth // student_depth for i in range(student_depth + 1)
  ]
  return tuple((i, tuple(range(bounds[i], bounds[i + 1])))
               for i in range(student_depth))


def _uniform(student_depth, teacher_depth):
  # A student more than twice as deep would round to layer -1.
  return tuple(
      (i, (max(round((i + 1) * teacher_depth / student_depth) - 1, 0),))
      for i in range(student_depth))


def _to_pair(item, student_depth, teacher_depth):
  pair = (item, item) if _is_index(item) else item
  if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and
          all(map(_is_index, pair))):
    raise checks.ConfigError(f'{_WHERE}: layers must be indices or pairs of '
                             f'them; got {item!r}. {_FORMS}.')
  return (_to_index('student', pair[0], student_depth),
          (_to_index('teacher', pair[1], teacher_depth),))


def _is_index(item):
  return isinstance(item, int) and not isinstance(item, bool)


def _to_index(side, index, depth):
  if not -depth <= index < depth:
    raise checks.ConfigError(
        f"{_WHERE}: layers must lie in the {side}; got {side} layer {index}, "
        f'{side}_depth={depth}. Legal: 0 to {depth - 1}, or -{depth} to -1 from'
        ' the end.')
  return index % depth
