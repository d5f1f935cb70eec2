"""Resolves the teachers of stages, which see the data that all see."""

from collections.abc import Callable, Iterator
from typing import Any

from haikd import config as config_lib
from haikd.core import checks
from haikd.data.image import views
from haikd.engine import stages as stages_lib

# The fields of a teacher that weights and data decide.
_DECIDED = ('model', 'options', 'used_classes', 'view')


def resolve(
    config: config_lib.ConfigDict,
    resolve_teacher: Callable[[config_lib.ConfigDict], config_lib.ConfigDict]
) -> None:
  """Fills in what weights say about the teachers of stages.

  Args:
    config: whose networks and data are resolved; changed in place.
    resolve_teacher: returns a resolved config, given one without stages.

  Raises:
    ConfigError: a teacher of a stage takes other data, or has other logits,
      than that of the config.
  """
  for stage in config_lib.stages_of(config):
    if stage.config.teacher == config.teacher:
      continue
    with stages_lib.errors_of(stage):
      # The data of the run, whatever it is mixed of in the stage.
      alone = config_lib.without_stages(config)
      alone.teacher = stage.config.teacher
      resolved = resolve_teacher(alone)
    differ = [
        field for field, one, other in (
            ('config.data', config.data, resolved.data),
            ('config.student', config.student, resolved.student),
            ('config.teacher.view', views.of_teacher(config),
             views.of_teacher(resolved)))
        if one != other]
    if differ:
      raise checks.ConfigError(
          f'{stage.field}.teacher must take what config.teacher takes, since '
          'all teachers see the same data; got one that changes '
          f'{" and ".join(differ)}. Choose one with the same tokenizer, size '
          'of vocabulary and view of images.')
    entry = {name: value for name, value in resolved.teacher.items()
             if name in config.stages[stage.name].teacher or name in _DECIDED}
    fields: Any = config.stages[stage.name]
    with config.unlocked():
      del fields['teacher']
      fields.teacher = config_lib.ConfigDict(entry)


def teachers(
    config: config_lib.ConfigDict) -> Iterator[tuple[str, Any]]:
  """Yields the config field and the fields of each teacher of a stage."""
  for name, fields in config.stages.items():
    if 'teacher' in fields:
      yield f'config.stages.{name}.teacher', fields.teacher
