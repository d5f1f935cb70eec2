"""The sections of a report that need no network: results, curves, config."""

from collections.abc import Iterable, Mapping, Sequence
import json
from typing import Any, Optional

import numpy as np

from haikd import metrics
from haikd.core import registry
from haikd.report import curves as curves_lib
from haikd.report import drawing
from haikd.report import figures
from haikd.report import page

_MAX_SCORES = 3  # Metrics whose curves are drawn.

Rows = Sequence[Mapping[str, Any]]  # Of a file of metrics.
Points = Mapping[int, Sequence[float]]  # By step, a value for each run.


def results(columns: Sequence[str], rows: Iterable[Sequence[str]], *,
            strong: str, note: str = '') -> page.Section:
  """Returns the table of results.

  Args:
    columns: the headings.
    rows: the cells, texts; the first of a row is the network.
    strong: the network whose row is stressed.
    note: what is to be said of them.
  """
  rows = list(rows)
  body = page.table(
      columns, [[page.escape(cell) for cell in row] for row in rows],
      strong=[i for i, row in enumerate(rows) if row[0] == strong])
  return page.Section(
      'Results', body + (page.paragraph(note, note=True) if note else ''))


def curves(runs: Mapping[str, Sequence[Rows]], titles: Mapping[str, str],
           half_width: Any, stages: Mapping[str, int]
           ) -> Optional[page.Section]:
  """Returns the curves of training and of evaluation.

  Args:
    runs: the metrics of each network, for one run or several seeds.
    titles: `{network: title}`.
    half_width: `values -> half width`, of the interval over several seeds.
    stages: the steps at which stages of the student begin, by their names.

  Returns:
    A section; None if there are no metrics.
  """
  count = max((len(seeds) for seeds in runs.values()), default=0)
  pictures = [draw(runs.get('student', ()), half_width, stages)
              for draw in (_losses, _weights)]
  scores = {
      network: _points(seeds, lambda row: row['split'].startswith('eval/'))
      for network, seeds in runs.items()}
  measured = {name for points in scores.values() for name in points}
  own = [(name, name) for name in registry.metrics.names()]
  chosen = [(name, title) for name, title in (*own, *metrics.CURVES)
            if name in measured][:_MAX_SCORES]
  percent = {score.name for score in metrics.scores() if score.percent}
  for name, title in chosen:
    lines = [
        _curve(titles[network], drawing.COLORS[network], points[name],
               half_width, strong=network == 'student')
        for network, points in scores.items() if name in points]
    pictures.append(page.figure(curves_lib.curves(
        lines, title=f'{title}, evaluated', percent=name in percent,
        stages=stages)))
  pictures = [picture for picture in pictures if picture]
  if not pictures:
    return None
  note = page.paragraph(
      f'Means over {count} seeds, at the steps that all of them have; the '
      'bands are 95 % intervals.', note=True)
  return page.Section('Curves', (note if count > 1 else '') +
                      page.row(pictures))


def settings(config: Mapping[str, Any], differences: Mapping[str, Any],
             command: str, versions: Mapping[str, str]) -> page.Section:
  """Returns the config, the command and versions.

  Args:
    config: the complete config, types of JSON.
    differences: `{field: value}` where it is not the base config.
    command: the command line; '' if there was none.
    versions: `{name: version}`.
  """
  body = f'<pre>{page.escape(command)}</pre>' if command else ''
  body += page.table(
      ['field', 'value'],
      [[f'<code>config.{page.escape(field)}</code>',
        f'<code>{page.escape(json.dumps(value, ensure_ascii=False))}</code>']
       for field, value in differences.items()], words=True)
  body += page.details('The complete config',
                       json.dumps(config, indent=2, ensure_ascii=False))
  body += page.table(
      list(versions), [[page.escape(x) for x in versions.values()]])
  return page.Section('How it was made', body)


def layer_pairs(found: Mapping[str, Any],
                draws: bool) -> Optional[page.Section]:
  """Returns which layers were paired as they resemble one another.

  Args:
    found: `{term: dict(similarity=[S, L], pairs=…)}`, of `layers='adaptive'`.
    draws: whether there can be pictures.

  Returns:
    A section; None if nothing was paired.
  """
  if not found:
    return None
  body = page.paragraph(
      "Before the first step, or that of a stage, layers='adaptive' paired "
      'each layer of the student with one of the teacher, by their linear CKA.',
      note=True)
  body += page.table(
      ['term', 'layers of the teacher, in the order of the student'],
      [[page.escape(name), ', '.join(str(j) for _, (j,) in entry['pairs'])]
       for name, entry in found.items()])
  if draws:
    body += page.figure(figures.matrices(
        {name: np.nan_to_num(np.array(entry['similarity'], float))
         for name, entry in found.items()},
        xlabel='layer of the teacher', ylabel='layer of the student',
        label='CKA'))
  return page.Section('Layer pairs', body)


def _losses(seeds, half_width, stages):
  """Returns the loss of the student and each of its terms."""
  points = _trained(seeds, 'loss')
  lines = _of_terms(points, half_width)
  if 'loss' in points and len(lines) != 1:
    lines.append(_curve('weighted sum', drawing.INK, points['loss'],
                        half_width, strong=True))
  if not lines:
    return ''
  return page.figure(curves_lib.curves(
      lines, title='Training loss of the student', log=True, stages=stages))


def _weights(seeds, half_width, stages):
  """Returns the weights of terms, where they change."""
  lines = _of_terms(_trained(seeds, 'weight'), half_width)
  if not lines:
    return ''
  return page.figure(curves_lib.curves(
      lines, title='Weights of the losses', log=True, stages=stages))


def _trained(seeds, kind):
  """Returns the points of metrics of training that begin with a word."""
  points = _points(seeds, lambda row: row['split'] == 'train')
  return {name: x for name, x in points.items() if name.split('/')[0] == kind}


def _of_terms(points, half_width):
  """Returns a curve for each term."""
  names = sorted(name for name in points if '/' in name)
  return [
      _curve(name.partition('/')[2],
             drawing.TERM_COLORS[i % len(drawing.TERM_COLORS)], points[name],
             half_width) for i, name in enumerate(names)]


def _points(seeds: Iterable[Rows], is_wanted: Any) -> Mapping[str, Points]:
  """Returns `{metric: {step: a value for each seed}}`."""
  points: dict[str, dict[int, list[float]]] = {}
  for rows in seeds:
    for row in filter(is_wanted, rows):
      for name, value in row.items():
        if name not in ('step', 'split'):
          points.setdefault(name, {}).setdefault(row['step'], []).append(
              float(value))
  return points


def _curve(label, color, points, half_width, *, strong=False):
  # Patience ends some seeds early: a mean over the others would be of another
  # set of seeds, and jump.
  count = max(map(len, points.values()))
  steps = sorted(step for step, x in points.items() if len(x) == count)
  values = [points[step] for step in steps]
  widths = [half_width(x) for x in values] if count > 1 else None
  return curves_lib.Curve(
      label, color, steps, [sum(x) / count for x in values], widths, strong)
