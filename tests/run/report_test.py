"""The picture of a run, with and without matplotlib."""

import io
import json
import sys

import matplotlib.image
import numpy as np
import pytest

from haikd.core import checks
from haikd.run import report


def write(workdir, rows):
  workdir.mkdir(parents=True, exist_ok=True)
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (workdir / 'metrics.jsonl').write_text(text)


def evaluation(step, **scores):
  return dict(step=step, split='eval/validation', **scores)


ROWS = [
    dict(step=1, split='train', loss=3.0, **{'loss/kl': 2.0, 'loss/ce': 4.0}),
    evaluation(1, accuracy=0.25, cross_entropy=2.0),
    dict(step=2, split='train', loss=1.0, **{'loss/kl': 'NaN', 'loss/ce': 2.0}),
    evaluation(2, accuracy=0.75, cross_entropy=1.0),
]


class Axes:
  """Records what is drawn."""

  def __init__(self, axes, seen):
    self._axes, self._seen = axes, seen

  def plot(self, x, y, *, label, **style):
    self._seen[label] = (list(x), list(y))
    return self._axes.plot(x, y, label=label, **style)

  def axhline(self, y, *, label, **style):
    self._seen[label] = y
    return self._axes.axhline(y, label=label, **style)

  def __getattr__(self, name):
    return getattr(self._axes, name)


@pytest.fixture
def drawn(monkeypatch):
  """The curves of the two panels: `{label: (steps, values)}`."""
  losses, scores = {}, {}
  for name, seen in (('_draw_losses', losses), ('_draw_scores', scores)):
    monkeypatch.setattr(
        report, name, lambda axes, *rest, draw=getattr(report, name), seen=seen:
        draw(Axes(axes, seen), *rest))
  return losses, scores


def test_curves_are_those_of_the_rows(tmp_path, drawn):
  losses, scores = drawn
  write(tmp_path, ROWS)
  write(tmp_path / 'teacher', [evaluation(5, accuracy=1.0)])
  write(tmp_path / 'baseline', [evaluation(2, accuracy=0.5)])
  path = report.plot_run(tmp_path)
  assert path == tmp_path / 'curves.png'
  assert losses['weighted sum'] == ([1, 2], [3.0, 1.0])
  assert losses['ce'] == ([1, 2], [4.0, 2.0])
  np.testing.assert_array_equal(losses['kl'][1], [2.0, np.nan])
  assert scores == {
      'teacher': ([5], [1.0]),
      'student alone': ([2], [0.5]),
      'student distilled': ([1, 2], [0.25, 0.75]),
  }
  picture = matplotlib.image.imread(path)
  assert picture.shape[0] > 400 and picture.shape[1] > 1000
  assert {p.name for p in tmp_path.iterdir()} == {
      'metrics.jsonl', 'teacher', 'baseline', 'curves.png'}


def test_a_teacher_from_elsewhere_is_a_line(tmp_path, drawn):
  write(tmp_path, ROWS)
  (tmp_path / 'result.json').write_text('{"teacher": {"accuracy": 0.9}}')
  report.plot_run(tmp_path)
  assert drawn[1]['teacher, at the end'] == 0.9


def test_one_term_is_drawn_once(tmp_path, drawn):
  write(tmp_path, [dict(step=1, split='train', loss=3.0, **{'loss/kl': 3.0})])
  report.plot_run(tmp_path)
  assert set(drawn[0]) == {'kl'}


def test_without_accuracy_another_score_is_drawn(tmp_path, drawn):
  write(tmp_path, [evaluation(1, kl=0.5, agreement=0.75)])
  report.plot_run(tmp_path)
  assert drawn[1] == {'student distilled': ([1], [0.75])}


@pytest.mark.parametrize('scores, value', (
    (dict(accuracy=0.5, cross_entropy=3.0, kl=2.0, perplexity=20.1), 20.1),
    (dict(cosine=0.9, pearson=0.7, spearman=0.8), 0.8),
    (dict(cosine=0.9), 0.9)))
def test_the_most_telling_score_is_drawn(tmp_path, drawn, scores, value):
  write(tmp_path, [evaluation(1, **scores)])
  report.plot_run(tmp_path)
  assert drawn[1] == {'student distilled': ([1], [value])}


def test_nothing_to_draw_is_no_error(tmp_path):
  assert report.plot_run(tmp_path) is None
  assert not list(tmp_path.iterdir())


def test_without_matplotlib_one_line_says_how_to_get_it(
    tmp_path, monkeypatch, capsys):
  write(tmp_path, ROWS)
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  assert report.plot_run(tmp_path) is None
  assert capsys.readouterr().out == (
      "For curves.png, install matplotlib: pip install 'haikd[report]'.\n")


def test_broken_rows_are_refused(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{\n{}\n')
  with pytest.raises(checks.DataError, match='line 1 of .* must be a JSON obj'):
    report.plot_run(tmp_path)


def test_the_student_is_seen_in_the_picture(tmp_path):
  write(tmp_path, ROWS)
  picture = matplotlib.image.imread(
      io.BytesIO(report.plot_run(tmp_path).read_bytes()))
  # The student's blue, in the right panel.
  blue = np.all(
      np.abs(picture[..., :3] - np.array([31, 111, 180]) / 255) < 0.02, axis=-1)
  assert blue[:, picture.shape[1] // 2:].sum() > 100
