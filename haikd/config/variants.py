"""The variants of a config: `:smoke`, which runs in seconds, and methods."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import ml_collections

from haikd.config import stages as stages_lib
from haikd.core import checks


def variant(config: ml_collections.ConfigDict, name: str,
            methods: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
            ) -> ml_collections.ConfigDict:
  """Returns a config, its variant `:smoke`, or one of its methods.

  Args:
    config: a config made from `base()`.
    name: the text after the colon in `--config=file.py:name`.
    methods: `{method: config.losses}`, what `--mode=sweep` compares: they
      become `config.sweep.methods`.

  Returns:
    The config itself. It runs in seconds if `name` is 'smoke', and has the
    losses of a method if it is one.

  Raises:
    ConfigError: a name other than '', 'smoke' and the methods.
  """
  config.sweep.methods = tuple(methods)
  if name in methods:
    config.losses = ml_collections.ConfigDict(methods[name])
  elif name == 'smoke':
    _spread(config)
    config.steps = 6
    config.batch_size = min(config.batch_size, 32)
    config.log_every = 2
    config.checkpoint_every = 3
    for field in ('split', 'final'):
      split, _, _ = config.evaluation[field].partition('[')
      config.evaluation[field] = f'{split}[:64]'
    config.teacher.train.steps = min(config.teacher.train.steps, 4)
    for assistant in config.assistants.values():
      assistant.steps, assistant.optimizer.warmup_steps = 4, 0
    config.optimizer.warmup_steps = 0
    config.teacher.train.optimizer.warmup_steps = 0
  elif name:
    known = ', '.join((*methods, 'smoke'))
    raise checks.ConfigError(
        f'variant of a config must be {known} or left out; got {name!r}. Write '
        '--config=FILE:smoke or --config=FILE.')
  return config


def _spread(config):
  """Gives each stage an equal share of the run, without warm-up."""
  stages = stages_lib.stages_of(config)
  for number, stage in enumerate(stages):
    if not stage.name:
      continue
    fields = config.stages[stage.name]
    del fields['start']  # It may have been a whole number.
    fields.start = number / len(stages)
    if 'warmup_steps' in fields.get('optimizer', {}):
      fields.optimizer.warmup_steps = 0
