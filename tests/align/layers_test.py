"""Tests of pairing layers."""

import pytest

from haikd import align
from haikd.core import checks


@pytest.mark.parametrize('selection, student, teacher, expected', [
    (None, 3, 3, ((0, (0,)), (1, (1,)), (2, (2,)))),
    # round((i + 1) * 12 / 4) - 1
    (None, 4, 12, ((0, (2,)), (1, (5,)), (2, (8,)), (3, (11,)))),
    ('uniform', 2, 2, ((0, (0,)), (1, (1,)))),
    # 1.5 and 4.5 round to the even 2 and 4.
    ('uniform', 4, 6, ((0, (1,)), (1, (2,)), (2, (3,)), (3, (5,)))),
    # 5/3 and 10/3 round to 2 and 3.
    ('uniform', 3, 5, ((0, (1,)), (1, (2,)), (2, (4,)))),
    # A deeper student: 1/3 rounds to 0, which is not a layer, and 2/3 to 1.
    ('uniform', 3, 1, ((0, (0,)), (1, (0,)), (2, (0,)))),
    ('last', 4, 12, ((3, (11,)),)),
    ('pool', 2, 6, ((0, (0, 1, 2)), (1, (3, 4, 5)))),
    ('pool', 3, 7, ((0, (0, 1)), (1, (2, 3)), (2, (4, 5, 6)))),
    ('pool', 2, 2, ((0, (0,)), (1, (1,)))),
    ((0, 2), 3, 5, ((0, (0,)), (2, (2,)))),
    ([0, 2], 3, 5, ((0, (0,)), (2, (2,)))),
    ((1,), 3, 5, ((1, (1,)),)),
    ((-1,), 3, 5, ((2, (4,)),)),
    (((0, 1), (2, 4)), 3, 5, ((0, (1,)), (2, (4,)))),
    ([[0, 1], [2, 4]], 3, 5, ((0, (1,)), (2, (4,)))),
    (((0, -2), (-1, -1)), 3, 5, ((0, (3,)), (2, (4,)))),
    ((0, (1, 2)), 3, 5, ((0, (0,)), (1, (2,)))),
    # One student layer may learn from two of the teacher's, in two pairs.
    (((0, 1), (0, 3)), 3, 5, ((0, (1,)), (0, (3,)))),
])
def test_pairs(selection, student, teacher, expected):
  assert align.pair_layers(selection, student, teacher) == expected


@pytest.mark.parametrize('student', range(1, 13))
@pytest.mark.parametrize('teacher', range(1, 13))
def test_uniform_ends_at_the_end_and_never_goes_back(student, teacher):
  pairs = align.pair_layers('uniform', student, teacher)
  layers = [layer for _, (layer,) in pairs]
  assert [i for i, _ in pairs] == list(range(student))
  assert layers == sorted(layers)
  assert layers[0] >= 0 and layers[-1] == teacher - 1


@pytest.mark.parametrize('teacher', range(3, 13))
def test_pool_takes_every_layer_of_the_teacher_once(teacher):
  groups = [group for _, group in align.pair_layers('pool', 3, teacher)]
  assert sum(groups, start=()) == tuple(range(teacher))
  sizes = [len(group) for group in groups]
  assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize('selection, match', [
    ((0, 3), r'^layers must exist in the student; got student layer 3, '
     r'student_depth=3. Legal: 0 to 2'),
    (((2, 5),), r'teacher layer 5, teacher_depth=5. Legal: 0 to 4, or -5 to'),
    ((-4,), r'student layer -4, student_depth=3'),
    ((0, 0), r'got \(0, 0\), which has student 0 with teacher 0 more than'),
    (((2, 4), (-1, -1)), 'student 2 with teacher 4 more than once'),
    ((), 'at least one layer'),
    (2, '^layers must name at least one layer; got 2'),
    ((0, 1.0), r'^layers must be indices or pairs of indices; got 1\.0'),
    ((True,), 'indices; got True'),
    (((0, 1, 2),), r'indices; got \(0, 1, 2\)'),
    (((0, (1, 2)),), r'indices; got \(0, \(1, 2\)\)'),
    ('unifrom', "^layers must have a known form; .* Did you mean 'uniform'"),
])
def test_selection_that_cannot_be(selection, match):
  with pytest.raises(checks.ConfigError, match=match):
    align.pair_layers(selection, 3, 5)


def test_pool_needs_a_teacher_layer_for_each():
  with pytest.raises(
      checks.ConfigError, match='student_depth=3, teacher_depth=2.*uniform'):
    align.pair_layers('pool', 3, 2)


@pytest.mark.parametrize('depths', [(0, 2), (2, 0)])
def test_nothing_captured_is_refused(depths):
  with pytest.raises(checks.ConfigError, match='^taps must match a layer'):
    align.pair_layers(None, *depths)
