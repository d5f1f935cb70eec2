"""Synthetic data for tests and dry runs: learnable and deterministic."""

from collections.abc import Sequence
import math

import numpy as np

from haikd.core import checks
from haikd.core import memory
from haikd.core import registry
from haikd.data import arrays
from haikd.data import source
from haikd.data import spec as spec_lib
from haikd.data import splits
from haikd.data.text import tokens as tokens_lib

_SPLITS = ('train', 'validation', 'test')
_KINDS = ('images', 'tokens')


def _spec(*, kind='images', size=256, num_classes=10, shape=(8, 8, 1),
          length=16, vocabulary=32):
  _check(kind, size, num_classes, shape, length, vocabulary)
  if kind == 'tokens':
    return spec_lib.Spec(tokens_lib.columns(length), vocabulary)
  columns = dict(
      image=spec_lib.Column(tuple(shape), np.uint8),
      label=spec_lib.Column((), np.int32))
  return spec_lib.Spec(columns, num_classes)


def _tasks(kind='images'):
  return ('causal_lm',) if kind == 'tokens' else ('classification',)


@registry.register_dataset(spec=_spec, tasks=_tasks)
def synthetic(split: str,
              *,
              kind: str = 'images',
              size: int = 256,
              num_classes: int = 10,
              shape: Sequence[int] = (8, 8, 1),
              length: int = 16,
              vocabulary: int = 32) -> source.Source:
  """Images of noisy prototypes, or ragged token sequences that follow a rule.

  Args:
    split: 'train', 'validation' or 'test', each of `size` examples.
    kind: 'images', or 'tokens' for next-token prediction.
    size: the number of examples.
    num_classes: of images; each class is one random prototype plus noise.
    shape: of images: height, width and channels.
    length: the greatest length of a sequence; the least is 2.
    vocabulary: of tokens; token 3x + 1 follows x, modulo the vocabulary.

  Returns:
    A Source of `image` (uint8) and `label`, or of `tokens`, `mask`, `label`
    and `target_mask`.

  Raises:
    ConfigError: an option out of its range.
    DataError: an unknown split.
  """
  splits.check(split, _SPLITS)
  _check(kind, size, num_classes, shape, length, vocabulary)
  # Integers of 8 bytes, some of them twice.
  memory.check('config.data.options.size', 24 * size * (
      math.prod(shape) if kind == 'images' else length), 'a split takes')
  random = np.random.RandomState(_SPLITS.index(split))
  if kind == 'tokens':
    return _tokens(random, size, length, vocabulary)
  prototypes = np.random.RandomState(len(_SPLITS)).randint(
      64, 192, (num_classes, *shape))
  labels = random.permutation(np.arange(size) % num_classes)
  noise = random.randint(-64, 64, (size, *shape))
  images = (prototypes[labels] + noise).astype(np.uint8)
  return arrays.Arrays(
      dict(image=images, label=labels), num_classes=num_classes)


def _check(kind, size, num_classes, shape, length, vocabulary):
  if kind not in _KINDS:
    raise checks.ConfigError(
        'config.data.options.kind must be a known kind of data; got '
        f'{kind!r}. {checks.suggest(kind, _KINDS)}')
  for name, value, least in (('size', size, 0), ('num_classes', num_classes, 1),
                             ('length', length, 2),
                             ('vocabulary', vocabulary, 2)):
    if value < least:
      raise checks.ConfigError(f'config.data.options.{name} must be at least '
                               f'{least}; got {value}.')
  if not shape or not all(type(x) is int and x > 0 for x in shape):
    raise checks.ConfigError(
        'config.data.options.shape must be positive numbers, such as height, '
        f'width and channels; got {checks.show(shape)}.')


def _tokens(random, size, length, vocabulary):
  tokens = np.empty((size, length), np.int32)
  tokens[:, 0] = random.randint(vocabulary, size=size)
  for i in range(1, length):
    tokens[:, i] = (3 * tokens[:, i - 1] + 1) % vocabulary
  lengths = random.randint(2, length + 1, size=size)
  mask = np.arange(length) < lengths[:, np.newaxis]
  tokens = np.where(mask, tokens, np.int32(0))
  labels, target_mask = tokens_lib.next_token(tokens, mask)
  return arrays.Arrays(
      dict(tokens=tokens, mask=mask, label=labels, target_mask=target_mask),
      num_classes=vocabulary)
