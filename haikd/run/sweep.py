"""Compares methods: `--mode=sweep`.

Each method is a variant of a config file. All have one teacher, and as many
seeds. How fast each learns, and how its losses are weighed, is chosen on the
validation split from one grid, with a seed that is not among those reported.

The folder of a method has what `haikd.compare` reads, `seed-<n>`, and the runs
of its grid, `grid-<learning rate>-<weights>`. What has finished is not trained
again.
"""

from collections.abc import Callable, Mapping, Sequence
import itertools
import math
import time
from typing import Any, NamedTuple, Optional

import jax

from haikd import config as config_lib
from haikd import metrics as metrics_lib
from haikd.core import checks
from haikd.core import notes
from haikd.core import plugins
from haikd.objective import terms
from haikd.processes import distributed
from haikd.report import drawing
from haikd.run import comparable
from haikd.run import comparison as comparison_lib
from haikd.run import console
from haikd.run import job
from haikd.run import method_cost
from haikd.run import results as results_lib
from haikd.run import workdir as workdir_lib
from haikd.run import writer
from haikd.storage import files
from haikd.storage import paths

FILE = 'sweep.json'
PICTURE = 'sweep.svg'

_GRID = 'grid-'  # What the folder of a run of the grid begins with.
_GIVEN = 'given.json'  # In a run's folder once it is done: its config.
_TITLES = ('seconds a step', '- first', 'MiB a step', '- first',
           'learning rate', 'weights')

Load = Callable[[str], config_lib.ConfigDict]


class Point(NamedTuple):
  """What a method was tried with.

  Attributes:
    learning_rate: the factor of `config.optimizer.learning_rate`.
    weights: the factor of all weights in `config.losses`.
    score: `config.sweep.metric` on the validation split; None if the run
      diverged, or if there was no choice.
  """

  learning_rate: float
  weights: float
  score: Optional[float] = None


def train(load: Load, workdir: paths.Path, seeds: int,
          command: str = '') -> dict[str, Any]:
  """Trains all methods, and compares them with the first.

  Args:
    load: returns the validated config of a variant of the config file; of '',
      the one that has `sweep` and the teacher.
    workdir: a folder for `teacher`, the methods, `sweep.json` and `sweep.svg`.
    seeds: how many are reported. The grid is tried with `config.seed`, and
      those reported are `config.seed + 1` and so on.
    command: the command line, for the reports.

  Returns:
    The content of `sweep.json`.

  Raises:
    ConfigError: a method whose losses do not exist, before anything is trained;
      or one that cannot work, before anything but the teacher is.
    DataError, DivergedError, StoppedError: as `job.train`.
  """
  if distributed.is_many():
    raise checks.ConfigError(
        '--mode=sweep must run in one process; got several. Train the methods '
        'one by one, and use haikd.compare.')
  workdir = paths.absolute(workdir)
  base = load('')
  if not base.sweep.methods:
    raise checks.ConfigError(
        'config.sweep.methods must be variants of the config file, such as '
        "('kl', 'dist'); got (). End get_config with `return "
        'config_lib.variant(config, variant, METHODS)`.')
  configs = {method: load(method) for method in base.sweep.methods}
  if workdir_lib.TEACHER in configs:
    raise checks.ConfigError(
        'config.sweep.methods must be names of other folders than '
        f'{workdir_lib.TEACHER}; got {tuple(configs)}. Choose another name.')
  comparable.check(configs)
  grids = {}
  for method, config in configs.items():
    with checks.errors_of(f'config.sweep.methods: {method}'):
      plugins.load(config.plugins)
      terms.check_losses(config)
    grids[method] = _grid(base.sweep, config)
  if not base.teacher.init and base.teacher.train.steps:
    notes.say('the teacher of all methods is trained.')
    job.train_teacher(base, workdir)
    for config in configs.values():
      config.teacher.init = str(workdir / workdir_lib.TEACHER)
  for method, config in configs.items():
    with checks.errors_of(f'config.sweep.methods: {method}'):
      job.check(config, workdir / method / f'{workdir_lib.SEED}{config.seed}')
  runs = _Runs(len(configs) * seeds + sum(
      len(grid) for grid in grids.values() if len(grid) > 1), command)
  tried = {method: runs.try_all(config, grids[method], workdir / method)
           for method, config in configs.items()}
  best = {method: _best(points, base.sweep.metric)
          for method, points in tried.items()}
  # Seed by seed, so that what slows the machine down meets all methods.
  for number in range(1, seeds + 1):
    for method, config in configs.items():
      chosen = _at(config, best[method])
      chosen.seed += number
      folder = workdir / method / f'{workdir_lib.SEED}{chosen.seed}'
      runs.run(chosen, folder, method)
  costs = {method: method_cost.measure(config, workdir / method)
           for method, config in configs.items()}
  return _publish(workdir, base, tried, best, costs)


