"""The report of a run: one page that opens without a network.

A report that fails never fails the run. What is wrong is said in a line.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import jax
import numpy as np

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.core import tasks
from haikd.report import disagreements
from haikd.report import drawing
from haikd.report import findings as findings_lib
from haikd.report import inputs as inputs_lib
from haikd.report import overview
from haikd.report import page
from haikd.report import probe as probe_lib
from haikd.report import timing
from haikd.run import adaptive
from haikd.run import intervals
from haikd.run import programs
from haikd.run import results as results_lib
from haikd.run import teachers
from haikd.run import trainees
from haikd.run import versions as versions_lib
from haikd.run import workdir as workdir_lib
from haikd.run import writer
from haikd.storage import checkpoint
from haikd.storage import files
from haikd.storage import paths

FILE = 'report.html'

_TITLES = {row.name: row.title for row in results_lib.ROWS}


class Report:
  """Gathers what a report shows while the networks are at hand.

  Call its methods on all processes.

  Args:
    student: the student of the job.
    command: the command line; '' if there was none.
    name: the name of the file.
    record: of what was compiled; None leaves out how long the run took.
  """

  def __init__(self, student: trainees.Trainee, command: str, name: str,
               record: Optional[programs.Record] = None):
    self._student, self._command, self._name = student, command, name
    self._record = record
    self._probe: Optional[probe_lib.Probe] = None
    self._observations: dict[str, probe_lib.Observation] = {}
    self._chosen = np.arange(0)
    self._maps: Mapping[str, np.ndarray] = {}
    self._is_wanted = student.config.report.write

  def observe(self, network: str, variables: base.Variables,
              teacher: Optional[teachers.Teacher]) -> None:
    """Runs a student and the teacher on a sample of the final split.

    Args:
      network: 'student_alone' or 'student'.
      variables: its parameters and state.
      teacher: the teacher; None leaves the examples out.
    """
    is_wanted = self._is_wanted and self._student.config.report.examples
    if is_wanted and teacher and self._student.records is None:
      self._guard('the examples', lambda: self._run(
          network, variables, teacher.frozen))

  def write(self, workdir: paths.Path, results: results_lib.Results) -> None:
    """Writes the page.

    Args:
      workdir: the workdir of the run.
      results: of the job.
    """
    if not self._is_wanted:
      return
    workdir, steps = paths.as_path(workdir), None
    if 'student' in results:
      # On all processes, since Orbax waits for them when it reads.
      steps = self._guard('the number of steps', lambda: (
          checkpoint.step_used(workdir), checkpoint.steps_taken(workdir)))
    if jax.process_index() == 0:
      self._guard('', lambda: self._write(workdir, results, steps))

  def _guard(self, part: str, function: Callable[[], Any]) -> Any:
    """Calls a function; if it fails, says so and returns None."""
    try:
      return function()
    except Exception as err:  # The run is done, and its results are kept.
      what = f'{part} of {self._name}' if part else self._name
      notes.say(f'{what} could not be made: {checks.describe(err)}. The '
                'results are kept; config.report.write=False leaves it out.')
      return None

  def _section(self, title, function, *args):
    return self._guard(f'the section {title!r}', lambda: function(*args))

  def _run(self, network, variables, frozen):
    student = self._student
    if self._probe is None:
      self._probe = probe_lib.Probe(
          student.config, student.program, student.data)
    observation = self._probe.observe(variables, frozen)
    self._observations[network] = observation
    if network == disagreements.NETWORK:
      self._chosen = disagreements.choose(observation.columns)
      mapped = disagreements.mapped(self._chosen)
      if len(mapped):
        self._maps = self._probe.maps(
            variables, frozen, observation.numbers[mapped])

  def _write(self, workdir, results, steps):
    config = self._student.config
    split = config.evaluation.final
    draws = _can_draw(self._name)
    columns, rows = writer.table(results, split)
    sections = [self._section('Results', lambda: overview.results(
        columns, rows, strong=_TITLES['student']))]
    if draws:
      sections.append(self._section('Curves', _curves, [workdir],
                                    config))
    sections.append(self._section('Layer pairs', overview.layer_pairs,
                                  adaptive.read(workdir), draws))
    note = ''
    if self._observations:
      examples = list(filter(None, self._examples(draws)))
      if examples:
        sections += examples
        before = 'curves' if draws else 'results'
        note = f'What follows the {before} is measured on {self._sample()}.'
    if self._record:
      sections.append(self._section(
          'Time', timing.section, _of_networks([workdir]), _TITLES,
          programs.rows(self._record.programs), programs.COLUMNS))
    sections.append(self._section(
        'How it was made', _settings, config, self._command))
    _save(workdir / self._name, config, _intro(results, steps), note, sections)

  def _examples(self, draws):
    """Yields the sections of what the networks do on the sample, or None."""
    student = self._student
    found = findings_lib.Findings(
        self._probe.family, self._observations, _TITLES,
        student.data.class_names, draws)
    for title, function in findings_lib.SECTIONS.items():
      yield self._section(title, function, found)
    if not len(self._chosen):
      return
    numbers = self._observations[disagreements.NETWORK].numbers[self._chosen]
    shown = self._guard('the examples', lambda: inputs_lib.Shown(
        student.config, student.data, numbers))
    if shown is None:
      return
    network = student.config.student
    task = tasks.of_model(network.model, network.options)
    yield self._section(
        'Attention', disagreements.attention, found, shown, self._maps)
    yield self._section(
        disagreements.TITLE, lambda: disagreements.section(
            found, self._chosen, shown, is_causal=task != 'masked_lm'))

  def _sample(self):
    """Returns what the sample is, in words."""
    config = self._student.config
    split, size, limit = (
        config.evaluation.final, self._probe.size, self._probe.limit)
    count = len(next(iter(self._observations.values())).numbers)
    if limit < size:
      why = 'config.report.examples' if limit == config.report.examples else (
          f'no more than {probe_lib.MAX_POSITIONS:,} positions')
      return (f'{count:,} of the {size:,} examples of {split}, spread evenly '
              f'over it ({why})')
    every = f'all {size:,} examples of {split}'
    if count == size:
      return every
    return (f'{every}, less {size - count:,} without a position or weight that '
            'counts')


def write_of_seeds(config: config_lib.ConfigDict, workdir: paths.Path,
                   folders: Sequence[paths.Path], columns: Sequence[str],
                   rows: Sequence[Sequence[str]], command: str) -> None:
  """Writes the report of several seeds; those of each seed say more.

  Args:
    config: of the first seed.
    workdir: the folder of all seeds.
    folders: the workdir of each.
    columns: the headings of the table of means.
    rows: its rows.
    command: the command line; '' if there was none.
  """
  if not config.report.write:
    return
  workdir = paths.as_path(workdir)
  evaluation = config.evaluation
  # Each seed has a best step of its own, and may have ended at another.
  limit = 'up to ' if evaluation.keep_best or evaluation.patience else ''
  try:
    names = [paths.as_path(folder).name for folder in folders]
    links = ' '.join(f'<a href="{page.escape(x)}/{FILE}">{page.escape(x)}</a>'
                     for x in names)
    sections = [
        overview.results(columns, rows, strong=_TITLES['student'],
                         note='Means over seeds and 95 % intervals.'),
        page.Section('Seeds', f'<p>Each seed has a report of its own: {links}'
                     '</p>'),
        _curves(folders, config) if _can_draw(FILE) else None,
        _settings(config, command)]
    _save(workdir / FILE, config,
          f'Distilled with haikd in {limit}{config.steps:,} steps.', '',
          sections)
  except Exception as err:  # The results are there.
    notes.say(f'{FILE} of all seeds could not be made: {checks.describe(err)}.')


def _can_draw(name) -> bool:
  if drawing.is_available():
    return True
  notes.say(f'For the pictures of {name}, install matplotlib: pip install '
            "'haikd[report]'.")
  return False


def _save(path, config, intro, note, sections):
  title = f'{_data_name(config)}: {config.student.model}'
  if config_lib.has_weights(config.teacher):
    title += f' from {config.teacher.model}'
  intro = page.paragraph(intro) if intro else ''
  intro += page.paragraph(note, note=True) if note else ''
  files.replace(path, page.page(title, intro, filter(None, sections)))


def _data_name(config):
  return ' + '.join(config.data.mixture) or config.data.name


def _intro(results, steps):
  """Returns what stands below the title.

  Args:
    results: of the job.
    steps: that of the student that is used, and the last one.
  """
  if not steps:
    return ''
  used, taken = steps
  size = {name: f'{row["parameters"]:,}' for name, row in results.items()}
  teacher = f'from a teacher of {size["teacher"]}' if 'teacher' in size else (
      'without a teacher network')
  text = (f'A student of {size["student"]} parameters, distilled with haikd in '
          f'{used:,} steps {teacher}.')
  if used < taken:
    text += f' {taken:,} steps were taken; step {used:,} was the best.'
  return text


def _curves(workdirs: Sequence[paths.Path], config: config_lib.ConfigDict
            ) -> Optional[page.Section]:
  return overview.curves(
      _of_networks(workdirs), _TITLES,
      lambda values: intervals.of_mean(values).half_width,
      {stage.name: stage.start for stage in config_lib.stages_of(config)
       if stage.name})


def _of_networks(workdirs):
  """Returns the rows of metrics of each network, for each of some runs."""
  return {
      network: [files.read_rows(paths.as_path(workdir) / folder /
                                writer.METRICS_FILE) for workdir in workdirs]
      for network, folder in results_lib.FOLDERS.items()}


def _settings(config, command):
  flat = workdir_lib.flat
  complete = files.to_json(config)
  defaults = flat(files.to_json(config_lib.base()))
  differences = {field: value for field, value in flat(complete).items()
                 if defaults.get(field) != value}
  return overview.settings(
      complete, differences, command, versions_lib.versions())
