"""What a report says of a sample, for samples made by hand."""

import numpy as np
import pytest

from haikd.report import curves
from haikd.report import disagreements
from haikd.report import figures
from haikd.report import findings as findings_lib
from haikd.report import overview
from haikd.report import page
from haikd.report import probe

TITLES = dict(teacher='teacher', student='student distilled')


def make(family, *, sums=None, columns=None, names=None, draws=True):
  """Returns Findings of a student that does as its teacher."""
  both = lambda found: dict(student=found or {}, teacher=found or {})
  observation = probe.Observation(
      np.arange(4), both(sums), both(columns), {}, {})
  return findings_lib.Findings(
      family, dict(student=observation), TITLES, names, draws)


def sections(findings):
  """Returns the sections that make sense, by title."""
  made = {title: function(findings)
          for title, function in findings_lib.SECTIONS.items()}
  assert all(x.title == title for title, x in made.items() if x)
  return {title: section for title, section in made.items() if section}


def test_texts_are_chosen_by_their_largest_position():
  kl = np.full((30, 8), 0.5)
  kl[:20] = np.linspace(1, 2, 20)[:, None]  # Alike at all positions.
  kl[25] = [9, *[0] * 7]  # A mean of 1.125 is none of the ten largest.
  kl[26, 0] = 99  # Does not count.
  counts = np.ones_like(kl, bool)
  counts[26, 0] = False
  columns = dict(kl=kl, counts=counts, divergence=kl.mean(axis=1))
  rows = disagreements.choose(dict(student=columns, teacher={}))
  # Twelve positions are shown, which may be of twelve texts.
  np.testing.assert_array_equal(rows, [25, *range(19, 8, -1)])


def test_points_are_from_all_of_a_sorted_split(monkeypatch):
  drawn = []
  monkeypatch.setattr(
      figures, 'scatter', lambda panels, **_: drawn.append(panels) or '<svg>')
  values = np.arange(2000.0)[:, None]
  found = make('values', columns=dict(prediction=values, label=values))
  assert list(sections(found)) == ['Predictions']
  true, predicted, _ = drawn[0]['student distilled']
  assert len(set(true)) == 500
  np.testing.assert_array_equal(true, predicted)
  # 500 of 2,000 without replacement: a quarter of them is 125 with a standard
  # deviation of 8.
  assert np.abs(np.histogram(true, 4, (0, 2000))[0] - 125).max() < 40


def test_a_class_beyond_the_names_is_its_number():
  confusion = np.diag([3, 2, 4])
  found = make('classes', sums=dict(confusion=confusion), names=('a', 'b'),
               draws=False)
  section = sections(found)['Classes']
  for name in 'ab2':
    assert f'<td>{name}</td>' in section.body


def test_confusions_show_sums_of_weights():
  found = make('classes', sums=dict(confusion=np.zeros((2, 2))), draws=False)
  found.observations['student'].sums['student'] = dict(
      confusion=np.array([[0, 2.5], [3, 0]]))
  section = sections(found)['Classes']
  assert '<td>2.5</td>' in section.body and '<td>3</td>' in section.body


def test_dollars_are_no_mathematics():
  labels = ['$100$', r'$\no_such$']
  svg = figures.class_bars(dict(student=np.array([0.5, 0.25])), labels, TITLES)
  for label in labels:
    assert page.escape(label) in svg


def test_curves_keep_the_steps_that_all_seeds_have(monkeypatch):
  drawn = []
  monkeypatch.setattr(
      curves, 'curves', lambda lines, **_: drawn.extend(lines) or '<svg>')
  rows = lambda *steps: [
      {'step': step, 'split': 'eval/test', 'accuracy': step / 10}
      for step in steps]
  overview.curves(
      dict(student=[rows(1, 3), rows(1, 2, 3, 4)]), TITLES, lambda x: len(x),
      {})
  curve, = drawn
  assert curve[2:5] == ([1, 3], pytest.approx([0.1, 0.3]), [2, 2])


@pytest.mark.filterwarnings('error')
def test_letters_that_matplotlib_lacks_are_the_browsers():
  svg = figures.class_bars(dict(student=np.ones(1)), ['猫'], TITLES)
  assert '猫' in svg


@pytest.mark.filterwarnings('error')
def test_any_name_is_in_the_legend():
  svg = curves.curves([curves.Curve('_mine', '#123456', [1, 2], [3, 4])],
                      title='loss')
  assert '_mine' in svg


def test_the_student_is_stressed_and_titles_are_written_as_they_are(
    monkeypatch):
  section = overview.results(
      ['network'], [['student distilled'], ['distilled - alone']],
      strong='student distilled')
  assert section.body.count('class=strong') == 1
  titles = []
  monkeypatch.setattr(curves, 'curves', lambda *args, **options: (
      titles.append(options['title']) or '<svg>'))
  overview.curves(
      dict(student=[[dict(step=1, split='eval/test', miou=0.5, kl=1.0)]]),
      TITLES, None, {})
  assert titles == ['mIoU, evaluated', 'KL to the teacher (nats), evaluated']
