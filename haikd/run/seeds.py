"""Runs a job with several seeds, for means and confidence intervals."""

import jax

from haikd import config as config_lib
from haikd import metrics as metrics_lib
from haikd.run import console
from haikd.run import intervals
from haikd.run import job
from haikd.run import report
from haikd.run import resolve
from haikd.run import results as results_lib
from haikd.run import workdir as workdir_lib
from haikd.storage import files
from haikd.storage import paths

SUMMARY_FILE = 'summary.json'

_NO_METRICS = ('parameters', 'seconds')
_GAIN = 'gain'
_TITLES = {row.name: row.title for row in results_lib.ROWS} | {
    _GAIN: 'distilled - alone'}

Summary = dict[str, dict[str, dict[str, float]]]


def train(config: config_lib.ConfigDict, workdir: paths.Path,
          seeds: int, command: str = '') -> Summary:
  """Runs a job with the seeds `config.seed`, `config.seed + 1` and so on.

  Each seed has another teacher, unless `config.teacher.init` names one,
  another order of the data and other initial parameters. An interrupted run
  goes on when it is started again.

  Args:
    config: a config made from `haikd.config.base()`.
    workdir: the folder for `summary.json` and a workdir `seed-<n>` for each
      seed.
    seeds: the number of seeds, 2 or more.
    command: the command line, for the reports.

  Returns:
    As `summarise`.

  Raises:
    ConfigError, DataError, DivergedError: as `job.train`.
  """
  workdir = paths.as_path(workdir)
  config = resolve.from_pretrained(config)  # For the report of all seeds.
  results, folders = [], []
  for seed in range(config.seed, config.seed + seeds):
    seed_config = config.copy_and_resolve_references()
    seed_config.seed = seed
    folders.append(workdir / f'{workdir_lib.SEED}{seed}')
    results.append(job.train(seed_config, folders[-1], command))
  summary = summarise(results)
  if jax.process_index() == 0:
    files.write_json(workdir / SUMMARY_FILE, summary)
    print_summary(summary, seeds)
    report.write_of_seeds(config, workdir, folders, *table(summary, seeds),
                          command)
  return summary


def summarise(results: list[results_lib.Results]) -> Summary:
  """Returns means over seeds, with 95 % confidence intervals.

  The intervals are those of `intervals.of_mean`. The gain is the difference
  between the student distilled and the student alone of the same seed, so that
  effects of the seed on both cancel.

  Args:
    results: the results of two or more seeds, all with the same networks and
      metrics.

  Returns:
    `{network or 'gain': {metric: {mean, half_width}}}`; the interval is
    mean ± half_width.
  """
  rows = {name: [result[name] for result in results] for name in results[0]}
  if 'student_alone' in rows:
    rows[_GAIN] = [{
        metric: run['student'][metric] - run['student_alone'][metric]
        for metric in _metrics(run['student']) if metric in run['student_alone']
    } for run in results]
  return {
      name: {
          metric: intervals.of_mean([run[metric] for run in runs])._asdict()
          for metric in _metrics(runs[0])}
      for name, runs in rows.items()
  }


def print_summary(summary: Summary, seeds: int) -> None:
  """Prints the means and intervals as a table."""
  columns, rows = table(summary, seeds)
  console.table(rows, columns)


def table(summary: Summary, seeds: int) -> tuple[list[str], list[list[str]]]:
  """Returns the headings and the rows of the table of means."""
  measured = {metric for row in summary.values() for metric in row}
  scores = metrics_lib.shown(measured)
  rows = [[title, *(_cell(summary[name].get(score.name), score, name)
                    for score in scores)]
          for name, title in _TITLES.items() if name in summary]
  return [f'{seeds} seeds, 95 %', *(x.title for x in scores)], rows


def _metrics(row):
  return [name for name in row if name not in _NO_METRICS]


def _cell(interval, score, row):
  if interval is None:
    return '–'
  mean = score.show(interval['mean'], sign='+' if row == _GAIN else '')
  return f'{mean} ± {score.show(interval["half_width"], unit=False)}'
