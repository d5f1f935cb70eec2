"""Rotary position embeddings, and their scalings to longer texts."""

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple, Optional, Union

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from haikd.core import checks
from haikd.models import sequences

Rotation = tuple[jax.Array, jax.Array]  # Cosine and sine, `[B, N, K/2]`.
Numbers = Mapping[str, Any]  # The numbers of a scaling, by name.
# Radians a position: NumPy `[K/2]`, known while tracing; or JAX `[B, N, K/2]`.
Frequencies = Union[np.ndarray, jax.Array]

_ATTENTION = 'attention_factor'


class _Kind(NamedTuple):
  """A kind of scaling.

  Attributes:
    defaults: `{number: default}`. A number whose default is None must be given;
      only `attention_factor` may stay None and then follows from the others.
    frequencies: `(sequence, head_size, rope_base, numbers) -> Frequencies`.
    growth: `numbers ->` the default of `attention_factor`.
  """

  defaults: Numbers
  frequencies: Callable[[sequences.Sequence, int, float, Numbers], Frequencies]
  growth: Callable[[Numbers], float] = lambda numbers: 1.0


def angles(sequence: sequences.Sequence,
           head_size: int,
           rope_base: float,
           scaling: Optional[Mapping[str, Any]] = None) -> Rotation:
  """Returns the rotation of the features of each position.

  Without scaling, feature i of position p turns by p x base^(-2i/K). Networks
  that were trained further on longer texts turn slower:

    linear    all features by the factor.
    dynamic   in documents longer than `original_length` the base grows with
              the length, so that slow features turn slower.
    yarn      features with fewer than `beta_slow` turns in `original_length`
              by the factor, those with more than `beta_fast` turns not at all,
              those between by a weighted mean; the bounds are rounded to
              integer features if `truncate`.
    llama3    likewise, with `low_freq_factor` and `high_freq_factor` turns; the
              mean is linear in turns.
    longrope  each feature by its factor, from `long_factor` in documents longer
              than `original_length`, else from `short_factor`.

  With yarn and longrope the rotated features grow by `attention_factor`; if it
  is None, by 1 + ln(factor) / 10 and by
  sqrt(1 + ln(factor) / ln(original_length)).

  Args:
    sequence: rows. What depends on a length uses the length of each document,
      so that it does not change with the rest of the row or batch.
    head_size: K.
    rope_base: the base.
    scaling: None, or a dict of `kind` and the numbers of that kind.

  Returns:
    Cosine and sine, `[B, N, K/2]` float32.

  References:
    Su et al., arXiv:2104.09864, equation 34. Linear: Chen et al.,
    arXiv:2306.15595. Yarn: Peng et al., arXiv:2309.00071, section 3. Llama 3:
    arXiv:2407.21783, section 3.4.2. LongRoPE: Ding et al., arXiv:2402.13753.
  """
  frequencies: Frequencies = _unscaled(head_size, rope_base)
  growth = 1.0
  if scaling is not None:
    kind = _KINDS[scaling['kind']]
    numbers = {**kind.defaults, **scaling}
    frequencies = kind.frequencies(sequence, head_size, rope_base, numbers)
    given = numbers.get(_ATTENTION)
    growth = kind.growth(numbers) if given is None else given
  if isinstance(frequencies, np.ndarray):
    return _tabulated(sequence.positions, frequencies, growth)
  return _rotations(sequence.positions, frequencies, growth)


def rotate(heads: jax.Array, rotation: Rotation) -> jax.Array:
  """Rotates feature i together with feature i + K/2, as one complex number.

  Args:
    heads: `[B, N, H, K]` floating.
    rotation: what `angles` returns.

  Returns:
    `[B, N, H, K]` float32.
  """
  cosine, sine = (part[:, :, None] for part in rotation)
  real, imaginary = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate(
      [real * cosine - imaginary * sine, real * sine + imaginary * cosine],
      axis=-1)


