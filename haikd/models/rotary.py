"""Rotations that tell attention how far apart two positions are."""

from collections.abc import Mapping
import math
from typing import Any, Optional

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from haikd.core import checks
from haikd.models import sequences

Rotation = tuple[jax.Array, jax.Array]  # Cosine and sine, `[B, N, K/2]`.

# The numbers of each kind of scaling. Those that are None have to be given,
# save for the last, which follows from the others.
_ATTENTION = 'attention_factor'
KINDS = dict(
    linear=dict(factor=None),
    dynamic=dict(factor=None, original_length=None),
    yarn=dict(
        factor=None,
        original_length=None,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=True,
        attention_factor=None),
    llama3=dict(
        factor=None,
        original_length=None,
        low_freq_factor=None,
        high_freq_factor=None),
    longrope=dict(
        factor=None,
        original_length=None,
        short_factor=None,
        long_factor=None,
        attention_factor=None),
)


def angles(sequence: sequences.Sequence,
           head_size: int,
           rope_base: float,
           scaling: Optional[Mapping[str, Any]] = None) -> Rotation:
  """Returns by how much the features of each position are rotated.

  Without scaling, feature i of position p turns by p x base^(-2i/K). Networks
  that went on to longer texts than they were first trained on turn slower:

    linear    all by the factor.
    dynamic   in documents longer than `original_length` the base grows with
              the length, so that slow features turn slower.
    yarn      those that turn fewer than `beta_slow` times in `original_length`
              by the factor, those with more than `beta_fast` turns not at all,
              those between by a mean; rounded to whole features if `truncate`.
    llama3    likewise, with `low_freq_factor` and `high_freq_factor` turns, the
              mean linear in turns.
    longrope  each by a factor of its own, of `long_factor` in documents longer
              than `original_length`, else of `short_factor`.

  With yarn and longrope the rotated features grow by `attention_factor`; if
  that is None, by 1 + ln(factor) / 10 and by
  sqrt(1 + ln(factor) / ln(original_length)).

  Args:
    sequence: rows. What depends on a length goes by that of each document, so
      that it does not change with what else is in a row or batch.
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
  exponents = np.arange(0, head_size, 2) / head_size
  frequencies, growth = rope_base**-exponents, 1.0
  if scaling is not None:
    kind, numbers = scaling['kind'], {**KINDS[scaling['kind']], **scaling}
    if kind == 'dynamic':
      frequencies = _dynamic(_lengths(sequence), exponents, rope_base, numbers)
    elif kind == 'longrope':
      is_long = _lengths(sequence) > numbers['original_length']
      frequencies = jnp.where(
          is_long[..., None],
          jnp.float32(frequencies / np.asarray(numbers['long_factor'])),
          jnp.float32(frequencies / np.asarray(numbers['short_factor'])))
      growth = _growth(numbers, math.sqrt(
          1 + math.log(numbers['factor']) / math.log(
              numbers['original_length'])))
    elif kind == 'yarn':
      frequencies = frequencies * _yarn_shares(head_size, rope_base, numbers)
      growth = _growth(numbers, 1 + 0.1 * math.log(numbers['factor']))
    elif kind == 'llama3':
      frequencies = frequencies * _llama3_shares(frequencies, numbers)
    else:
      frequencies = frequencies / numbers['factor']
  positions = sequence.positions
  if isinstance(frequencies, np.ndarray):
    # Looked up, since computed rotations would be computed anew by every block,
    # for every head: a twentieth of a training step on CPU.
    length = positions.shape[1]
    turns = np.arange(length)[:, None] * frequencies
    table = np.float32(growth * np.stack([np.cos(turns), np.sin(turns)]))
    return lax.cond(
        jnp.all((positions >= 0) & (positions < length)),
        lambda: tuple(jnp.asarray(table)[:, positions]),
        # As where documents go on from row to row, with positions of their own.
        lambda: _rotations(positions, jnp.float32(frequencies), growth))
  return _rotations(positions, frequencies, growth)


def _rotations(positions, frequencies, growth):
  turns = positions[..., None] * frequencies
  return jnp.cos(turns) * growth, jnp.sin(turns) * growth


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


def check_scaling(where: str, scaling: Optional[Mapping[str, Any]],
                  head_size: int) -> None:
  """Raises ConfigError unless a scaling is None or one of those of `angles`.

  Args:
    where: the model, for messages.
    scaling: the option `rope_scaling`.
    head_size: K.
  """
  if scaling is None:
    return
  kind = scaling.get('kind') if isinstance(scaling, Mapping) else None
  if kind not in KINDS:
    raise checks.ConfigError(
        f'{where}: rope_scaling must be None or a dict whose kind is one of '
        f'{", ".join(KINDS)}; got rope_scaling={scaling!r}.')
  known = KINDS[kind]
  for name in sorted(set(scaling) - {'kind'} - set(known)):
    raise checks.ConfigError(
        f'{where}: rope_scaling of kind {kind!r} must have known numbers; got '
        f'{name}={scaling[name]!r}. {checks.suggest(name, known)}')
  for name, default in known.items():
    _check_number(where, kind, name, scaling.get(name, default), head_size)
  if kind == 'llama3':
    _check_order(where, scaling, 'low_freq_factor', 'high_freq_factor')
  if kind == 'yarn':
    _check_order(where, {**known, **scaling}, 'beta_slow', 'beta_fast')
  if kind == 'dynamic' and head_size < 4:
    raise checks.ConfigError(
        f"{where}: head_size must be 4 or more with rope_scaling of kind "
        f"'dynamic'; got head_size={head_size}.")


def _check_number(where, kind, name, value, head_size):
  """Raises ConfigError unless a number of a scaling is what it must be."""
  if name == _ATTENTION and value is None:
    return
  if name == 'truncate':
    is_right, rule = isinstance(value, bool), 'a bool'
  elif name in ('short_factor', 'long_factor'):
    size = head_size // 2
    is_right = (
        isinstance(value, (tuple, list)) and len(value) == size and
        all(checks.is_number(x) and x > 0 for x in value))
    rule = f'{size} numbers above 0, one for each pair of features of a head'
  elif name in ('factor', 'original_length'):
    # Of 1 the logarithm is 0, by which longrope divides.
    least = 1 if name == 'factor' else 2
    is_right = checks.is_number(value) and value >= least
    rule = f'a number of at least {least}'
  else:
    is_right = checks.is_number(value) and value > 0
    rule = 'a number above 0'
  if not is_right:
    raise checks.ConfigError(
        f'{where}: {name} of rope_scaling must be {rule}; got {name}={value!r},'
        f' kind={kind!r}.')


def _check_order(where, numbers, small, large):
  if numbers[small] >= numbers[large]:
    raise checks.ConfigError(
        f'{where}: {small} of rope_scaling must be less than {large}; got '
        f'{small}={numbers[small]}, {large}={numbers[large]}.')


def _lengths(sequence):
  """Returns of how many positions the document of each is, `[B, N or 1]`."""
  ends = jnp.where(sequence.mask, sequence.positions + 1, 0)
  if sequence.segments is None:
    return jnp.max(ends, axis=1, keepdims=True)
  same = sequence.segments[:, :, None] == sequence.segments[:, None]
  return jnp.max(jnp.where(same, ends[:, None], 0), axis=-1)


def _dynamic(lengths, exponents, rope_base, numbers):
  """Returns frequencies of which the slowest turns slower by the factor."""
  size = 2 * len(exponents)
  longer = jnp.maximum(lengths / numbers['original_length'], 1)
  scaled = numbers['factor'] * longer - (numbers['factor'] - 1)
  logs = math.log(rope_base) + size / (size - 2) * jnp.log(scaled)
  return jnp.exp(-logs[..., None] * jnp.float32(exponents))


def _yarn_shares(head_size, rope_base, numbers):
  """Returns what frequencies are multiplied by."""

  def feature(turns):
    """Returns which feature turns as often in the original length."""
    wave_length = numbers['original_length'] / (2 * math.pi * turns)
    return head_size * math.log(wave_length) / (2 * math.log(rope_base))

  low, high = feature(numbers['beta_fast']), feature(numbers['beta_slow'])
  if numbers['truncate']:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, head_size - 1)
  width = high - low or 0.001  # A step, where both are one feature.
  slow = np.clip((np.arange(head_size // 2) - low) / width, 0, 1)
  return slow / numbers['factor'] + 1 - slow


def _llama3_shares(frequencies, numbers):
  """Returns what frequencies are multiplied by."""
  turns = numbers['original_length'] / (2 * math.pi) * frequencies
  low, high = numbers['low_freq_factor'], numbers['high_freq_factor']
  fast = np.clip((turns - low) / (high - low), 0, 1)
  return (1 - fast) / numbers['factor'] + fast


def _growth(numbers, default):
  given = numbers[_ATTENTION]
  return default if given is None else given
