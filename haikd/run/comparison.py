"""Compares finished runs, paired by seed."""

from collections.abc import Mapping, Sequence
import re
from typing import Any, NamedTuple, Optional

from haikd import metrics as metrics_lib
from haikd.core import checks
from haikd.report import figures
from haikd.run import comparable
from haikd.run import intervals
from haikd.run import results as results_lib
from haikd.run import workdir as workdir_lib
from haikd.run import writer
from haikd.storage import files
from haikd.storage import paths

_WIDTH = 32  # Characters of a run's name in the table.


class Run(NamedTuple):
  """A finished run.

  Attributes:
    name: how it is called, the path of its workdir.
    results: `{seed: results}`.
    config: of its first seed, types of JSON.
  """

  name: str
  results: Mapping[int, results_lib.Results]
  config: Mapping[str, Any]


class Line(NamedTuple):
  """A metric of a run.

  Attributes:
    score: how the metric is shown.
    run: the name of the run.
    values: one for each seed.
    mean: their mean, with its interval if there are several.
    differences: from the first run, one for each seed; None for itself.
    gain: the mean of these, likewise; None for the first run.
  """

  score: metrics_lib.Score
  run: str
  values: Sequence[float]
  mean: intervals.Interval
  differences: Optional[Sequence[float]]
  gain: Optional[intervals.Interval]


class Comparison(NamedTuple):
  """Runs beside the first of them.

  Attributes:
    network: the network that is compared, such as 'student'.
    split: what it was evaluated on.
    seeds: the seeds that all runs have.
    lines: of each metric, one for each run.
    remarks: what was left out, and what may differ in the data; sentences.
  """

  network: str
  split: str
  seeds: Sequence[int]
  lines: Sequence[Line]
  remarks: Sequence[str]


def read(workdir: paths.Path) -> Run:
  """Reads a run: one of a seed, or one of `--seeds`.

  Args:
    workdir: its workdir.

  Raises:
    DataError: no run has finished there, or its files cannot be used.
  """
  folder = paths.as_path(workdir)
  found = {}
  for name in paths.names(folder):
    if match := re.fullmatch(rf'{workdir_lib.SEED}(\d+)', name):
      found[int(match[1])] = folder / name
  unfinished = [seed for seed, path in found.items()
                if not paths.exists(path / writer.RESULT_FILE)]
  if unfinished:
    raise checks.DataError(
        'every workdir of --seeds must have a result of each seed; got '
        f'{str(workdir)!r} without that of {_listed(unfinished)}. Start that '
        'run again to finish it, or remove their folders.')
  config_folder = min(found.items())[1] if found else folder
  if not found and not paths.exists(folder / writer.RESULT_FILE):
    raise checks.DataError(
        f'every workdir must be of a finished run; got {str(workdir)!r} without'
        f' {writer.RESULT_FILE}. Start that run again to finish it, or correct '
        'the path.')
  config = files.read_json(config_folder / workdir_lib.CONFIG_FILE)
  if not found:
    found = {config['seed']: folder}
  return Run(str(workdir), {
      seed: files.read_json(found[seed] / writer.RESULT_FILE)
      for seed in sorted(found)}, config)


