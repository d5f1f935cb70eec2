"""Encoders with a tokenizer each: texts are tokenized twice.

Vectors and classes of a text do not depend on how it was cut into tokens, so
that they can be compared. Logits, hidden states and attention maps of positions
can't be.
"""

from collections.abc import Mapping
from typing import Optional

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import notes
from haikd.core import registry
from haikd.core import signatures
from haikd.core import tasks as core_tasks
from haikd.data.text import affixes
from haikd.data.text import shared_ids
from haikd.data.text import text_tokenizers
from haikd.run import tasks

OPTION = 'student_tokenizer'


def of_student(config: config_lib.ConfigDict,
               paths: Mapping[str, str]) -> Optional[str]:
  """Returns the tokenizer of the student, if it needs its own.

  It does if the weights of two encoders come with different tokenizers, and
  each returns a vector or classes for a text. Tokenizers with the same ids
  differ if they add other special tokens to texts.

  Args:
    config: a config whose networks are resolved.
    paths: `{role: tokenizer}` of the networks whose weights come with one.

  Returns:
    Its path; None if teacher and student share a tokenizer, or have to.

  Raises:
    ConfigError: the data set takes one tokenizer only, or the config gives the
      student another than that of its weights.
  """
  own = paths.get('student')
  given = config.data.options.get(OPTION)
  if given is not None:
    if own and not _are_one(given, own):
      raise checks.ConfigError(
          f'config.data.options.{OPTION} must be the tokenizer that the '
          f'weights of the student come with, {own}; got {given}. Leave it '
          'out.')
    return given
  predicted = {tasks.task_of(config, role) for role in tasks.ROLES}
  if (len(paths) < 2 or not predicted <= set(core_tasks.OF_TEXTS) or
      _are_one(*paths.values())):
    return None
  takes = [name for name in registry.datasets.names() if OPTION in
           signatures.option_names(registry.datasets[name].function)]
  if config.data.name not in takes:
    raise checks.ConfigError(
        f'config.data.name must be a data set with the option {OPTION}, since '
        'teacher and student have a tokenizer each; got '
        f'{config.data.name!r}. Data sets that have it: {", ".join(takes)}.')
  notes.say(f'texts are tokenised twice: by {paths["teacher"]} for the '
            f'teacher, and by {own} for the student.')
  return own


def _are_one(first: str, second: str) -> bool:
  if first == second:
    return True
  loaded = [text_tokenizers.load(path) for path in (first, second)]
  try:
    shared_ids.count(*loaded)
  except ValueError:
    return False
  return affixes.agree(*loaded)
