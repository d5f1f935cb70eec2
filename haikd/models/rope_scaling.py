"""The scalings of rotary position embeddings to longer texts."""

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple, Optional, Union

import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import checks
from haikd.models import sequences

Numbers = Mapping[str, Any]  # The numbers of a scaling, by name.
# Radians a position: NumPy `[R/2]`, known while tracing; or JAX `[B, N, R/2]`.
Frequencies = Union[np.ndarray, jax.Array]

_ATTENTION = 'attention_factor'


class _Kind(NamedTuple):
  """A kind of scaling.

  Attributes:
    defaults: `{number: default}`. A number whose default is None must be given;
      only `attention_factor` may stay None and then follows from the others.
    frequencies: `(sequence, size, rope_base, numbers) -> Frequencies`.
    growth: `numbers ->` the default of `attention_factor`.
  """

  defaults: Numbers
  frequencies: Callable[[sequences.Sequence, int, float, Numbers], Frequencies]
  growth: Callable[[Numbers], float] = lambda numbers: 1.0


def frequencies(
    sequence: sequences.Sequence, size: int, rope_base: float,
    scaling: Optional[Mapping[str, Any]]) -> tuple[Frequencies, float]:
  """Returns how far features turn a position, and by how much they grow.

  Its arguments are those of `rotary.angles`, which explains the kinds.
  """
  if scaling is None:
    return _unscaled(size, rope_base), 1.0
  kind = _KINDS[scaling['kind']]
  numbers = {**kind.defaults, **scaling}
  given = numbers.get(_ATTENTION)
  return (kind.frequencies(sequence, size, rope_base, numbers),
          kind.growth(numbers) if given is None else given)


def check(scaling: Optional[Mapping[str, Any]], size: int) -> None:
  """Raises ConfigError unless a scaling is None or one that `angles` takes.

  Args:
    scaling: the option `rope_scaling`.
    size: R, how many features of a head are rotated.
  """
  if scaling is None:
    return
  kind = scaling.get('kind') if isinstance(scaling, Mapping) else None
  if kind not in _KINDS:
    raise checks.ConfigError(
        'rope_scaling must be None or a dict whose kind is one of '
        f'{", ".join(_KINDS)}; got {scaling!r}.')
  known = _KINDS[kind].defaults
  for name in sorted(set(scaling) - {'kind'} - set(known)):
    raise checks.ConfigError(
        f'rope_scaling.{name} must be a number of kind {kind!r}; got '
        f'{scaling[name]!r}. {checks.suggest(name, known)}')
  for name, default in known.items():
    _check_number(kind, name, scaling.get(name, default), size)
  if kind == 'llama3':
    _check_order(scaling, 'low_freq_factor', 'high_freq_factor')
  if kind == 'yarn':
    _check_order({**known, **scaling}, 'beta_slow', 'beta_fast')
  if kind == 'dynamic' and size < 4:
    raise checks.ConfigError('head_size must be at least 4 with rope_scaling '
                             f"of kind 'dynamic'; got {size}.")


def _check_number(kind: str, name: str, value: Any, size: int) -> None:
  """Raises ConfigError unless a number of a scaling is valid."""
  if name == _ATTENTION and value is None:
    return
  if name == 'truncate':
    is_valid, rule = isinstance(value, bool), 'a bool'
  elif name in ('short_factor', 'long_factor'):
    is_valid = (
        isinstance(value, (tuple, list)) and len(value) == size // 2 and
        all(checks.is_number(x) and x > 0 for x in value))
    rule = (f'{size // 2} numbers above 0, one for each pair of features that '
            'is rotated')
  elif name in ('factor', 'original_length'):
    # Longrope divides by the logarithm of the length, which is 0 for length 1.
    minimum = 1 if name == 'factor' else 2
    is_valid = checks.is_number(value) and value >= minimum
    rule = f'a number of at least {minimum}'
  else:
    is_valid = checks.is_number(value) and value > 0
    rule = 'a number above 0'
  if not is_valid:
    raise checks.ConfigError(f'rope_scaling.{name} must be {rule}; got '
                             f'{value!r}, kind={kind!r}.')


