"""The report of a run: one page that opens without a network.

A report that fails never fails the run. What is wrong is said in a line.
"""

from collections.abc import Callable, Mapping, Sequence
import datetime
from importlib import metadata
import platform
from typing import Any, Optional

import jax
import numpy as np

import haikd
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
from haikd.run import intervals
from haikd.run import results as results_lib
from haikd.run import trainees
from haikd.run import workdir as workdir_lib
from haikd.run import writer
from haikd.storage import files
from haikd.storage import paths

FILE = 'report.html'

_TITLES = {row.name: row.title for row in results_lib.ROWS}
_PACKAGES = ('jax', 'jaxlib', 'dm-haiku', 'optax', 'numpy')


class Report:
  """Gathers what a report shows while the networks are at hand.

  Call its methods on all processes.

  Args:
    student: the student of the job.
    command: the command line; '' if there was none.
  """

  def __init__(self, student: trainees.Trainee, command: str):
    self._student = student
    self._command = command
    self._probe: Optional[probe_lib.Probe] = None
    self._observations: dict[str, probe_lib.Observation] = {}
    self._chosen = np.arange(0)
    self._maps: Mapping[str, np.ndarray] = {}
    self._is_wanted = student.config.report.write

  def observe(self, network: str, variables: base.Variables,
              frozen: base.Variables) -> None:
    """Runs a student and the teacher on a sample of the final split.

    Args:
      network: 'student_alone' or 'student'.
      variables: its parameters and state.
      frozen: those of the teacher.
    """
    config = self._student.config
    if self._is_wanted and config.report.examples:
      self._guard(
          'the examples', lambda: self._run(network, variables, frozen))

  def write(self, workdir: paths.Path, results: results_lib.Results,
            name: str) -> None:
    """Writes the page.

    Args:
      workdir: the workdir of the run.
      results: of the job.
      name: the name of the file.
    """
    if self._is_wanted and jax.process_index() == 0:
      self._guard('', lambda: self._write(paths.as_path(workdir), results,
                                          name))

  def _guard(self, part: str, function: Callable[[], None]) -> None:
    """Calls a function; if it fails, says so."""
    try:
      function()
    except Exception as err:  # The run is done, and its results are kept.
      what = f'{part} of {FILE}' if part else FILE
      notes.say(f'{what} could not be made: {checks.describe(err)}. The '
                'results are kept; config.report.write=False leaves it out.')

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

  def _write(self, workdir, results, name):
    config = self._student.config
    split = config.evaluation.final
    draws = _can_draw()
    sections = [overview.results(*writer.table(results, split))]
    if draws:
      sections.append(_curves([workdir]))
    note, found = '', []
    if self._observations:
      self._guard('the examples', lambda: found.extend(self._findings(draws)))
    if found:
      sections += found
      size = self._probe.size
      count = len(next(iter(self._observations.values())).numbers)
      note = (f'What follows the curves is measured on all {size:,} examples '
              f'of {split}.' if count == size else
              f'What follows the curves is measured on {count:,} of the '
              f'{size:,} examples of {split}, spread evenly over it '
              '(config.report.examples).')
    sections.append(_settings(config, self._command))
    student, teacher = (results[x]['parameters'] for x in ('student', 'teacher')
                        ) if 'student' in results else (None, None)
    intro = _intro(config, student, teacher, note)
    _save(workdir / name, config, intro, sections)

  def _findings(self, draws):
    student = self._student
    found = findings_lib.Findings(
        self._probe.family, self._observations, _TITLES,
        student.data.class_names, draws)
    sections = findings_lib.sections(found)
    if len(self._chosen):
      observation = self._observations[disagreements.NETWORK]
      shown = inputs_lib.Shown(student.config, student.data,
                               observation.numbers[self._chosen])
      network = student.config.student
      task = tasks.of_model(network.model, network.options)
      sections += [
          disagreements.attention(found, shown, self._maps),
          disagreements.section(found, self._chosen, shown,
                                is_causal=task != 'masked_lm')]
    return sections


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
  try:
    names = [paths.as_path(folder).name for folder in folders]
    links = ' '.join(f'<a href="{page.escape(x)}/{FILE}">{page.escape(x)}</a>'
                     for x in names)
    sections = [
        overview.results(columns, rows, 'Means over seeds and 95 % intervals.'),
        page.Section('Seeds', f'<p>Each seed has a report of its own: {links}'
                     '</p>'),
        _curves(folders) if _can_draw() else None,
        _settings(config, command)]
    _save(workdir / FILE, config, _intro(config, None, None, ''), sections)
  except Exception as err:  # The results are there.
    notes.say(f'{FILE} of all seeds could not be made: {checks.describe(err)}.')


def _can_draw() -> bool:
  if drawing.is_available():
    return True
  notes.say(f'For the pictures of {FILE}, install matplotlib: pip install '
            "'haikd[report]'.")
  return False


def _save(path, config, intro, sections):
  title = (f'{_data_name(config)}: {config.student.model} from '
           f'{config.teacher.model}')
  files.replace(path, page.page(title, intro, filter(None, sections)))


def _data_name(config):
  return ' + '.join(config.data.mixture) or config.data.name


def _intro(config, student, teacher, note):
  """Returns what stands below the title, HTML."""
  text = f'Distilled with haikd in {config.steps:,} steps.'
  if student and teacher:
    text = (f'A student of {student:,} parameters, distilled with haikd in '
            f'{config.steps:,} steps from a teacher of {teacher:,}.')
  return page.paragraph(text) + (
      page.paragraph(note, note=True) if note else '')


def _curves(workdirs: Sequence[paths.Path]) -> Optional[page.Section]:
  runs = {
      network: [files.read_rows(paths.as_path(workdir) / folder /
                                writer.METRICS_FILE) for workdir in workdirs]
      for network, folder in results_lib.FOLDERS.items()}
  return overview.curves(
      runs, _TITLES, lambda values: intervals.of_mean(values).half_width)


def _settings(config, command):
  flat = workdir_lib.flat
  complete = files.to_json(config)
  defaults = flat(files.to_json(config_lib.base()))
  differences = {field: value for field, value in flat(complete).items()
                 if defaults.get(field) != value}
  return overview.settings(complete, differences, command, _versions())


def _versions() -> dict[str, str]:
  devices = jax.devices()
  versions: dict[str, Any] = {
      'haikd': haikd.__version__, 'Python': platform.python_version()}
  for name in _PACKAGES:
    versions[name] = metadata.version(name)
  versions['devices'] = f'{len(devices)} × {devices[0].device_kind}'
  if jax.process_count() > 1:
    versions['processes'] = str(jax.process_count())
  versions['written'] = f'{datetime.datetime.now():%Y-%m-%d %H:%M}'
  return versions
