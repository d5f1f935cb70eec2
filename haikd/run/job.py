"""The job: trains a teacher, the student alone and the student; evaluates."""

from collections.abc import Iterable
import contextlib
from typing import Any, Optional

import jax

from haikd import config as config_lib
from haikd.core import garbage
from haikd.core import notes
from haikd.engine import mesh as mesh_lib
from haikd.run import adaptive
from haikd.run import ahead
from haikd.run import chain
from haikd.run import pretrained
from haikd.run import programs
from haikd.run import recorded
from haikd.run import report as report_lib
from haikd.run import resolve
from haikd.run import results as results_lib
from haikd.run import scores
from haikd.run import teachers
from haikd.run import trackers
from haikd.run import trainees
from haikd.run import trainer
from haikd.run import training
from haikd.run import workdir as workdir_lib
from haikd.run import writer
from haikd.storage import checkpoint
from haikd.storage import paths


def train(config: config_lib.ConfigDict, workdir: paths.Path,
          command: str = '', any_config: bool = False) -> results_lib.Results:
  """Trains what is missing, then evaluates, prints and writes the results.

  Args:
    config: a config made from `haikd.config.base()`.
    workdir: a folder, or gs://bucket/…, that holds everything of this run; a
      run that is found there goes on.
    command: the command line, for the report.
    any_config: whether a run that began with another config goes on.

  Returns:
    The content of `result.json`: for `teacher` (if there is one),
    `student_start` (if the student starts from weights that still exist),
    `student_alone` and `student`, the number of `parameters`, the metrics of
    `haikd.metrics` and the `seconds` of training.

  Raises:
    ConfigError: the config cannot work; raised before anything is trained.
    DataError: data, a checkpoint or a file cannot be used; raised before
      anything is trained where possible.
    DivergedError: a loss is not finite.
    StoppedError: SIGTERM has come, and training was saved.
  """
  workdir = paths.as_path(workdir)
  free = workdir_lib.ALL_FIELDS if any_config else workdir_lib.FREE_FIELDS
  trackers.check(config)
  links = chain.links(config, workdir)
  jobs: list[Any] = []
  results: results_lib.Results = {}
  with contextlib.ExitStack() as stack:
    record, compiler = stack.enter_context(_compiling())
    for link in links:
      with link.errors():
        jobs.append(_prepare(link, jobs[0][0].data if jobs else None, free,
                             None if jobs else compiler))
    chain.check_taught(links)
    first, _, untrained = jobs[0]
    is_given = first.has_teacher and not untrained and first.records is None
    start = [first.start('teacher')] if is_given else []
    with workdir_lib.lock(workdir):
      for link in links:
        if link is not links[0]:
          stack.close()
          record, compiler = stack.enter_context(_compiling())
        if link.name:
          notes.say(f'assistant {link.name} is trained in {link.workdir}.')
        results = _run(link.workdir, jobs.pop(0), start, command, free,
                       compiler, record)
  return results


def train_teacher(config: config_lib.ConfigDict, workdir: paths.Path) -> None:
  """Trains the teacher of a job alone, or goes on with it.

  Args:
    config: a validated config with `teacher.train.steps` and without
      `teacher.init`.
    workdir: its folder `teacher` is that of the teacher.

  Raises:
    ConfigError, DataError, DivergedError, StoppedError: as `train`.
  """
  workdir = paths.as_path(workdir)
  config = resolve.from_pretrained(config)
  _, _, teacher = trainees.build_all(config, mesh_lib.build_mesh(config.mesh))
  assert teacher is not None, 'it has weights'
  teacher.data.check()
  teacher.check_evaluation()
  with workdir_lib.lock(workdir):
    _train(teacher, None, workdir)


def check(config: config_lib.ConfigDict, workdir: paths.Path) -> None:
  """Refuses a job that cannot work; trains nothing.

  Args:
    config: as for `train`.
    workdir: as for `train`.

  Raises:
    ConfigError, DataError: as `train`.
  """
  _prepare(chain.Link(None, config, paths.as_path(workdir)), None)


@contextlib.contextmanager
def _compiling():
  """Yields a record of the programs of a job, and what compiles them."""
  with programs.Record() as record, ahead.pool() as compiler:
    yield record, compiler


def _prepare(link, data, free=workdir_lib.FREE_FIELDS, compiler=None):
  """Returns the networks of a job; refuses what cannot work.

  Args:
    link: of the chain.
    data: of another link, whose open splits are shared, or None.
    free: fields that may differ from those that the run began with.
    compiler: gets the first step, to compile it meanwhile; None for none.
  """
  config = resolve.from_pretrained(link.config)
  mesh = mesh_lib.build_mesh(config.mesh)
  mesh_lib.check_batch_size(mesh, config.batch_size, config.microbatches)
  title = f'assistant {link.name}' if link.name else 'student'
  networks = trainees.build_all(config, mesh, title, data)
  for trainee in filter(None, networks):
    trainee.data.check()
    adaptive.check(trainee)
    teachers.check(trainee.config, trainee.program, trainee.data)
    trainee.check_start(link.workdir)
  if compiler:  # A script that is refused below waits for it at its end.
    student, alone, teacher = networks
    # Once adaptive layers are paired, the step is another one.
    is_open = adaptive.open_terms(student.program)
    ahead.begin(filter(None, (teacher, alone, not is_open and student)),
                link.workdir, compiler)
  for trainee in filter(None, networks):
    with garbage.uncollected():
      trainee.check_evaluation()
      trainee.check_stages()
  workdir_lib.check_owner(link.workdir, networks[0].config, free)
  return networks


