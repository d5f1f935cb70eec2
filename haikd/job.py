"""The whole job: a teacher, the student alone, the student, and the table."""

from typing import NamedTuple

import jax

from haikd import base
from haikd import checkpoint
from haikd import checks
from haikd import config as config_lib
from haikd import evaluate as evaluate_lib
from haikd import fingerprint
from haikd import network as network_lib
from haikd import paths
from haikd import placement
from haikd import program as program_lib
from haikd import report
from haikd import trainer
from haikd import workdir as workdir_lib
from haikd import writer
from haikd.data import pipeline

Results = dict[str, dict[str, float]]  # By network, then by metric.

# What may differ between two starts of one run: where and how often it reads
# and writes, and how the work is laid out, not what is minimised.
_FREE_FIELDS = ('log_every', 'checkpoint_every', 'keep_checkpoints', 'baseline',
                'evaluation', 'data.source_dir', 'data.data_dir',
                'data.prefetch', 'mesh', 'microbatches', 'student.remat',
                'student.remat_modules', 'student.placement', 'teacher.remat',
                'teacher.remat_modules', 'teacher.placement')


class _Part(NamedTuple):
  """One network of the job: its config and what is compiled for it."""

  config: config_lib.ConfigDict
  program: program_lib.Program
  data: pipeline.Data
  folder: str  # Below the workdir.
  title: str


def train(config: config_lib.ConfigDict, workdir: paths.Path) -> Results:
  """Trains what is missing, then evaluates, prints and writes the results.

  Args:
    config: a config made from `haikd.config.base()`.
    workdir: a folder, or gs://bucket/…, that holds everything of this run; a
      run found there goes on.

  Returns:
    What `result.json` holds: by `teacher`, `student_alone` and `student` the
    `parameters`, the metrics of `haikd.metrics` and the `seconds`.

  Raises:
    ConfigError: the config cannot work; raised before anything is trained.
    DataError: data, checkpoint or file that cannot be used. What can be known
      of them is checked before anything is trained.
    DivergedError: a loss that is not finite.
    StoppedError: SIGTERM has come, and training was saved.
  """
  workdir = paths.as_path(workdir)
  mesh = placement.build_mesh(config.mesh)
  placement.check_batch_size(mesh, config.batch_size, config.microbatches)
  student, alone, teacher = _build_parts(config, mesh)
  parts = [part for part in (teacher, alone, student) if part]
  for part in parts:
    part.data.check()
    _check_start(part, workdir)
  trained = None
  if not teacher:
    trained = _load('config.teacher.init', config.teacher.init, student,
                    'teacher')
  with workdir_lib.lock(workdir):
    workdir_lib.claim(workdir, config, free=_FREE_FIELDS)
    if teacher:
      trained = _train(teacher, None, workdir)
    ready = _freeze(student, trained.network)
    results = dict(teacher=_evaluate_teacher(student, trained, ready))
    del trained  # What the teacher was trained in is larger than what is used.
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
  mesh = placement.build_mesh(config.mesh)
  student = _build(config, mesh)
  workdir_lib.claim(workdir, config, free=_FREE_FIELDS, create=False)
  trained = _load('config.teacher.init',
                  config.teacher.init or workdir / workdir_lib.TEACHER, student,
                  'teacher')
  ready = _freeze(student, trained.network)
  if checkpoint.has_checkpoint(workdir):
    checkpoint.check_teacher('job.evaluate', checkpoint.metadata(workdir),
                             ready.identity)
  results = dict(teacher=_evaluate_teacher(student, trained, ready))
  for name, folder in (('student_alone', workdir / workdir_lib.BASELINE),
                       ('student', workdir)):
    if checkpoint.has_checkpoint(folder):
      trained = _load('--workdir', folder, student, 'student')
      results[name] = _evaluate(student, trained, ready)
  split = config.evaluation.final
  _publish(results, workdir, split, writer.evaluation_file(split))
  return results


def _build_parts(config, mesh):
  """Returns the student and, unless it is not to be trained, alone and teacher.

  They share the data: it is opened and decoded once.
  """
  student = _build(config, mesh)
  alone = teacher = None
  if config.baseline:
    if student.data.spec.labels is None and not config.losses:
      raise checks.ConfigError(
          'job.train: data must have labels to train the student alone on; got '
          'none. Set config.baseline=False.')
    alone = _build(config, mesh, like=student.data, has_teacher=False,
                   folder=workdir_lib.BASELINE, title='student alone')
  if not config.teacher.init:
    own = _teacher_config(config)
    if student.data.spec.labels is None:
      raise checks.ConfigError(
          'job.train: data must have labels to train a teacher on; got none. '
          'Point config.teacher.init at a workdir with a trained one.')
    teacher = _build(own, mesh, like=student.data, has_teacher=False,
                     folder=workdir_lib.TEACHER, title='teacher',
                     augment_field='config.teacher.train.augment',
                     optimizer_field='config.teacher.train.optimizer')
  return student, alone, teacher


def _build(config, mesh, *, like=None, has_teacher=True, folder='',
           title='student', augment_field='config.data.augment',
           optimizer_field='config.optimizer'):
  share = placement.batch_share(mesh)
  data = pipeline.build_data(
      config,
      shards=placement.batch_shards(mesh),
      process_index=share.index,
      process_count=share.count,
      like=like,
      augment_field=augment_field)
  program = program_lib.build_program(
      config,
      spec=data.spec,
      num_classes=data.num_classes,
      mesh=mesh,
      has_teacher=has_teacher,
      optimizer_field=optimizer_field)
  return _Part(config, program, data, folder, title)


def _teacher_config(config):
  """Returns the config of the teacher's own training."""
  fields = config.teacher.train
  if fields.steps <= 0:
    raise checks.ConfigError(
        'job.train: config.teacher must have weights; got init=None and '
        'train.steps=0. Point config.teacher.init at a workdir, or set '
        'config.teacher.train.steps.')
  own = config_lib.ConfigDict(config.to_dict())
  plain = config_lib.base()
  own.steps, own.optimizer = fields.steps, fields.optimizer
  own.data.augment = fields.augment
  own.student = plain.student
  own.student.update(
      {name: config.teacher[name] for name in plain.student})
  own.teacher, own.distillation = plain.teacher, plain.distillation
  own.losses = plain.losses
  return own


def _check_start(part, workdir):
  """Refuses weights to start from that the network cannot take."""
  path = part.config.student.init
  if path and not checkpoint.has_checkpoint(workdir / part.folder):
    _load('config.student.init', path, part, 'student')


def _load(field, path, part, role):
  """Returns a trained network, which must be one of the part's two."""
  expected = part.program.abstract_frozen
  if role == 'student':
    state = part.program.abstract_state
    expected = base.Frozen(state.params.student, state.net_state)
  return trainer.Trained(
      checkpoint.load_like(field, path, expected),
      checkpoint.metadata(path)['seconds'])


def _train(part, teacher, workdir):
  folder = workdir / part.folder
  workdir_lib.claim(folder, part.config, free=_FREE_FIELDS)
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