def check_scaling(scaling: Optional[Mapping[str, Any]], head_size: int) -> None:
  """Raises ConfigError unless a scaling is None or one of those of `angles`.

  Args:
    scaling: the option `rope_scaling`.
    head_size: K.
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
    _check_number(kind, name, scaling.get(name, default), head_size)
  if kind == 'llama3':
    _check_order(scaling, 'low_freq_factor', 'high_freq_factor')
  if kind == 'yarn':
    _check_order({**known, **scaling}, 'beta_slow', 'beta_fast')
  if kind == 'dynamic' and head_size < 4:
    raise checks.ConfigError('head_size must be at least 4 with rope_scaling '
                             f"of kind 'dynamic'; got {head_size}.")


def _check_number(kind: str, name: str, value: Any, head_size: int) -> None:
  """Raises ConfigError unless a number of a scaling is valid."""
  if name == _ATTENTION and value is None:
    return
  if name == 'truncate':
    is_valid, rule = isinstance(value, bool), 'a bool'
  elif name in ('short_factor', 'long_factor'):
    size = head_size // 2
    is_valid = (
        isinstance(value, (tuple, list)) and len(value) == size and
        all(checks.is_number(x) and x > 0 for x in value))
    rule = f'{size} numbers above 0, one for each pair of features of a head'
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


def _tabulated(positions: jax.Array, frequencies: np.ndarray,
               growth: float) -> Rotation:
  """Looks the rotations of positions up in a table.

  Were they computed, every block would compute them anew for every head, which
  takes a twentieth of a training step on CPU.
  """
  length = positions.shape[1]
  turns = np.arange(length)[:, None] * frequencies
  table = np.float32(growth * np.stack([np.cos(turns), np.sin(turns)]))
  return lax.cond(
      jnp.all((positions >= 0) & (positions < length)),
      lambda: tuple(jnp.asarray(table)[:, positions]),
      # Positions beyond the table, as in documents that continue in the next
      # row.
      lambda: _rotations(positions, jnp.float32(frequencies), growth))


def _rotations(positions: jax.Array, frequencies: jax.Array,
               growth: float) -> Rotation:
  turns = positions[..., None] * frequencies
  return jnp.cos(turns) * growth, jnp.sin(turns) * growth


def _lengths(sequence: sequences.Sequence) -> jax.Array:
  """Returns the length of each position's document, `[B, N or 1]`."""
  ends = jnp.where(sequence.mask, sequence.positions + 1, 0)
  if sequence.segments is None:
    return jnp.max(ends, axis=1, keepdims=True)
  same = sequence.segments[:, :, None] == sequence.segments[:, None]
  return jnp.max(jnp.where(same, ends[:, None], 0), axis=-1)


def _exponents(head_size: int) -> np.ndarray:
  return np.arange(0, head_size, 2) / head_size


def _unscaled(head_size: int, rope_base: float) -> np.ndarray:
  return rope_base**-_exponents(head_size)


def _linear(sequence, head_size, rope_base, numbers) -> Frequencies:
  return _unscaled(head_size, rope_base) / numbers['factor']


def _dynamic(sequence, head_size, rope_base, numbers) -> Frequencies:
  """Raises the base so that the slowest feature slows down by the factor."""
  longer = jnp.maximum(_lengths(sequence) / numbers['original_length'], 1)
  scaled = numbers['factor'] * longer - (numbers['factor'] - 1)
  logs = (
      math.log(rope_base) + head_size / (head_size - 2) * jnp.log(scaled))
  return jnp.exp(-logs[..., None] * jnp.float32(_exponents(head_size)))


def _yarn(sequence, head_size, rope_base, numbers) -> Frequencies:

  def feature(turns):
    """Returns the feature with so many turns in the original length."""
    wavelength = numbers['original_length'] / (2 * math.pi * turns)
    return head_size * math.log(wavelength) / (2 * math.log(rope_base))

  low, high = feature(numbers['beta_fast']), feature(numbers['beta_slow'])
  if numbers['truncate']:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, head_size - 1)
  width = high - low or 0.001  # A step, if both bounds are one feature.
  slow = np.clip((np.arange(head_size // 2) - low) / width, 0, 1)
  return _unscaled(head_size, rope_base) * (
      slow / numbers['factor'] + 1 - slow)


def _llama3(sequence, head_size, rope_base, numbers) -> Frequencies:
  frequencies = _unscaled(head_size, rope_base)
  turns = numbers['original_length'] / (2 * math.pi) * frequencies
  low, high = numbers['low_freq_factor'], numbers['high_freq_factor']
  fast = np.clip((turns - low) / (high - low), 0, 1)
  return frequencies * ((1 - fast) / numbers['factor'] + fast)


def _longrope(sequence, head_size, rope_base, numbers) -> Frequencies:
  frequencies = _unscaled(head_size, rope_base)
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
