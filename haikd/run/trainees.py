"""The networks of a job, each with its data and what is compiled for it."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

import jax

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.data import pipeline
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.run import pretrained
from haikd.run import trainer
from haikd.run import workdir as workdir_lib
from haikd.storage import checkpoint
from haikd.storage import paths


class Trainee(NamedTuple):
  """One network of the job: its config and what is compiled for it.

  Attributes:
    config: of its own; the network is `config.student`.
    program: what is compiled.
    data: what it is trained on and evaluated with.
    folder: where it is saved, below the workdir.
    title: for the progress bar.
  """

  config: config_lib.ConfigDict
  program: program_lib.Program
  data: pipeline.Data
  folder: str
  title: str

  def expected(self, role: str) -> base.Variables:
    """Returns what the 'teacher' or the 'student' of this part is like."""
    if role == 'teacher':
      return self.program.abstract_frozen
    state = self.program.abstract_state
    return base.Variables(state.params.student, state.net_state)

  def start(self, role: str) -> trainer.Trained:
    """Returns the network that `init` of the 'teacher' or 'student' names."""
    network = pretrained.load(self.config, role, self.expected(role), self.data)
    seconds = pretrained.seconds(self.config[role].init)
    return trainer.Trained(network, seconds)

  def trained(self, field: str, path: paths.Path, role: str) -> trainer.Trained:
    """Returns a network that was trained in a workdir.

    Args:
      field: that names the workdir, for messages.
      path: the workdir.
      role: which network of this part it must be like.

    Raises:
      DataError: it is not there, of another network, or of other tokens.
    """
    saved = checkpoint.metadata(path)
    self.check_vocabulary('parts.trained', saved)
    return trainer.Trained(
        checkpoint.load_like(field, path, self.expected(role)),
        saved['seconds'])

  def check_vocabulary(self, where: str, saved: Mapping[str, Any]) -> None:
    """Refuses a network whose tokens are not those of the data.

    Args:
      where: the function to name.
      saved: the metadata of its checkpoint.

    Raises:
      DataError: they differ.
    """
    text = self.data.text
    checkpoint.check_vocabulary(where, saved, text.identity if text else '')

  def check_start(self, workdir: paths.Path) -> None:
    """Refuses weights to start from that the student cannot take."""
    saved = checkpoint.has_checkpoint(workdir / self.folder)
    if self.config.student.init and not saved:
      pretrained.check(self.config, 'student', self.expected('student'),
                       self.data)


def build_all(
    config: config_lib.ConfigDict, mesh: jax.sharding.Mesh
) -> tuple[Trainee, Optional[Trainee], Optional[Trainee]]:
  """Builds the networks of a job; they share the data.

  Args:
    config: what `pretrained.resolve` returns.
    mesh: where to run.

  Returns:
    The student, the student alone if `config.baseline`, and the teacher if it
    has to be trained.

  Raises:
    ConfigError: the config cannot work.
    DataError: data that cannot be used.
  """
  student = build(config, mesh)
  alone = teacher = None
  if config.baseline:
    if student.data.spec.labels is None and not _learns_alone(config):
      raise checks.ConfigError(
          'job.train: data must have labels to train the student alone on, or '
          'config.losses one that needs no teacher; got neither. Set '
          'config.baseline=False.')
    alone = build(config, mesh, like=student.data, has_teacher=False,
                  folder=workdir_lib.BASELINE, title='student alone')
  if not config.teacher.init:
    own = _teacher_config(config)
    if student.data.spec.labels is None:
      raise checks.ConfigError(
          'job.train: data must have labels to train a teacher on; got none. '
          'Point config.teacher.init at a workdir with a trained one.')
    teacher = build(own, mesh, like=student.data, has_teacher=False,
                    folder=workdir_lib.TEACHER, title='teacher',
                    augment_field='config.teacher.train.augment',
                    optimizer_field='config.teacher.train.optimizer')
  return student, alone, teacher


def build(config: config_lib.ConfigDict,
          mesh: jax.sharding.Mesh,
          *,
          like: Optional[pipeline.Data] = None,
          has_teacher: bool = True,
          folder: str = '',
          title: str = 'student',
          augment_field: str = 'config.data.augment',
          optimizer_field: str = 'config.optimizer') -> Trainee:
  """Builds one network of a job.

  Args:
    config: of its own, resolved; the network is `config.student`.
    mesh: where to run.
    like: data whose open splits to share.
    has_teacher: whether it learns from `config.teacher`, or from labels alone.
    folder: where it is saved, below the workdir.
    title: for the progress bar.
    augment_field: where the user set augmentations, for messages.
    optimizer_field: where the user set the optimizer, for messages.

  Returns:
    A Trainee.

  Raises:
    ConfigError: the config cannot work.
    DataError: data that cannot be used.
  """
  share = mesh_lib.batch_share(mesh)
  data = pipeline.build_data(
      config,
      shards=mesh_lib.batch_shards(mesh),
      process_index=share.index,
      process_count=share.count,
      like=like,
      augment_field=augment_field)
  config = pretrained.with_vocabulary(config, data.text)
  program = program_lib.build_program(
      config,
      spec=data.spec,
      num_classes=data.num_classes,
      mesh=mesh,
      has_teacher=has_teacher,
      optimizer_field=optimizer_field)
  return Trainee(config, program, data, folder, title)


def _learns_alone(config):
  """Returns whether some loss of the config looks at the student alone."""
  return any(not registry.losses[term.loss].needs_teacher
             for term in config.losses.values())


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