def compare(runs: Sequence[Run], network: str = 'student') -> Comparison:
  """Compares runs with the first of them, seed by seed.

  The difference of two runs with one seed is free of what the seed does to
  both, so that its interval is that of a paired t-test.

  Args:
    runs: two or more.
    network: the row of the results to compare.

  Raises:
    ConfigError: the runs have no seed or metric in common, or were evaluated on
      different splits or data.
  """
  configs = {run.name: run.config for run in runs}
  if len(configs) < len(runs):
    raise checks.ConfigError('every run must be given once; got '
                             f'{", ".join(run.name for run in runs)}.')
  remarks = comparable.check(configs)
  shared = set(runs[0].results).intersection(*(run.results for run in runs))
  if not shared:
    seeds = '; '.join(f'{run.name}: {_listed(run.results)}' for run in runs)
    raise checks.ConfigError(
        f'runs must have a seed in common; got {seeds}. Train them with the '
        'same config.seed, or with --seeds.')
  for run in runs:
    if any(network not in run.results[seed] for seed in shared):
      raise checks.ConfigError(
          f'--network must be in the results of every run; got {network!r}, '
          f'which {run.name} lacks. It has '
          f'{", ".join(next(iter(run.results.values())))}.')
  remarks += [
      f'{run.name} has seeds that not all runs have, which are left out: '
      f'{_listed(set(run.results) - shared)}.'
      for run in runs if set(run.results) - shared]
  rows = {run.name: [run.results[seed][network] for seed in sorted(shared)]
          for run in runs}
  scores, missing = [], []
  for score in _scores(rows):
    has = [all(score.name in row for row in found) for found in rows.values()]
    if all(has):
      scores.append(score)
    elif any(has):
      missing.append(score.title)
  if missing:
    remarks.append('Metrics that not all runs have are left out: '
                   f'{", ".join(missing)}.')
  if not scores:
    raise checks.ConfigError(
        'runs must have a metric in common; got none. Compare runs of one '
        'task.')
  lines = [_line(score, run.name, rows[run.name], rows[runs[0].name])
           for score in scores for run in runs]
  return Comparison(network, runs[0].config['evaluation']['final'],
                    sorted(shared), lines, remarks)


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
  """Returns the headings and the rows of the table, at most 80 wide."""
  count = len(comparison.seeds)
  names = short_names([line.run for line in comparison.lines])
  rows, before = [], ''
  for line in comparison.lines:
    if line.score.title != before:
      before = line.score.title
      rows.append([before, '', ''])
    gain = '' if line.gain is None else _cell(line.score, line.gain, '+')
    rows.append([f'  {names[line.run]}', _cell(line.score, line.mean, ''),
                 gain])
  seeds = f'{count} seeds, 95 %' if count > 1 else '1 seed'
  return [f'{comparison.split}, {seeds}', 'mean', '- first'], rows


def picture(comparison: Comparison, kind: str) -> bytes:
  """Draws the differences from the first run, for each metric.

  Args:
    comparison: of two or more runs.
    kind: 'png' or 'svg'.
  """
  names = short_names([line.run for line in comparison.lines])
  panels: dict[str, list[figures.Spread]] = {}
  for line in comparison.lines:
    if line.differences is not None and line.gain is not None:
      scale = 100 if line.score.percent else 1
      unit = ', points of %' if line.score.percent else ''
      panels.setdefault(f'{line.score.title}{unit}', []).append(
          figures.Spread(
              names[line.run], [scale * x for x in line.differences],
              scale * line.gain.mean,
              scale * (line.gain.half_width or 0.0)))
  return figures.spreads(
      panels, title=f'Differences from {names[comparison.lines[0].run]}',
      kind=kind)


def short_names(names: Sequence[str]) -> dict[str, str]:
  """Returns names that fit a column, and still differ.

  Args:
    names: paths; what all of them begin with is left out.
  """
  distinct = list(dict.fromkeys(names))
  parts = [name.rstrip('/').split('/') for name in distinct]
  shared = 0
  while (len(distinct) > 1 and all(len(x) > shared + 1 for x in parts) and
         len({x[shared] for x in parts}) == 1):
    shared += 1
  found: dict[str, str] = {}
  for name, part in zip(distinct, parts):
    text = '/'.join(part[shared:])
    if len(text) > _WIDTH:
      text = f'…{text[1 - _WIDTH:]}'
    if text in found.values():  # Only what was cut off differs.
      end = f'~{len(found)}'
      text = text[:_WIDTH - len(end)] + end
    found[name] = text
  return found


def _scores(rows):
  """Returns how metrics are shown, those of plugins at the end."""
  known = metrics_lib.scores()
  names = {score.name for score in known} | {'parameters', 'seconds'}
  others = {name for found in rows.values() for row in found for name in row}
  return (*known, *(metrics_lib.Score(name, name)
                    for name in sorted(others - names)))


def _line(score, name, rows, first):
  """Returns a metric of a run beside that of the first run."""
  values = [float(row[score.name]) for row in rows]
  differences = gain = None
  if rows is not first:
    differences = [x - float(row[score.name]) for x, row in zip(values, first)]
    gain = intervals.of_mean(differences)
  return Line(score, name, values, intervals.of_mean(values), differences, gain)


def _cell(score, interval, sign):
  mean = score.show(interval.mean, sign=sign)
  if interval.half_width is None:
    return mean
  return f'{mean} ± {score.show(interval.half_width, unit=False)}'


def _listed(seeds):
  return ', '.join(map(str, sorted(seeds)))
