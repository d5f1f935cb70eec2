"""Refuses networks and data whose tasks do not fit, before anything is read."""

import itertools
from typing import Any, Optional

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import tasks

ROLES = ('teacher', 'student')


def check(config: config_lib.ConfigDict) -> None:
  """Refuses a data set whose targets are not what a network predicts.

  Models and data sets that declare no task are not checked; see
  `haikd.core.tasks`.

  Args:
    config: a config whose networks are resolved.

  Raises:
    ConfigError: the targets do not fit, or one network predicts the next token
      and the other one the token itself.
  """
  teacher: Any = config.teacher
  # One that the config does not mention is the default, and may not be needed.
  is_mentioned = config_lib.has_weights(teacher) or (
      teacher.model != config_lib.network().model)
  roles = ROLES if is_mentioned else ('student',)
  predicted = {role: task_of(config, role) for role in roles}
  for (name, targets), (role, task) in itertools.product(
      _targets(config.data), predicted.items()):
    if task and targets and not tasks.fits(task, targets):
      known = tasks.data_for(task)
      remedy = (f'Data sets for {task}: {", ".join(known)}.' if known else
                'Register a data set for it, or choose another network.')
      raise checks.ConfigError(
          f'config.data.name must be a data set for {task}, which is what '
          f'config.{role} predicts; got {name!r}, whose targets are for '
          f'{" and ".join(targets)}. {remedy}')
  if len(set(predicted.values()) & set(tasks.OF_POSITIONS)) > 1:
    raise checks.ConfigError(
        'config.student must predict the same as config.teacher, since their '
        f'logits are compared position by position; got '
        f'{predicted["student"]} and {predicted["teacher"]}. Choose another '
        'student or teacher.')


def _targets(data):
  """Returns the data set, or those of a mixture, each with its tasks."""
  options = config_lib.plain(data.options)
  if not data.mixture:
    return [(data.name, tasks.of_data(data.name, options))]
  entries = map(config_lib.component, data.mixture.values())
  named = [(entry.name or data.name, config_lib.plain(entry.options))
           for entry in entries]
  return [(name, tasks.of_data(name, {**options, **own}))
          for name, own in named]


def task_of(config: config_lib.ConfigDict, role: str) -> Optional[str]:
  """Returns the task of the 'teacher' or 'student', None if undeclared."""
  return tasks.of_model(config[role].model, config[role].options)
