"""The networks that a job trains, each with its data and compiled program."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional

import jax

from haikd import config as config_lib
from haikd import metrics as metrics_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.core import registry
from haikd.data import pipeline
from haikd.engine import abstract
from haikd.engine import fits
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.objective import recorded as recorded_lib
from haikd.run import pretrained
from haikd.run import recorded
from haikd.run import resolve
from haikd.run import training
from haikd.run import workdir as workdir_lib
from haikd.storage import checkpoint
from haikd.storage import paths
from haikd.teacher_records import records as records_lib


class Trainee(NamedTuple):
  """A network that the job trains.

  Attributes:
    config: the config of its training; the network is `config.student`.
    program: the compiled functions.
    data: what it is trained on and evaluated with.
    folder: where it is saved, below the workdir.
    title: its title on the progress bar.
    settle: `(stage number, state) -> program`, what pairs layers where a stage
      begins, or returns None; None if nothing does.
    records: what was recorded of the teacher, which does not run then, or None.
  """

  config: config_lib.ConfigDict
  program: program_lib.Program
  data: pipeline.Data
  folder: str
  title: str
  settle: Optional[Callable] = None
  records: Optional[records_lib.Records] = None

  @property
  def has_teacher(self) -> bool:
    """Whether it has a teacher, to learn from or to be compared with."""
    return self.program.abstract_frozen is not None

  def expected(self, role: str) -> base.Variables:
    """Returns shapes, dtypes and shardings of the 'teacher' or 'student'."""
    if role == 'teacher':
      assert self.program.abstract_frozen is not None, 'it learns from none'
      return self.program.abstract_frozen
    state = self.program.abstract_state
    return base.Variables(state.params.student, state.net_state)

  def start(self, role: str) -> training.Trained:
    """Returns the network that `init` of the 'teacher' or 'student' names."""
    network = pretrained.load(self.config, role, self.expected(role), self.data)
    return training.Trained(network, pretrained.seconds(self.config[role].init))

  def trained(self, field: str, path: paths.Path,
              role: str) -> training.Trained:
    """Returns a network that was trained in a workdir.

    Args:
      field: the config field or flag that names the workdir, for messages.
      path: the workdir.
      role: 'teacher' or 'student', the network to load it as.

    Raises:
      DataError: the workdir holds no checkpoint, or its network has another
        architecture or vocabulary.
    """
    saved = checkpoint.metadata(path, field=field)
    self.check_vocabulary(saved, role)
    return training.Trained(
        checkpoint.load_like(field, path, self.expected(role)),
        saved['seconds'])

  def check_vocabulary(self, saved: Mapping[str, Any], role: str) -> None:
    """Refuses a network whose vocabulary is not the data's.

    Args:
      saved: the metadata of its checkpoint.
      role: 'teacher' or 'student', the network that it is.

    Raises:
      DataError: the vocabularies differ.
    """
    text = self.data.text_of(role)
    checkpoint.check_vocabulary(saved, text.identity if text else '')

  def check_evaluation(self) -> None:
    """Traces what evaluation will run, so that it cannot fail after training.

    Raises:
      ConfigError: labels and outputs that metrics cannot compare, or none of
        the metrics of the student is `config.evaluation.keep_best`.
    """
    program, evaluation = self.program, self.config.evaluation
    network = program_lib.trained_network(program.abstract_state)
    frozen = program.abstract_frozen
    for field, split in (('split', evaluation.split),
                         ('final', evaluation.final)):
      batch = abstract.batch_of(self.data.evaluation_spec(split), program.mesh)
      try:
        measured = jax.eval_shape(program.eval_step, network, frozen, batch)
        if program.teacher_eval_step:
          jax.eval_shape(program.teacher_eval_step, frozen, None, batch)
      except checks.ConfigError:
        raise
      except Exception as err:  # Whatever a user's network raises.
        seen = batch.view('student').inputs, batch.labels
        shapes = jax.tree.map(lambda x: x.shape, seen)
        raise checks.ConfigError(
            f'config.evaluation.{field} must name a split that the networks '
            'take, and whose labels can be compared with their outputs; got '
            f'{split!r} with inputs and labels of shapes {shapes}: '
            f'{checks.one_line(err)}') from err
      if field == 'split':
        self._check_best(metrics_lib.names(
            measured[0], measured[1], program.own_metrics))

  def _check_best(self, names):
    """Refuses a metric to keep the best by that the student does not have."""
    metric = self.config.evaluation.keep_best
    if metric is None or metric in names:
      return
    if not self.folder:
      raise checks.ConfigError(
          'config.evaluation.keep_best must be a metric of the student; got '
          f'{metric!r}. {checks.suggest(metric, names)}')
    notes.say(f'{self.title} has no {metric}, config.evaluation.keep_best; its '
              'last network is used.')

  def check_stages(self) -> None:
    """Traces the step of every stage, so that none fails halfway.

    Raises:
      ConfigError: a stage that cannot run.
    """
    program = self.program
    for stage in program.stages[1:]:
      try:
        jax.eval_shape(stage.train_step, stage.abstract_state,
                       stage.abstract_frozen, self.data.spec)
      except Exception as err:  # Whatever a user's network or loss raises.
        raise checks.ConfigError(
            f'config.stages.{stage.name} must have a step that runs; got '
            f'{checks.describe(err)}.') from err

  def check_start(self, workdir: paths.Path) -> None:
    """Refuses a workdir, or `config.student.init`, that it cannot start from.

    Args:
      workdir: of the job. If it has a checkpoint, `init` is not checked.

    Raises:
      ConfigError: the workdir has taken more than `config.steps` steps.
      DataError: as `pretrained.load`.
    """
    folder = paths.as_path(workdir) / self.folder
    taken = checkpoint.steps_taken(folder)
    if taken > self.config.steps:
      raise checks.ConfigError(
          f'config.steps must be no fewer than the steps of {self.title}; got '
          f'{self.config.steps}, and {folder} has {taken}. Choose another '
          '--workdir for fewer.')
    if self.config.student.init and not checkpoint.has_checkpoint(folder):
      pretrained.check(self.config, 'student', self.expected('student'),
                       self.data)


def build_all(
    config: config_lib.ConfigDict, mesh: jax.sharding.Mesh,
    title: str = 'student', shared_data: Optional[pipeline.Data] = None
) -> tuple[Trainee, Optional[Trainee], Optional[Trainee]]:
  """Builds the networks of a job, which share the data.

  Args:
    config: a config from `resolve.from_pretrained`.
    mesh: the devices to run on.
    title: of the student, on the progress bar.
    shared_data: data whose open splits to share.

  Returns:
    The student, the student alone if `config.baseline`, and the teacher if it
    has to be trained. A student without a teacher learns from the data alone.

  Raises:
    ConfigError: the config cannot work.
    DataError: the data cannot be used.
  """
  student = build(config, mesh, title=title, shared_data=shared_data)
  has_labels = student.data.spec.labels is not None
  alone = teacher = None
  if config.baseline:
    predicts = has_labels and not isinstance(
        student.program.objective.outputs[0].logits, base.Embedding)
    if not predicts and not _learns_alone(config):
      raise checks.ConfigError(
          'config.baseline must be False if the data has no labels and '
          'config.losses no loss that needs no teacher; got True. Set '
          'config.baseline=False.')
    alone = build(resolve.alone(config), mesh,
                  shared_data=student.data, has_teacher=False,
                  folder=workdir_lib.BASELINE, title='student alone')
  if student.has_teacher and not config.teacher.init and not student.records:
    teacher_config = resolve.teacher_training(config)
    if not has_labels:
      raise checks.ConfigError(
          'data must have labels to train a teacher on; they are missing. '
          'Point config.teacher.init at a workdir with a trained teacher.')
    teacher = build(teacher_config, mesh, shared_data=student.data,
                    has_teacher=False, folder=workdir_lib.TEACHER,
                    title='teacher',
                    augment_field='config.teacher.train.augment',
                    optimizer_field='config.teacher.train.optimizer')
  return student, alone, teacher


def build(config: config_lib.ConfigDict,
          mesh: jax.sharding.Mesh,
          *,
          shared_data: Optional[pipeline.Data] = None,
          has_teacher: Optional[bool] = None,
          folder: str = '',
          title: str = 'student',
          augment_field: str = 'config.data.augment',
          optimizer_field: str = 'config.optimizer') -> Trainee:
  """Builds one network of a job.

  Args:
    config: a config from `resolve.from_pretrained`; the network that is trained
      is `config.student`.
    mesh: the devices to run on.
    shared_data: data whose open splits to share.
    has_teacher: whether it learns from `config.teacher` or from labels alone;
      None for a teacher unless it has no weights and no term needs it.
    folder: where it is saved, below the workdir.
    title: its title on the progress bar.
    augment_field: the config field of the augmentations, for messages.
    optimizer_field: the config field of the optimizer, for messages.

  Returns:
    A Trainee.

  Raises:
    ConfigError: the config cannot work.
    DataError: the data cannot be used.
  """
  records = None
  if has_teacher is not False and config.teacher.records:
    has_teacher = True
    records = recorded.open_records(config)
  share = mesh_lib.batch_share(mesh)
  data = pipeline.build_data(
      config,
      shards=mesh_lib.batch_shards(mesh),
      process_index=share.index,
      process_count=share.count,
      like=shared_data,
      records=records,
      augment_field=augment_field)
  if records is not None:
    recorded.check_data(records, data)
    recorded.check_rows(records, data, config)
  config = resolve.with_vocabulary(
      config, data.text_of('teacher'), data.text_of('student'))
  resolved = resolve.with_task(config, data.task)
  if has_teacher is None:
    has_teacher = resolve.has_teacher(resolved, data.spec, data.num_classes)
    if not has_teacher:
      notes.say('config.teacher has no weights, and no term compares with it: '
                'the student learns from the data alone.')
  program = program_lib.build_program(
      resolved,
      spec=data.spec,
      num_classes=data.num_classes,
      mesh=mesh,
      has_teacher=has_teacher,
      recorded=recorded_lib.of_records(records) if records else None,
      optimizer_field=optimizer_field)
  fits.check(program, data.spec, title)
  return Trainee(config, program, data, folder, title, records=records)


def _learns_alone(config):
  """Returns whether some loss of the config needs no teacher."""
  losses = (registry.losses[term.loss] for term in config.losses.values())
  return any(not loss.needs_teacher and not loss.scores for loss in losses)
