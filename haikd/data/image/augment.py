"""Augmentation: random changes to a batch of examples, by name.

An augmentation is `f(examples, rng, **options) -> examples` on a dict of arrays
whose first axis is `B`. Images are `[B, height, width, channels]` float32 in
[0, 1], before they are standardised; for one that is registered as `raw` they
are as the data set has them, which is uint8 for most. All randomness comes from
`rng`, a `numpy.random.Generator` that depends only on the seed, the process and
the position of the batch in the stream, so a resumed run sees the batches it
would have seen. Teacher and student get the same view (arXiv:2106.05237).

An augmentation of the stage `size` differs: it resizes single images, before
they become a batch; see `haikd.data.image.resize`.

Augmentations are applied by stage, in the order of STAGES, and by name within a
stage. A config cannot give an order, because it names them as keys of a
ConfigDict, which sorts its keys.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any, NamedTuple, Optional

import numpy as np

from haikd.core import checks
from haikd.core import registry
from haikd.core import signatures
from haikd.data import foreign
from haikd.data.image import normalise

Examples = dict[str, np.ndarray]
Augment = Callable[[Examples, np.random.Generator], Examples]

SIZE = 'size'
STAGES = (SIZE, 'geometry', 'pixels', 'mix')

# Arguments of an augmentation that haikd passes.
RESERVED = ('examples', 'image', 'rng', 'num_classes', 'size')


class Entry(NamedTuple):
  """A registered augmentation.

  Attributes:
    function: the augmentation; returns Examples, or an image at stage `size`.
    stage: one of STAGES.
    module: the module that registered it.
    raw: whether it takes images as the data set has them.
  """

  function: Callable[..., Any]
  stage: str
  module: str
  raw: bool


augmentations: registry.Registry[Entry] = registry.Registry('augmentation')


def register_augmentation(name: Optional[str] = None,
                          *,
                          stage: str = 'geometry',
                          raw: bool = False,
                          replace: bool = False) -> Callable:
  """Registers a function as an augmentation.

  Args:
    name: its name in configs; the function's name by default.
    stage: when it is applied, one of STAGES.
    raw: whether it takes images as the data set has them: uint8 or floating,
      and at the stage `size` a `decode.Encoded` too, which is not decoded yet.
    replace: whether it may replace another of that name.

  Returns:
    A decorator that returns the function unchanged.

  Raises:
    ConfigError: an unknown stage, or a name that is taken.
  """
  if stage not in STAGES:
    raise checks.ConfigError(
        f'stage must be a stage of augmentation; got {stage!r}. '
        f'{checks.suggest(stage, STAGES)}')

  def decorate(function):
    augmentations.add(
        name or function.__name__,
        Entry(function, stage, function.__module__, raw),
        replace=replace)
    return function

  return decorate


def lookup(field: str, name: str,
           options: Any) -> tuple[Entry, dict[str, Any]]:
  """Returns a registered augmentation and its checked options.

  Args:
    field: the config field that holds the options, for messages.
    name: the name of the augmentation.
    options: its options in the config.

  Returns:
    The entry, and the options as a dict.

  Raises:
    ConfigError: an unknown augmentation or option, or an option whose type
      contradicts its annotation.
  """
  if not isinstance(options, Mapping):
    raise checks.ConfigError(
        f'{field} must be a dict of options; got {options!r}. Write {name}={{}}'
        ' for the defaults.')
  entry = augmentations[name]
  options = dict(options)
  signatures.check_options(field, entry.function, options, reserved=RESERVED)
  return entry, options


def build_augment(
    augment: Mapping[str, Mapping[str, Any]],
    num_classes: Optional[int],
    *,
    field: str = 'config.data.augment') -> Augment:
  """Returns a function that applies a config's augmentations to a batch.

  Args:
    augment: `{name: options}`.
    num_classes: V, passed to the functions that take it.
    field: the config field that holds `augment`, for messages.

  Returns:
    A function `(examples, rng) -> examples`, of all stages but `size`; it
    can be pickled. It turns any error of an augmentation into a DataError.

  Raises:
    ConfigError: an unknown augmentation or option, or an option whose type
      contradicts its annotation.
  """
  steps = []
  for name, options in augment.items():
    entry, options = lookup(f'{field}.{name}', name, options)
    if entry.stage == SIZE:
      continue
    if 'num_classes' in signatures.option_names(entry.function):
      options['num_classes'] = num_classes
    steps.append((STAGES.index(entry.stage), name, entry, options))
  steps.sort(key=lambda step: step[:2])
  return functools.partial(_apply, steps, field)


def _apply(steps, field, examples, rng):
  for _, name, entry, options in steps:
    with foreign.calling(f'{field}.{name} must work on the batch',
                         'Fix its options or its code'):
      if not entry.raw and 'image' in examples:
        examples = {**examples, 'image': normalise.to_float(examples['image'])}
      examples = entry.function(examples, rng, **options)
  return examples