def _run(workdir, networks, start, command, free, compiler, record):
  """Does one job.

  Args:
    workdir: of the job.
    networks: from `trainees.build_all`.
    start: a list with the teacher that was loaded already, which is taken out.
    command: the command line.
    free: as for `_prepare`.
    compiler: from `ahead.pool`.
    record: of the programs that are compiled.
  """
  student, alone, teacher = networks
  config = student.config
  workdir_lib.claim(workdir, config, free=free)
  teacher = teacher and ahead.start(teacher, workdir, compiler)
  alone = alone and ahead.start(alone, workdir, compiler, before=teacher)
  trained = frozen_teacher = None
  if student.records is not None:
    frozen_teacher = teachers.of_records(student.program, student.records)
    recorded.say(student.records)
  elif student.has_teacher:
    trained = start.pop() if start else trained_teacher(
        student, teacher, workdir, free)
    frozen_teacher = _freeze(student, trained)
  if frozen_teacher:
    student = adaptive.settle(student, frozen_teacher, workdir)
  student = ahead.start(student, workdir, compiler, before=alone)
  report = report_lib.Report(student, command, report_lib.FILE, record)
  results = scores.of_teacher(student, trained, frozen_teacher)
  del trained  # Its arrays are larger than those of frozen_teacher.
  if pretrained.is_available(config.student.init):
    results['student_start'] = scores.of_student(
        student, student.start('student'), frozen_teacher)
  if alone:
    trained = _train(alone, None, workdir, free)
    results['student_alone'] = scores.of_student(
        student, trained, frozen_teacher)
    report.observe('student_alone', trained.network, frozen_teacher)
    del trained
  trained = _train(student, frozen_teacher, workdir, free)
  results['student'] = scores.of_student(student, trained, frozen_teacher)
  if jax.process_index() == 0:
    print(record.describe(), flush=True)
  scores.publish(results, workdir, config.evaluation.final, writer.RESULT_FILE)
  report.observe('student', trained.network, frozen_teacher)
  report.write(workdir, results)
  return results


def evaluate(config: config_lib.ConfigDict, workdir: paths.Path,
             command: str = '') -> results_lib.Results:
  """Evaluates what a run has trained so far, without training.

  Args:
    config: the run's config; `config.evaluation.final` is the split.
    workdir: the workdir of the run, where `eval-<split>.json` and its report
      are written.
    command: the command line, for the report.

  Returns:
    As `train`; networks without a checkpoint are left out.

  Raises:
    ConfigError: the config cannot work.
    DataError: the run has no checkpoint of its teacher, the student learned
      from another teacher, or other files cannot be used.
  """
  workdir = paths.as_path(workdir)
  config = resolve.from_pretrained(chain.links(config, workdir)[-1].config)
  mesh = mesh_lib.build_mesh(config.mesh)
  student = trainees.build(config, mesh)
  workdir_lib.claim(workdir, student.config, create=False)
  saved = None
  if checkpoint.has_checkpoint(workdir):
    saved = checkpoint.metadata(workdir, field='--workdir')
    student.check_vocabulary(saved, 'student')
  trained = frozen_teacher = None
  if student.records is not None:
    frozen_teacher = teachers.of_records(student.program, student.records)
  elif config.teacher.init:
    trained = student.start('teacher')
  elif student.has_teacher:
    trained = _load(student, workdir, workdir_lib.TEACHER, 'teacher')
  if trained:
    frozen_teacher = _freeze(student, trained)
  if saved:
    checkpoint.check_teacher(
        saved, frozen_teacher.identity if frozen_teacher else '')
  file = writer.evaluation_file(config.evaluation.final)
  report = report_lib.Report(student, command, file.replace('.json', '.html'))
  results = scores.of_teacher(student, trained, frozen_teacher)
  if pretrained.is_available(config.student.init):
    results['student_start'] = scores.of_student(
        student, student.start('student'), frozen_teacher)
  for name in ('student_alone', 'student'):
    folder = results_lib.FOLDERS[name]
    if checkpoint.has_checkpoint(workdir / folder):
      trained = _load(student, workdir, folder, 'student')
      results[name] = scores.of_student(student, trained, frozen_teacher)
      report.observe(name, trained.network, frozen_teacher)
  scores.publish(results, workdir, config.evaluation.final, file)
  report.write(workdir, results)
  return results


def trained_teacher(student: trainees.Trainee,
                    teacher: Optional[trainees.Trainee],
                    workdir: paths.Path,
                    free: Iterable[str] = workdir_lib.FREE_FIELDS
                    ) -> training.Trained:
  """Returns the teacher of a job, which is trained if it has no weights.

  Args:
    student: from `trainees.build_all`.
    teacher: likewise.
    workdir: of the job, claimed.
    free: as for `_prepare`.
  """
  return _train(teacher, None, workdir, free) if teacher else (
      student.start('teacher'))


def _train(trainee, teacher, workdir,
           free=workdir_lib.FREE_FIELDS) -> training.Trained:
  folder = workdir / trainee.folder
  workdir_lib.claim(folder, trainee.config, free=free)
  return trainer.train(trainee.config, trainee.program, trainee.data, teacher,
                       folder, trainee.title, trainee.settle)


def _load(student, workdir, folder, role) -> training.Trained:
  field = f'--workdir/{folder}' if folder else '--workdir'
  return student.trained(field, workdir / folder, role)


def _freeze(student, trained_teacher) -> teachers.Teacher:
  return teachers.freeze(student.config, student.program, student.data,
                         trained_teacher.network)
