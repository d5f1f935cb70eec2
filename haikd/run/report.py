"""Curves of a run, drawn from its rows."""

import io
import pathlib
from typing import Any, Optional

from haikd import metrics
from haikd.storage import files
from haikd.storage import paths

FILE = 'curves.png'

# Where the rows of each network lie, below the workdir.
_RUNS = (('teacher', 'teacher', '#8a8a8a'),
         ('student alone', 'baseline', '#d9822b'),
         ('student distilled', '.', '#1f6fb4'))
_TERMS = ('#1f6fb4', '#2e9e6b', '#d9822b', '#8e5bb5', '#c2485b', '#4aa8b8')

Rows = list[dict[str, Any]]


def plot_run(workdir: files.Path) -> Optional[pathlib.PurePath]:
  """Draws the losses of a run and the scores of all its networks.

  Needs matplotlib, from `haikd[report]`; without it, one line says so.

  Args:
    workdir: the run's folder. The teacher's rows are looked for in `teacher`,
      those of the student alone in `baseline`.

  Returns:
    The path of the picture, `curves.png` in the workdir; None if there is
    nothing to draw, or nothing to draw it with.

  Raises:
    DataError: a file of rows that cannot be read.
  """
  workdir = paths.as_path(workdir)
  rows = {
      name: files.read_rows(workdir / folder / 'metrics.jsonl')
      for name, folder, _ in _RUNS
  }
  if not any(rows.values()):
    return None
  try:
    from matplotlib import figure  # An extra, and slow to import.
  except ImportError:
    print(f"For {FILE}, install matplotlib: pip install 'haikd[report]'.")
    return None
  drawing = figure.Figure(figsize=(11, 4.2), dpi=150, layout='constrained')
  losses, scores = drawing.subplots(1, 2)
  _draw_losses(losses, rows['student distilled'])
  _draw_scores(scores, rows, _teacher_score(workdir))
  path = workdir / FILE
  content = io.BytesIO()
  drawing.savefig(content, format='png')
  paths.replace(path, content.getvalue())
  return path


def _draw_losses(axes, rows):
  """Draws the loss of the student and each of its terms."""
  curves = {}
  for row in rows:
    if row['split'] == 'train':
      for name, value in row.items():
        if name.split('/')[0] == 'loss':
          curves.setdefault(name, []).append((row['step'], float(value)))
  terms = sorted(name for name in curves if name != 'loss')
  for i, name in enumerate(terms):
    axes.plot(*zip(*curves[name]), color=_TERMS[i % len(_TERMS)], lw=1.4,
              label=name.removeprefix('loss/'), **_mark(curves[name]))
  if 'loss' in curves and len(terms) != 1:
    axes.plot(*zip(*curves['loss']), color='#222222', lw=2,
              label='weighted sum', **_mark(curves['loss']))
  values = [value for curve in curves.values() for _, value in curve]
  positive = [value for value in values if value > 0]
  if len(positive) == len(values) > 0 and max(values) > 10 * min(values):
    axes.set_yscale('log')
  _dress(axes, 'Training loss of the student', 'loss')


def _draw_scores(axes, rows, teacher):
  """Draws an evaluation of every network over its own training."""
  evaluations = {
      name: [row for row in these if row['split'].startswith('eval/')]
      for name, these in rows.items()
  }
  every = [row for these in evaluations.values() for row in these]
  score, title = next(
      (pair for pair in metrics.CURVES if any(pair[0] in row for row in every)),
      ('', ''))
  for name, _, color in _RUNS:
    curve = [(row['step'], float(row[score]))
             for row in evaluations[name] if score in row]
    if curve:
      axes.plot(*zip(*curve), color=color, lw=2, label=name, **_mark(curve))
  if not evaluations['teacher'] and teacher.get(score) is not None:
    axes.axhline(float(teacher[score]), color=_RUNS[0][2], lw=1.4, ls='--',
                 label='teacher, at the end')
  if score in ('accuracy', 'agreement'):
    axes.yaxis.set_major_formatter(lambda value, _: f'{100 * value:.4g}%')
  _dress(axes, 'Evaluation', title)


def _teacher_score(workdir):
  """Returns the final scores of the teacher, if they are known."""
  path = workdir / 'result.json'
  return files.read_json(path).get('teacher', {}) if paths.exists(path) else {}


def _mark(curve):
  """Returns how to mark points: only where they are few."""
  return {'marker': 'o', 'ms': 3.5} if len(curve) <= 25 else {}


def _dress(axes, title, ylabel):
  axes.set_title(title, loc='left', fontsize=11, fontweight='bold')
  axes.set_xlabel('step')
  axes.set_ylabel(ylabel)
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(alpha=0.25, lw=0.6)
  axes.margins(x=0.02)
  if axes.has_data():
    axes.legend(frameon=False, fontsize=9)
