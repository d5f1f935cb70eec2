"""The whole job: a teacher, the student alone, the student, and the table."""

import jax

from haikd import config as config_lib
from haikd.engine import evaluate as evaluate_lib
from haikd.engine import mesh as mesh_lib
from haikd.network import network as network_lib
from haikd.run import pretrained
from haikd.run import report
from haikd.run import trainees
from haikd.run import trainer
from haikd.run import workdir as workdir_lib
from haikd.run import writer
from haikd.storage import checkpoint
from haikd.storage import fingerprint
from haikd.storage import paths

Results = dict[str, dict[str, float]]  # By network, then by metric.


def train(config: config_lib.ConfigDict, workdir: paths.Path) -> Results:
  """Trains what is missing, then evaluates, prints and writes the results.

  Args:
    config: a config made from `haikd.config.base()`.
    workdir: a folder, or gs://bucket/…, that holds everything of this run; a
      run found there goes on.

  Returns:
    What `result.json` holds: by `teacher`, `student_start` (if it starts from
    weights that are still there), `student_alone` and `student` the
    `parameters`, the metrics of `haikd.metrics` and the `seconds`.

  Raises:
    ConfigError: the config cannot work; raised before anything is trained.
    DataError: data, checkpoint or file that cannot be used. What can be known
      of them is checked before anything is trained.
    DivergedError: a loss that is not finite.
    StoppedError: SIGTERM has come, and training was saved.
  """
  workdir = paths.as_path(workdir)
  config = pretrained.resolve(config)
  mesh = mesh_lib.build_mesh(config.mesh)
  mesh_lib.check_batch_size(mesh, config.batch_size, config.microbatches)
  student, alone, teacher = trainees.build_all(config, mesh)
  for part in filter(None, (teacher, alone, student)):
    part.data.check()
    part.check_start(workdir)
  trained = None if teacher else student.start('teacher')
  with workdir_lib.lock(workdir):
    workdir_lib.claim(workdir, config)
    if teacher:
      trained = _train(teacher, None, workdir)
    ready = _freeze(student, trained.network)
    results = dict(teacher=_evaluate_teacher(student, trained, ready))
    del trained  # What the teacher was trained in is larger than what is used.
    if pretrained.is_there(config.student.init):
      results['student_start'] = _evaluate(student, student.start('student'),
                                           ready)
    if alone:
      results['student_alone'] = _evaluate(
          student, _train(alone, None, workdir), ready)
    results['student'] = _evaluate(student, _train(student, ready, workdir),
                                   ready)
    _publish(results, workdir, config.evaluation.final, writer.RESULT_FILE)
  return results


def evaluate(config: config_lib.ConfigDict, workdir: paths.Path) -> Results:
  """Evaluates what a run has trained so far, without training.

  Args:
    config: the run's config; `config.evaluation.final` is the split.
    workdir: of the run, where `eval-<split>.json` is written.

  Returns:
    As `train`; networks that are not there yet are left out.

  Raises:
    ConfigError: the config cannot work.
    DataError: the run has no checkpoint of its teacher, or of another than the
      student learned from, or other files that cannot be used.
  """
  workdir = paths.as_path(workdir)
  config = pretrained.resolve(config)
  mesh = mesh_lib.build_mesh(config.mesh)
  student = trainees.build(config, mesh)
  workdir_lib.claim(workdir, config, create=False)
  saved = None
  if checkpoint.has_checkpoint(workdir):
    saved = checkpoint.metadata(workdir)
    student.check_vocabulary('job.evaluate', saved)
  if config.teacher.init:
    trained = student.start('teacher')
  else:
    trained = student.trained('config.teacher.init',
                              workdir / workdir_lib.TEACHER, 'teacher')
  ready = _freeze(student, trained.network)
  if saved:
    checkpoint.check_teacher('job.evaluate', saved, ready.identity)
  results = dict(teacher=_evaluate_teacher(student, trained, ready))
  if pretrained.is_there(config.student.init):
    results['student_start'] = _evaluate(student, student.start('student'),
                                         ready)
  for name, folder in (('student_alone', workdir / workdir_lib.BASELINE),
                       ('student', workdir)):
    if checkpoint.has_checkpoint(folder):
      trained = student.trained('--workdir', folder, 'student')
      results[name] = _evaluate(student, trained, ready)
  split = config.evaluation.final
  _publish(results, workdir, split, writer.evaluation_file(split))
  return results


def _train(part, teacher, workdir):
  folder = workdir / part.folder
  workdir_lib.claim(folder, part.config)
  return trainer.train(part.config, part.program, part.data, teacher, folder,
                       part.title)


def _freeze(part, network):
  frozen = part.program.freeze(network)
  return trainer.Teacher(frozen, fingerprint.tree_hash(frozen))


def _evaluate_teacher(part, trained, teacher):
  """Returns the teacher's row, in which it is compared with itself."""
  eval_step = part.program.teacher_eval_step
  return _row(trained, _scores(part, eval_step, teacher.frozen, None))


def _evaluate(part, trained, teacher):
  scores = _scores(part, part.program.eval_step, trained.network,
                   teacher.frozen)
  return _row(trained, scores)


def _scores(part, eval_step, network, frozen):
  return evaluate_lib.evaluate(
      eval_step, network, frozen,
      part.data.evaluation(part.config.evaluation.final), part.program.mesh)


def _row(trained, scores):
  parameters = network_lib.count_parameters(trained.network.params)
  return dict(parameters=parameters, **scores, seconds=trained.seconds)


def _publish(results, workdir, split, name):
  if jax.process_index() == 0:
    writer.write_results(workdir, results, name)
    writer.print_table(results, split=split)
    report.plot_run(workdir)
