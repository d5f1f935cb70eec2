"""The whole job: a teacher, the student alone, the student, and the table."""

import pathlib
from typing import NamedTuple

import jax

from haikd import base
from haikd import checkpoint
from haikd import checks
from haikd import config as config_lib
from haikd import evaluate as evaluate_lib
from haikd import network as network_lib
from haikd import precision
from haikd import program as program_lib
from haikd import report
from haikd import sharding
from haikd import step as step_lib
from haikd import trainer
from haikd import writer
from haikd.data import pipeline

Results = dict[str, dict[str, float]]  # By network, then by metric.

# What may differ between two starts of one run: where and how often it reads
# and writes, not what it computes.
_FREE_FIELDS = ('log_every', 'checkpoint_every', 'keep_checkpoints', 'baseline',
                'evaluation', 'data.source_dir', 'data.data_dir',
                'data.prefetch')


class _Part(NamedTuple):
  """One network of the job: its config and what is compiled for it."""

  config: config_lib.ConfigDict
  program: program_lib.Program
  data: pipeline.Data


def train(config: config_lib.ConfigDict, workdir: pathlib.Path) -> Results:
  """Trains what is missing, then evaluates, prints and writes the results.

  Args:
    config: a config made from `haikd.config.base()`.
    workdir: holds everything of this run; a run found there goes on.

  Returns:
    What `result.json` holds: by `teacher`, `student_alone` and `student` the
    `parameters, accuracy, cross_entropy, kl, agreement, seconds`.

  Raises:
    ConfigError: the config cannot work; raised before anything is trained.
    DataError: data, checkpoint or file that cannot be used.
    DivergedError: a loss that is not finite.
  """
  mesh = sharding.build_mesh()
  student = _build(config, mesh, has_teacher=True)
  alone = teacher = None
  if config.baseline:
    alone = _build(config, mesh, has_teacher=False)
  if not config.teacher.init:
    teacher = _build(_teacher_config(config), mesh, has_teacher=False)
  checkpoint.claim(workdir, config, free=_FREE_FIELDS)
  results = {}
  trained = _obtain_teacher(config, student, teacher, workdir)
  ready = _freeze(config, trained.network, mesh)
  results['teacher'] = _evaluate(student, student.program.objective.teacher,
                                 trained, ready)
  if alone:
    trained = trainer.train(alone.config, alone.program, alone.data, None,
                            workdir / 'baseline', 'student alone')
    results['student_alone'] = _evaluate(
        student, student.program.objective.student, trained, ready)
  trained = trainer.train(config, student.program, student.data, ready, workdir,
                          'student')
  results['student'] = _evaluate(student, student.program.objective.student,
                                 trained, ready)
  _publish(results, workdir)
  return results


def evaluate(config: config_lib.ConfigDict, workdir: pathlib.Path) -> Results:
  """Evaluates what a run has trained so far, without training.

  Args:
    config: the run's config.
    workdir: of the run.

  Returns:
    As `train`; networks that are not there yet are left out.

  Raises:
    ConfigError: the config cannot work.
    DataError: the run has no checkpoint of its teacher, or other files that
      cannot be used.
  """
  mesh = sharding.build_mesh()
  student = _build(config, mesh, has_teacher=True)
  checkpoint.claim(workdir, config, free=_FREE_FIELDS, create=False)
  source = config.teacher.init or workdir / 'teacher'
  network = base.Frozen(*checkpoint.load_network(source))
  ready = _freeze(config, network, mesh)
  results = {}
  for name, role, path in (('teacher', 'teacher', source),
                           ('student_alone', 'student', workdir / 'baseline'),
                           ('student', 'student', workdir)):
    if checkpoint.has_checkpoint(path):
      network = base.Frozen(*checkpoint.load_network(path))
      trained = trainer.Trained(network, checkpoint.seconds(path))
      results[name] = _evaluate(
          student, getattr(student.program.objective, role), trained, ready)
  _publish(results, workdir)
  return results


def _build(config, mesh, *, has_teacher):
  data = pipeline.build_data(config, shards=sharding.batch_shards(mesh))
  program = program_lib.build_program(
      config,
      spec=data.spec,
      num_classes=data.num_classes,
      mesh=mesh,
      has_teacher=has_teacher)
  return _Part(config, program, data)


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


def _obtain_teacher(config, student, teacher, workdir):
  """Loads the teacher, or trains it."""
  if teacher is None:
    network = base.Frozen(*checkpoint.load_network(config.teacher.init))
    expected = program_lib.abstract_network(student.program.objective.teacher,
                                            student.data.spec)
    checkpoint.check_architecture('config.teacher.init', expected.params,
                                  network.params)
    return trainer.Trained(network, checkpoint.seconds(config.teacher.init))
  return trainer.train(teacher.config, teacher.program, teacher.data, None,
                       workdir / 'teacher', 'teacher')


def _freeze(config, network, mesh):
  identity = checkpoint.tree_hash(network)
  policy = precision.policy(config.teacher.precision)
  frozen = network._replace(params=policy.cast_to_compute(network.params))
  return trainer.Teacher(sharding.replicate(mesh, frozen), identity)


def _evaluate(part, network, trained, teacher):
  program = part.program
  eval_step = step_lib.build_eval_step(network, program.objective.teacher,
                                       program.mesh)
  scores = evaluate_lib.evaluate(
      eval_step, sharding.replicate(program.mesh, trained.network),
      teacher.frozen, part.data.evaluation(part.config.evaluation.final),
      program.mesh)
  parameters = network_lib.count_parameters(trained.network.params)
  return dict(parameters=parameters, **scores, seconds=trained.seconds)


def _publish(results, workdir):
  if jax.process_index() == 0:
    writer.write_results(workdir, results)
    writer.print_table(results)
    report.plot_run(workdir)
