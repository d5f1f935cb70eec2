"""Augmentation: random changes to a whole batch of examples, by name.

An augmentation is `f(examples, rng, **options) -> examples` on a dict of arrays
whose first axis is `B`. Images come as `[B, height, width, channels]` float32
in [0, 1], before mean and standard deviation. All randomness comes from `rng`,
a `numpy.random.Generator` that depends on the seed and on the place of the
batch in the stream alone, so that a resumed run sees what it would have seen.
Teacher and student get the same view (arXiv:2106.05237).

The stage `size` is another thing: it makes images of one size from images of
any, one by one, before there is a batch; see `haikd.data.image.resize`.

A config names augmentations as the keys of a dict, and ConfigDict sorts its
keys; the order of application therefore belongs to the functions: by STAGES,
and by name within a stage.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional

import numpy as np

from haikd.core import checks
from haikd.core import registry
from haikd.data import foreign

Examples = dict[str, np.ndarray]
Augment = Callable[[Examples, np.random.Generator], Examples]

SIZE = 'size'
STAGES = (SIZE, 'geometry', 'pixels', 'mix')

RESERVED = ('examples', 'image', 'rng', 'num_classes', 'size')


class Entry(NamedTuple):
  """A registered augmentation.

  Attributes:
    function: the augmentation.
    stage: one of STAGES.
    module: the module that registered it.
  """

  function: Callable[..., Examples]
  stage: str
  module: str


augmentations: registry.Registry[Entry] = registry.Registry('augmentation')


def register_augmentation(name: Optional[str] = None,
                          *,
                          stage: str = 'geometry',
                          replace: bool = False) -> Callable:
  """Registers a function as an augmentation.

  Args:
    name: what configs call it; the function's own name by default.
    stage: one of STAGES, when it is applied.
    replace: whether it may take the place of another of that name.

  Returns:
    A decorator that returns the function unchanged.

  Raises:
    ConfigError: an unknown stage, or a name that is taken.
  """
  if stage not in STAGES:
    raise checks.ConfigError(
        f'augment.register_augmentation: stage must be known; got {stage!r}. '
        f'{checks.suggest(stage, STAGES)}')

  def decorate(function):
    augmentations.add(
        name or function.__name__,
        Entry(function, stage, function.__module__),
        replace=replace)
    return function

  return decorate


def lookup(field: str, name: str,
           options: Any) -> tuple[Entry, dict[str, Any]]:
  """Returns a registered augmentation, and its options if it takes them.

  Args:
    field: where the config names it, for messages.
    name: of the augmentation.
    options: what the config says.

  Returns:
    The entry, and the options as a dict.

  Raises:
    ConfigError: an unknown augmentation or option, or a value of another type
      than the augmentation's annotation.
  """
  if not isinstance(options, Mapping):
    raise checks.ConfigError(
        f'{field}: options must be a dict; got {options!r}. Write '
        f'{name}={{}} for the defaults.')
  entry = augmentations[name]
  options = dict(options)
  checks.check_options(field, entry.function, options, reserved=RESERVED)
  foreign.check_types(field, entry.function, options)
  return entry, options


def build_augment(
    augment: Mapping[str, Mapping[str, Any]],
    num_classes: Optional[int],
    *,
    where: str = 'config.data.augment') -> Augment:
  """Returns what a config's augmentations do to a batch, one after another.

  Args:
    augment: `{name: options}`.
    num_classes: V, passed to the functions that take it.
    where: the field of the config that names them, for messages.

  Returns:
    A function `(examples, rng) -> examples`, of all stages but `size`; what an
    augmentation raises, it raises as a DataError.

  Raises:
    ConfigError: an unknown augmentation or option, or a value of another type
      than the augmentation's annotation.
  """
  steps = []
  for name, options in augment.items():
    entry, options = lookup(f'{where}.{name}', name, options)
    if entry.stage == SIZE:
      continue
    if 'num_classes' in checks.option_names(entry.function):
      options['num_classes'] = num_classes
    steps.append((STAGES.index(entry.stage), name, entry.function, options))
  steps.sort(key=lambda step: step[:2])

  def apply(examples, rng):
    for _, name, function, options in steps:
      with foreign.calling(f'{where}.{name}: {name} must suit the images'):
        examples = function(examples, rng, **options)
    return examples

  return apply
