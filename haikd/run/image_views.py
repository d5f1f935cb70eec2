"""Fills in how networks see images, from what their weights come with."""

from collections.abc import Mapping
from typing import Any

from haikd import config as config_lib
from haikd import interop
from haikd.core import checks
from haikd.core import notes
from haikd.storage import checkpoint

_SCALE = ('mean', 'std')
_SIZE = ('image_size', 'crop')


def resolve(config: config_lib.ConfigDict,
            described: Mapping[str, interop.Pretrained]) -> None:
  """Fills in mean and std, and the teacher's view where that is another.

  A given `config.data` is how the student sees images, and a teacher without
  weights; a given `config.teacher.view` is how the teacher does.

  Args:
    config: a config whose networks are resolved; changed in place. Resolving it
      again changes nothing.
    described: `{role: description}` of the networks with weights of other
      libraries.
  """
  defaults = config_lib.base().data
  is_given = any(config.data[name] != defaults[name] for name in _SCALE)
  scales = {role: dict(zip(_SCALE, pretrained.scale))
            for role, pretrained in described.items() if pretrained.scale}
  if scales and not is_given:
    with config.data.ignore_type():  # Numbers become tuples.
      config.data.update(scales.get('student') or scales['teacher'])
  if 'teacher' in scales:
    _look(config, scales['teacher'])
  init = config.teacher.init
  if init and checkpoint.has_checkpoint(init):
    saved = checkpoint.metadata(init).get('config', {})
    _look(config, saved.get('data', {}))


def _look(config, trained: Mapping[str, Any]) -> None:
  """Lets the teacher see images as it was trained, if it has no view yet."""
  view, size = config.teacher.view, trained.get('image_size')
  if size and config.data.image_size is None and view.image_size is None:
    raise checks.ConfigError(
        'config.data.image_size must be set, since the teacher was trained on '
        f'images that were resized to {size}; got None. Set it to the size '
        'that the student is to see.')
  names = _SCALE if config.data.image_size is None else (*_SCALE, *_SIZE)
  found = {}
  for name in names:
    value = trained.get(name)
    value = tuple(value) if isinstance(value, (list, tuple)) else value
    if value is not None and value != config.data[name] and view[name] is None:
      found[name] = value
  if found:
    with view.ignore_type():
      view.update(found)
    notes.say('the teacher sees images as it was trained to, with '
              f'{", ".join(f"{key}={value}" for key, value in found.items())} '
              '(config.teacher.view).')