class _Runs:
  """Runs jobs one after another, and says how far it is.

  Args:
    total: how many there are.
    command: the command line, for the reports.
  """

  def __init__(self, total, command):
    self._total, self._command = total, command
    self._count, self._trained, self._start = 0, 0, time.monotonic()

  def run(self, config, folder, title) -> results_lib.Results:
    """Returns the results of a job, which is not done twice."""
    given = files.to_json(config)
    del given['sweep']  # It may grow.
    is_done = (paths.exists(folder / writer.RESULT_FILE) and
               paths.exists(folder / _GIVEN) and
               files.read_json(folder / _GIVEN) == given)
    self._count += 1
    if is_done:
      return files.read_json(folder / writer.RESULT_FILE)
    left = ''
    if self._trained:
      rate = (time.monotonic() - self._start) / self._trained
      minutes = rate * (self._total - self._count + 1) / 60
      left = f', about {math.ceil(minutes)} min left'
    notes.say(f'run {self._count} of {self._total}{left}: {title}.')
    results = job.train(config, folder, self._command)
    files.write_json(folder / _GIVEN, given)
    self._trained += 1
    jax.clear_caches()  # Programs of other methods are of no more use.
    return results

  def try_all(self, config, grid, folder) -> list[Point]:
    """Returns the points of the grid, each with its score on validation."""
    if len(grid) == 1:  # There is nothing to choose.
      return grid
    metric, found = config.sweep.metric, []
    for point in grid:
      trial = _at(config, point)
      trial.evaluation.final = trial.evaluation.split
      trial.report.write = False
      title = (f'{folder.name}, learning rate × {point.learning_rate:g}, '
               f'weights × {point.weights:g}')
      name = f'{_GRID}{point.learning_rate:g}-{point.weights:g}'
      try:
        row = self.run(trial, folder / name, title)['student']
      except checks.DivergedError as err:
        notes.say(f'{title}: {err}')
        found.append(point)
        continue
      if metric not in row:
        raise checks.ConfigError(
            'config.sweep.metric must be a metric of the student; got '
            f'{metric!r}. {checks.suggest(metric, row)}')
      found.append(point._replace(score=row[metric]))
    return found


def _grid(sweep, config):
  """Returns the points that a method is tried at."""
  weights = sweep.weights if config.losses else (1.0,)
  if len(weights) > 1:
    for name, term in config.losses.items():
      weight = config_lib.term(**term).weight
      if not checks.is_number(weight):
        raise checks.ConfigError(
            f'config.losses.{name}.weight must be a number if '
            f'config.sweep.weights are several; got {weight}. Leave one.')
  return [Point(*factors)
          for factors in itertools.product(sweep.learning_rates, weights)]


def _at(config, point):
  """Returns the config of a method at a point of its grid."""
  config = config.copy_and_resolve_references()
  config.unlock()
  config.optimizer.learning_rate *= point.learning_rate
  for name, term in config.losses.items():
    weight = config_lib.term(**term).weight
    if checks.is_number(weight):
      with term.ignore_type():
        term.weight = weight * point.weights
  return config


def _best(points, metric):
  """Returns the first of the best points of a method."""
  if len(points) == 1:
    return points[0]
  scored = [point for point in points
            if point.score is not None and not math.isnan(point.score)]
  if not scored:
    raise checks.DivergedError(
        'config.sweep.learning_rates must have a factor with which each method '
        'learns; got none with a score. Add a smaller one.')
  sign = -1 if metrics_lib.is_less_better(metric) else 1
  return max(scored, key=lambda point: sign * point.score)


def _publish(workdir, base, tried, best, costs):
  """Prints, draws and writes what was found; returns what is written."""
  runs = [comparison_lib.read(workdir / method) for method in tried]
  found = comparison_lib.compare(runs) if len(runs) > 1 else None
  summary: dict[str, Any] = dict(
      metric=base.sweep.metric, split=base.evaluation.split, methods={
          method: dict(best=best[method]._asdict(),
                       grid=[point._asdict() for point in points],
                       **costs[method]._asdict())
          for method, points in tried.items()})
  if found:
    summary['final'], summary['seeds'] = found.split, found.seeds
    for line in found.lines:
      scores = summary['methods'][paths.as_path(line.run).name].setdefault(
          'scores', {})
      scores[line.score.name] = dict(
          values=line.values, **line.mean._asdict(),
          gain=line.gain and line.gain._asdict())
  files.write_json(workdir / FILE, summary)
  if found:
    columns, rows = comparison_lib.table(found)
    console.table(rows, columns)
    print()
  console.table(_cost_rows(costs, best), ['method', *_TITLES])
  if found and drawing.is_available():
    paths.as_path(workdir / PICTURE).write_bytes(
        comparison_lib.picture(found, 'svg'))
    print(f'The differences seed by seed are in {workdir / PICTURE}.')
  return summary


def _cost_rows(costs: Mapping[str, method_cost.Cost],
               best: Mapping[str, Point]) -> Sequence[Sequence[str]]:
  """Returns the rows of the table of what methods take."""
  first = next(iter(costs.values()))
  rows = []
  for method, cost in costs.items():
    mib = [x / 2**20 for x in (cost.step_bytes,
                               cost.step_bytes - first.step_bytes)]
    rows.append([
        method, f'{cost.step_seconds:.4f}',
        f'{cost.step_seconds - first.step_seconds:+.4f}', f'{mib[0]:.2f}',
        f'{mib[1]:+.2f}', f'× {best[method].learning_rate:g}',
        f'× {best[method].weights:g}'])
  return rows