def _check_order(numbers: Numbers, lower: str, upper: str) -> None:
  if numbers[lower] >= numbers[upper]:
    raise checks.ConfigError(
        f'rope_scaling.{lower} must be less than rope_scaling.{upper}; got '
        f'{lower}={numbers[lower]}, {upper}={numbers[upper]}.')


def _lengths(sequence: sequences.Sequence) -> jax.Array:
  """Returns the length of each position's document, `[B, N or 1]`."""
  ends = jnp.where(sequence.mask, sequence.positions + 1, 0)
  if sequence.segments is None:
    return jnp.max(ends, axis=1, keepdims=True)
  same = sequence.segments[:, :, None] == sequence.segments[:, None]
  return jnp.max(jnp.where(same, ends[:, None], 0), axis=-1)


def _exponents(size: int) -> np.ndarray:
  return np.arange(0, size, 2) / size


def _unscaled(size: int, rope_base: float) -> np.ndarray:
  return rope_base**-_exponents(size)


def _linear(sequence, size, rope_base, numbers) -> Frequencies:
  return _unscaled(size, rope_base) / numbers['factor']


def _dynamic(sequence, size, rope_base, numbers) -> Frequencies:
  """Raises the base so that the slowest feature slows down by the factor."""
  longer = jnp.maximum(_lengths(sequence) / numbers['original_length'], 1)
  scaled = numbers['factor'] * longer - (numbers['factor'] - 1)
  logs = (
      math.log(rope_base) + size / (size - 2) * jnp.log(scaled))
  return jnp.exp(-logs[..., None] * jnp.float32(_exponents(size)))


def _yarn(sequence, size, rope_base, numbers) -> Frequencies:

  def feature(turns):
    """Returns the feature with so many turns in the original length."""
    wavelength = numbers['original_length'] / (2 * math.pi * turns)
    return size * math.log(wavelength) / (2 * math.log(rope_base))

  low, high = feature(numbers['beta_fast']), feature(numbers['beta_slow'])
  if numbers['truncate']:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, size - 1)
  width = high - low or 0.001  # A step, if both bounds are one feature.
  slow = np.clip((np.arange(size // 2) - low) / width, 0, 1)
  return _unscaled(size, rope_base) * (
      slow / numbers['factor'] + 1 - slow)


def _llama3(sequence, size, rope_base, numbers) -> Frequencies:
  frequencies = _unscaled(size, rope_base)
  turns = numbers['original_length'] / (2 * math.pi) * frequencies
  low, high = numbers['low_freq_factor'], numbers['high_freq_factor']
  fast = np.clip((turns - low) / (high - low), 0, 1)
  return frequencies * ((1 - fast) / numbers['factor'] + fast)


def _longrope(sequence, size, rope_base, numbers) -> Frequencies:
  frequencies = _unscaled(size, rope_base)
  is_long = _lengths(sequence) > numbers['original_length']
  return jnp.where(
      is_long[..., None],
      jnp.float32(frequencies / np.asarray(numbers['long_factor'])),
      jnp.float32(frequencies / np.asarray(numbers['short_factor'])))


def _longrope_growth(numbers: Numbers) -> float:
  return math.sqrt(
      1 + math.log(numbers['factor']) / math.log(numbers['original_length']))


_KINDS = dict(
    linear=_Kind(dict(factor=None), _linear),
    dynamic=_Kind(dict(factor=None, original_length=None), _dynamic),
    yarn=_Kind(
        dict(
            factor=None,
            original_length=None,
            beta_fast=32.0,
            beta_slow=1.0,
            truncate=True,
            attention_factor=None),
        _yarn,
        growth=lambda numbers: 1 + 0.1 * math.log(numbers['factor'])),
    llama3=_Kind(
        dict(
            factor=None,
            original_length=None,
            low_freq_factor=None,
            high_freq_factor=None),
        _llama3),
    longrope=_Kind(
        dict(
            factor=None,
            original_length=None,
            short_factor=None,
            long_factor=None,
            attention_factor=None),
        _longrope,
        growth=_longrope_growth),
)
