"""Plots the curves of a run from its metrics."""

import collections
import io
import pathlib
from typing import Any, Optional

from haikd import metrics
from haikd.run import results as results_lib
from haikd.run import writer
from haikd.storage import files
from haikd.storage import paths

FILE = 'curves.png'

_COLORS = dict(
    teacher='#8a8a8a', student_alone='#d9822b', student='#1f6fb4')
_TRAINED = tuple(
    row for row in results_lib.ROWS if row.name in results_lib.FOLDERS)
_TERM_COLORS = ('#1f6fb4', '#2e9e6b', '#d9822b', '#8e5bb5', '#c2485b',
                '#4aa8b8')


def plot_run(workdir: files.Path) -> Optional[pathlib.PurePath]:
  """Plots the losses of a run and the scores of all its networks.

  Needs matplotlib, from `haikd[report]`; without it, one line says so.

  Args:
    workdir: the workdir of the run.

  Returns:
    The path of the picture, `curves.png` in the workdir; None if there are no
    metrics or no matplotlib.

  Raises:
    DataError: a file of metrics cannot be read.
  """
  workdir = paths.as_path(workdir)
  rows = {
      name: files.read_rows(workdir / folder / writer.METRICS_FILE)
      for name, folder in results_lib.FOLDERS.items()
  }
  if not any(rows.values()):
    return None
  try:
    from matplotlib import figure  # An extra, and slow to import.
  except ImportError:
    print(f"For {FILE}, install matplotlib: pip install 'haikd[report]'.")
    return None
  picture = figure.Figure(figsize=(11, 4.2), dpi=150, layout='constrained')
  losses, scores = picture.subplots(1, 2)
  _draw_losses(losses, rows['student'])
  _draw_scores(scores, rows, _teacher_scores(workdir))
  path = workdir / FILE
  content = io.BytesIO()
  picture.savefig(content, format='png')
  paths.replace(path, content.getvalue())
  return path


def _draw_losses(axes, rows):
  """Draws the loss of the student and each of its terms."""
  curves = collections.defaultdict(list)
  for row in rows:
    if row['split'] == 'train':
      for name, value in row.items():
        if name.split('/')[0] == 'loss':
          curves[name].append((row['step'], float(value)))
  terms = sorted(name for name in curves if name != 'loss')
  for i, name in enumerate(terms):
    axes.plot(*zip(*curves[name]), lw=1.4,
              color=_TERM_COLORS[i % len(_TERM_COLORS)],
              label=name.removeprefix('loss/'), **_mark(curves[name]))
  if 'loss' in curves and len(terms) != 1:
    axes.plot(*zip(*curves['loss']), color='#222222', lw=2,
              label='weighted sum', **_mark(curves['loss']))
  values = [value for curve in curves.values() for _, value in curve]
  positive = [value for value in values if value > 0]
  if len(positive) == len(values) > 0 and max(values) > 10 * min(values):
    axes.set_yscale('log')
  _label(axes, 'Training loss of the student', 'loss')


def _draw_scores(axes, rows, teacher_scores):
  """Draws the first score of `metrics.CURVES` that any network measured."""
  evaluations = {
      name: [row for row in network_rows if row['split'].startswith('eval/')]
      for name, network_rows in rows.items()
  }
  measured = {name for network_rows in evaluations.values()
              for row in network_rows for name in row}
  score, title = next(((score, title) for score, title in metrics.CURVES
                       if score in measured), ('', ''))
  for network in _TRAINED:
    curve = [(row['step'], float(row[score]))
             for row in evaluations[network.name] if score in row]
    if curve:
      axes.plot(*zip(*curve), color=_COLORS[network.name], lw=2,
                label=network.title, **_mark(curve))
  if not evaluations['teacher'] and teacher_scores.get(score) is not None:
    axes.axhline(float(teacher_scores[score]), color=_COLORS['teacher'], lw=1.4,
                 ls='--', label='teacher, at the end')
  if score in ('accuracy', 'agreement'):
    axes.yaxis.set_major_formatter(lambda value, _: f'{100 * value:.4g}%')
  _label(axes, 'Evaluation', title)


def _teacher_scores(workdir) -> dict[str, Any]:
  """Returns the final scores of the teacher, if they are known."""
  path = workdir / writer.RESULT_FILE
  return files.read_json(path).get('teacher', {}) if paths.exists(path) else {}


def _mark(curve):
  """Returns the style that marks points, if they are few."""
  return {'marker': 'o', 'ms': 3.5} if len(curve) <= 25 else {}


def _label(axes, title, ylabel):
  axes.set_title(title, loc='left', fontsize=11, fontweight='bold')
  axes.set_xlabel('step')
  axes.set_ylabel(ylabel)
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(alpha=0.25, lw=0.6)
  axes.margins(x=0.02)
  if axes.has_data():
    axes.legend(frameon=False, fontsize=9)
