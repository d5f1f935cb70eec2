"""Checks of the options of a decoder, and what follows from them."""

from collections.abc import Iterable
from typing import Any, Optional

import numpy as np

from haikd.core import checks
from haikd.models import layers


def windowed(window: Optional[int], window_layers: Optional[Iterable[int]],
             window_rope_base: Optional[float], depth: int) -> np.ndarray:
  """Returns whether each block has a window."""
  if window is not None:
    layers.check_positive(window=window)
    if window_layers is None:
      return np.ones(depth, bool)
    return has_each('window_layers', window_layers, depth)
  for option, value in given(window_layers=window_layers,
                             window_rope_base=window_rope_base).items():
    raise checks.ConfigError(
        f'window must be given with {option}; got window=None, '
        f'{option}={value}.')
  return np.zeros(depth, bool)


def has_each(option: str, blocks: Iterable[int], depth: int) -> np.ndarray:
  """Returns whether an option names each block."""
  chosen = tuple(blocks)
  if not set(chosen) <= set(range(depth)):
    raise checks.ConfigError(
        f'{option} must be blocks, from 0 to {depth - 1}; got {chosen}, '
        f'depth={depth}.')
  return np.isin(np.arange(depth), chosen)


def rotary_size(head_size: int, rope_fraction: float) -> int:
  """Returns how many features of a head are rotated."""
  layers.check_above_zero(rope_fraction=rope_fraction)
  if rope_fraction > 1:
    raise checks.ConfigError(
        f'rope_fraction must be at most 1; got {rope_fraction!r}.')
  size = int(head_size * rope_fraction)
  if size % 2 or not size:
    raise checks.ConfigError(
        'head_size must be even, and so must its part that is rotated, since '
        f'features are rotated in pairs; got head_size={head_size}, of which '
        f'{size} are rotated. Choose another head_size, or other heads.')
  return size


def given(**options: Any) -> dict[str, Any]:
  """Returns the options that are not None."""
  return {name: value for name, value in options.items() if value is not None}


def check_experts(experts: int, experts_per_token: int) -> None:
  """Raises ConfigError unless so many experts can be chosen."""
  layers.check_positive(experts=experts, experts_per_token=experts_per_token)
  if experts_per_token > experts:
    raise checks.ConfigError(
        f'experts_per_token must be at most {experts}, the number of experts; '
        f'got {experts_per_token}.')
