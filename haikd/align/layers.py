"""Which layer of the student learns from which layers of the teacher."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional, Union

from haikd.core import checks

Selection = Optional[
    Union[str, Sequence[int], Sequence[Sequence[int]], Mapping[str, Any]]]
LayerPairs = tuple[tuple[int, tuple[int, ...]], ...]

_START, AT_STAGE = 'start', 'stage'

_NAMES = ('uniform', 'last', 'pool', 'adaptive')
_FORMS = (f'Legal: None, {", ".join(map(repr, _NAMES))}, a tuple of indices '
          'such as (0, 2), or of (student, teacher) pairs such as '
          "((0, 1), (2, 5)), or dict(kind='adaptive', monotone=False, "
          "at='stage')")


class Adaptive(NamedTuple):
  """The selection 'adaptive': layers that resemble one another are paired.

  Attributes:
    monotone: whether later layers of the student have later layers of the
      teacher.
    at: 'start', for pairs that are found before the first step and hold for the
      run; or 'stage', for those that are found where each stage begins.
  """

  monotone: bool = True
  at: str = _START


def adaptive(selection: Selection) -> Optional[Adaptive]:
  """Returns what 'adaptive' means; None for any other selection.

  Args:
    selection: of layers, as for `pair_layers`.

  Raises:
    ConfigError: a dict that is no such selection.
  """
  if selection == 'adaptive':
    return Adaptive()
  if not isinstance(selection, Mapping):
    return None
  options = dict(selection)
  if options.pop('kind', None) != 'adaptive' or not (
      set(options) <= set(Adaptive._fields) and
      isinstance(options.get('monotone', True), bool) and
      options.get('at', _START) in (_START, AT_STAGE)):
    raise checks.ConfigError(
        'layers must have a known form; got '
        f'{dict(selection)!r}. {_FORMS}.')
  return Adaptive(**options)


def pair_layers(selection: Selection, student_depth: int,
                teacher_depth: int) -> LayerPairs:
  """Pairs layers of the student with layers of the teacher.

  Args:
    selection: what to pair. None pairs every layer of the student, one to one
      if the depths agree and 'uniform' otherwise. A flat tuple takes the same
      index in both networks; pairs are (student, teacher). Negative indices
      count from a network's last layer, -1. 'uniform' spreads the student over
      the teacher: layer i of S learns from layer round((i + 1) * L / S) - 1 of
      L, where halves round to even, as in Python. 'last' pairs the last layers.
      'pool' cuts the teacher's layers into S consecutive groups, as equal as
      possible; each student layer learns from the mean of its group. For
      'adaptive', or a dict of that kind, layers are paired once the teacher has
      weights, by `similarity.assign`; until then they are as for 'uniform'.
    student_depth: how many layers of the student were captured.
    teacher_depth: how many layers of the teacher were captured.

  Returns:
    `((student_index, (teacher_index, ...)), ...)`, all indices from 0 up.
    Several teacher indices mean the mean of these layers.

  Raises:
    ConfigError: a layer does not exist, a pair is given twice, there is nothing
      to pair, or the selection has none of these forms.

  References:
    'uniform': Jiao et al., TinyBERT, arXiv:1909.10351, the mapping of section
    3.1 as chosen in section 4.2.
  """
  if min(student_depth, teacher_depth) < 1:
    raise checks.ConfigError(
        'taps must match a layer of each network; got '
        f'student_depth={student_depth}, teacher_depth={teacher_depth}.')
  if selection is None:
    if student_depth == teacher_depth:
      return tuple((i, (i,)) for i in range(student_depth))
    return _uniform(student_depth, teacher_depth)
  if adaptive(selection):
    return _uniform(student_depth, teacher_depth)
  if isinstance(selection, str):
    return _named(selection, student_depth, teacher_depth)
  if not isinstance(selection, (tuple, list)) or not selection:
    raise checks.ConfigError('layers must name at least one layer; got '
                             f'{selection!r}. {_FORMS}.')
  pairs = tuple(
      _to_pair(item, student_depth, teacher_depth) for item in selection)
  for pair in pairs:
    if pairs.count(pair) > 1:
      raise checks.ConfigError(
          f'layers must be different pairs; got {selection!r}, which has '
          f'student {pair[0]} with teacher {pair[1][0]} more than once. To '
          'weigh that pair more, add another term for it.')
  return pairs


def _named(selection, student_depth, teacher_depth):
  if selection == 'uniform':
    return _uniform(student_depth, teacher_depth)
  if selection == 'last':
    return ((student_depth - 1, (teacher_depth - 1,)),)
  if selection != 'pool':
    raise checks.ConfigError(
        f'layers must have a known form; got {selection!r}. '
        f'{checks.suggest(selection, _NAMES)} {_FORMS}.')
  if student_depth > teacher_depth:
    raise checks.ConfigError(
        "layers='pool' must have a teacher layer for each student layer; got "
        f'student_depth={student_depth}, teacher_depth={teacher_depth}. Use '
        "layers='uniform'.")
  bounds = [
      i * teacher_depth // student_depth for i in range(student_depth + 1)
  ]
  return tuple((i, tuple(range(bounds[i], bounds[i + 1])))
               for i in range(student_depth))


def _uniform(student_depth, teacher_depth):
  # If the student is more than twice as deep, its first layers round to -1.
  return tuple(
      (i, (max(round((i + 1) * teacher_depth / student_depth) - 1, 0),))
      for i in range(student_depth))


def _to_pair(item, student_depth, teacher_depth):
  pair = (item, item) if _is_index(item) else item
  if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and
          all(map(_is_index, pair))):
    raise checks.ConfigError('layers must be indices or pairs of indices; got '
                             f'{item!r}. {_FORMS}.')
  return (_to_index('student', pair[0], student_depth),
          (_to_index('teacher', pair[1], teacher_depth),))


def _is_index(item):
  return isinstance(item, int) and not isinstance(item, bool)


def _to_index(side, index, depth):
  if not -depth <= index < depth:
    raise checks.ConfigError(
        f'layers must exist in the {side}; got {side} layer {index}, '
        f'{side}_depth={depth}. Legal: 0 to {depth - 1}, or -{depth} to -1, '
        'from the end.')
  return index % depth
