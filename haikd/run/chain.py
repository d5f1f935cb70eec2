"""Teaching assistants: a chain of jobs, each of which teaches the next.

The workdir of an assistant is a folder of its name in that of the run, in which
it is the student. What has finished there is not trained again.

References:
  Mirzadeh et al., Improved Knowledge Distillation via Teacher Assistant,
  arXiv:1902.03393, section 3.
"""

from collections.abc import Sequence
import contextlib
from typing import Any, NamedTuple, Optional

from haikd import config as config_lib
from haikd.core import checks
from haikd.run import resolve
from haikd.run import workdir as workdir_lib
from haikd.storage import checkpoint
from haikd.storage import paths

_TAKEN = (workdir_lib.TEACHER, workdir_lib.BASELINE, 'checkpoints')
_TAKEN_PREFIXES = ('export', 'seed-')


class Link(NamedTuple):
  """One job of a chain.

  Attributes:
    name: of the assistant; None for the student.
    config: of the job.
    workdir: its workdir.
  """

  name: Optional[str]
  config: config_lib.ConfigDict
  workdir: paths.ConcretePath

  def errors(self) -> contextlib.AbstractContextManager[None]:
    """Returns a context whose ConfigErrors name the assistant, if it is one."""
    return (checks.errors_of(f'config.assistants.{self.name}') if self.name else
            contextlib.nullcontext())


def links(config: config_lib.ConfigDict, workdir: paths.Path) -> list[Link]:
  """Returns the jobs of a config, those of its assistants first.

  Args:
    config: a validated config.
    workdir: the workdir of the run.

  Returns:
    The jobs, by the names of the assistants; that of the student is the last.
    Without assistants it is all there is, and has the config that was given.

  Raises:
    ConfigError: an assistant whose name is that of another folder.
  """
  workdir = paths.absolute(workdir)
  if not config.assistants:
    return [Link(None, config, workdir)]
  # What weights say about the data holds for all that learn from it.
  config = resolve.from_pretrained(config)
  result: list[Link] = []
  teacher = None
  for name, assistant in sorted(config.assistants.items()):
    if name in _TAKEN or '/' in name or name.startswith(_TAKEN_PREFIXES):
      raise checks.ConfigError(
          'config.assistants must have names that can be folders beside '
          f'{", ".join(_TAKEN)} and those of exports and seeds; got {name!r}. '
          'Choose another.')
    link = _taught_by(config, teacher)
    _set_network(link.student, assistant)
    link.steps, link.optimizer = assistant.steps, assistant.optimizer
    link.baseline, link.stages = False, config_lib.ConfigDict()
    teacher = Link(name, link, workdir / name)
    with teacher.errors():
      config_lib.validate(link)
    result.append(teacher)
  return [*result, Link(None, _taught_by(config, teacher), workdir)]


def check_taught(jobs: Sequence[Link]) -> None:
  """Refuses to train an assistant further once another has learned from it.

  Args:
    jobs: from `links`.

  Raises:
    ConfigError: an assistant has other steps than it was trained for.
  """
  for link, following in zip(jobs, jobs[1:]):
    taken = checkpoint.steps_taken(link.workdir)
    if (checkpoint.has_checkpoint(following.workdir) and taken and
        link.config.evaluation.patience is None and
        taken != link.config.steps):
      raise checks.ConfigError(
          f'config.assistants.{link.name}.steps must stay as it was, since '
          f'another network has learned from {link.name}; got '
          f'{link.config.steps}, where it has taken {taken}. Choose another '
          '--workdir.')


def _taught_by(config, teacher):
  """Returns a config whose teacher is the student of another job, if any."""
  link: Any = config.copy_and_resolve_references()
  link.assistants = config_lib.ConfigDict()
  if teacher is not None:
    _set_network(link.teacher, teacher.config.student)
    link.teacher.init = str(teacher.workdir)
    link.teacher.init_layers = None
    link.teacher.view = config_lib.base().teacher.view
  return link


def _set_network(target, source):
  """Sets the fields of a network; dicts are replaced and not merged."""
  with target.unlocked(), target.ignore_type():
    for name in config_lib.network():
      target[name] = source[name]
