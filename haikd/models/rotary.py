"""Rotary position embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import jax
from jax import export
from jax import lax
import jax.numpy as jnp
import numpy as np

from haikd.models import rope_scaling
from haikd.models import sequences

Rotation = tuple[jax.Array, jax.Array]  # Cosine and sine, `[B, N, R/2]`.


def angles(sequence: sequences.Sequence,
           size: int,
           rope_base: float,
           scaling: Optional[Mapping[str, Any]] = None) -> Rotation:
  """Returns the rotation of the features of each position.

  Without scaling, feature i of position p turns by p x base^(-2i/R). Networks
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
    size: R, how many features of a head are rotated.
    rope_base: the base.
    scaling: None, or a dict of `kind` and the numbers of that kind.

  Returns:
    Cosine and sine, `[B, N, R/2]` float32.

  References:
    Su et al., arXiv:2104.09864, equation 34. Linear: Chen et al.,
    arXiv:2306.15595. Yarn: Peng et al., arXiv:2309.00071, section 3. Llama 3:
    arXiv:2407.21783, section 3.4.2. LongRoPE: Ding et al., arXiv:2402.13753.
  """
  frequencies, growth = rope_scaling.frequencies(
      sequence, size, rope_base, scaling)
  is_known = not export.is_symbolic_dim(sequence.positions.shape[1])
  if isinstance(frequencies, np.ndarray) and is_known:
    return _tabulated(sequence, frequencies, growth)
  return _rotations(sequence.positions, jnp.asarray(frequencies, jnp.float32),
                    growth)


def nothing(rotation: Rotation) -> Rotation:
  """Returns a rotation of the same shape that turns no feature."""
  cosine, sine = rotation
  return jnp.ones_like(cosine), jnp.zeros_like(sine)


def choose(rotations: Sequence[Rotation],
           number: Union[int, jax.Array]) -> Rotation:
  """Returns the rotation of a number, which in a loop over blocks is traced."""
  if isinstance(number, jax.Array):
    return jax.tree.map(lambda *x: lax.select_n(number, *x), *rotations)
  return rotations[number]


def rotate(heads: jax.Array, rotation: Rotation) -> jax.Array:
  """Rotates feature i together with feature i + R/2, as one complex number.

  Args:
    heads: `[B, N, H, K]` floating. The features after the first R stay as they
      are.
    rotation: what `angles` returns.

  Returns:
    `[B, N, H, K]` float32.
  """
  cosine, sine = (part[:, :, None] for part in rotation)
  half = cosine.shape[-1]
  real, imaginary, rest = jnp.split(
      heads.astype(jnp.float32), (half, 2 * half), axis=-1)
  turned = real * cosine - imaginary * sine, real * sine + imaginary * cosine
  return jnp.concatenate([*turned, rest], axis=-1)


def _tabulated(sequence: sequences.Sequence, frequencies: np.ndarray,
               growth: float) -> Rotation:
  """Looks the rotations of positions up in a table.

  Were they computed, every block would compute them anew for every head, which
  takes a twentieth of a training step on CPU.
  """
  positions = sequence.positions
  length = positions.shape[1]
  turns = np.arange(length)[:, None] * frequencies
  table = np.float32(growth * np.stack([np.cos(turns), np.sin(turns)]))
  look_up = lambda: tuple(jnp.asarray(table)[:, positions])
  if sequence.counted:
    return look_up()
  return lax.cond(
      jnp.all((positions >= 0) & (positions < length)),
      look_up,
      # Positions beyond the table, as in documents that continue in the next
      # row.
      lambda: _rotations(positions, jnp.float32(frequencies), growth))


def _rotations(positions: jax.Array, frequencies: jax.Array,
               growth: float) -> Rotation:
  turns = positions[..., None] * frequencies
  return jnp.cos(turns) * growth, jnp.sin(turns) * growth
