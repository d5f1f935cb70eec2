"""What the models share: a linear layer, and checks of their options."""

from collections.abc import Callable, Iterable, Sequence
import functools
from typing import Any, Optional

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import checks
from haikd.core import globs

ACTIVATIONS = dict(
    elu=jax.nn.elu,
    gelu=functools.partial(jax.nn.gelu, approximate=False),
    gelu_tanh=functools.partial(jax.nn.gelu, approximate=True),
    leaky_relu=jax.nn.leaky_relu,
    relu=jax.nn.relu,
    silu=jax.nn.silu,
    tanh=jnp.tanh,
)

_SCAN_ABOVE = 12  # Blocks.
# Haiku's name for a stack whose layers take no inputs of their own.
_STACK = f'{globs.LAYER_STACK}_no_per_layer'


class Linear(hk.Module):
  """A linear map of the last axis; parameters as those of `hk.Linear`.

  The axes before the last are flattened for the matrix product, which is faster
  on CPU, and restored in the output.
  """

  def __init__(self, size: int, name: str, *, with_bias: bool = True):
    super().__init__(name=name)
    self.size = size
    self.with_bias = with_bias

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps `[..., D]` to `[..., size]`."""
    width = inputs.shape[-1]
    init = hk.initializers.TruncatedNormal(1 / np.sqrt(width))
    kernel = hk.get_parameter('w', (width, self.size), inputs.dtype, init)
    outputs = jnp.dot(inputs.reshape(-1, width), kernel)
    if self.with_bias:
      outputs += hk.get_parameter('b', (self.size,), inputs.dtype, jnp.zeros)
    return outputs.reshape(*inputs.shape[:-1], self.size)


def run_blocks(block: Callable[..., jax.Array], depth: int, inputs: jax.Array,
               scan: Optional[bool], *each: np.ndarray) -> jax.Array:
  """Runs blocks of one kind, one after the other.

  Args:
    block: of its inputs, its name and its part of each of `each`. The name is
      `block_0` and so on, or where it is looped over, `block` for all of them.
    depth: how many there are.
    inputs: of the first.
    scan: whether to compile one and loop over it; None for so above 12.
    *each: arrays, `[depth, ...]`, of what differs from block to block.

  Returns:
    What the last one returns.
  """
  if depth > _SCAN_ABOVE if scan is None else scan:
    # Of the same name whether or not blocks differ, so that weights fit both.
    stack = hk.layer_stack(depth, with_per_layer_inputs=True, name=_STACK)
    loop = stack(lambda x, *parts: (block(x, 'block', *parts), None))
    return loop(inputs, *map(jnp.asarray, each))[0]
  outputs = inputs
  for i in range(depth):
    outputs = block(outputs, f'block_{i}', *(values[i] for values in each))
  return outputs


def dropout(inputs: jax.Array, rate: float, is_training: bool) -> jax.Array:
  """Returns the inputs, with dropout in training."""
  if not is_training or rate == 0:
    return inputs
  return hk.dropout(hk.next_rng_key(), rate, inputs)


def activation(where: str, name: str) -> Callable[[jax.Array], jax.Array]:
  """Returns the activation of that name, or raises ConfigError."""
  check_choice(where, 'activation', name, ACTIVATIONS)
  return ACTIVATIONS[name]


def check_choice(where: str, name: str, value: Any,
                 known: Iterable[str]) -> None:
  """Raises ConfigError unless an option is one of the known names."""
  if value not in tuple(known):
    raise checks.ConfigError(
        f'{where}: {name} must be a known name; got {name}={value!r}. '
        f'{checks.suggest(str(value), known)}')


def check_positive(where: str, **sizes: Any) -> None:
  """Raises ConfigError unless every option is a positive integer."""
  for name, value in sizes.items():
    if not _is_size(value):
      raise checks.ConfigError(f'{where}: {name} must be a positive integer; '
                               f'got {name}={value!r}.')


def check_at_least_zero(where: str, **sizes: Any) -> None:
  """Raises ConfigError unless every option is an integer that is at least 0."""
  for name, value in sizes.items():
    if not _is_size(value) and (value != 0 or isinstance(value, bool)):
      raise checks.ConfigError(f'{where}: {name} must be an integer that is at '
                               f'least 0; got {name}={value!r}.')


def check_sizes(where: str, name: str, sizes: Sequence[int]) -> None:
  """Raises ConfigError unless an option holds one positive integer or more."""
  is_sequence = isinstance(sizes, (tuple, list))
  if not is_sequence or not sizes or not all(map(_is_size, sizes)):
    raise checks.ConfigError(
        f'{where}: {name} must hold one positive integer or more; got '
        f'{name}={sizes!r}. Write a tuple, such as (64, 64).')


def check_fraction(where: str, **fractions: float) -> None:
  """Raises ConfigError unless every option is at least 0 and below 1."""
  for name, value in fractions.items():
    if not 0 <= value < 1:
      raise checks.ConfigError(f'{where}: {name} must be at least 0 and below '
                               f'1; got {name}={value!r}.')


def check_above_zero(where: str, **numbers: float) -> None:
  """Raises ConfigError unless every option is a number above 0."""
  for name, value in numbers.items():
    if not checks.is_number(value) or value <= 0:
      raise checks.ConfigError(f'{where}: {name} must be a number above 0; got '
                               f'{name}={value!r}.')


def check_divides(where: str, **sizes: int) -> None:
  """Raises ConfigError unless the first of two sizes divides the second."""
  (name, divisor), (whole, size) = sizes.items()
  if size % divisor:
    below = max(size // divisor, 1) * divisor
    raise checks.ConfigError(
        f'{where}: {name} must divide {whole}; got {name}={divisor}, '
        f'{whole}={size}. It divides {below} and {below + divisor}.')


def check_real(where: str, inputs: jax.Array) -> None:
  """Raises TypeError unless the inputs are floating point."""
  if not checks.is_real(inputs):
    raise TypeError(f'{where}: inputs must be floating point; got inputs.dtype='
                    f'{jnp.result_type(inputs)}. Scale images to [0, 1].')


def check_images(where: str, inputs: jax.Array) -> None:
  """Raises unless the inputs are floating-point images `[B, h, w, C]`."""
  check_real(where, inputs)
  if inputs.ndim != 4:
    raise ValueError(f'{where}: inputs must be images [B, h, w, C]; got '
                     f'inputs.shape={inputs.shape}. Add the axis of channels '
                     'to grey images, as in `images[..., None]`.')


def check_tokens(where: str, tokens: jax.Array) -> None:
  """Raises unless the inputs are integer tokens `[B, N]`."""
  if not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise TypeError(f'{where}: tokens must be integers; got tokens.dtype='
                    f'{tokens.dtype}. Choose a data set of tokens.')
  if tokens.ndim != 2:
    raise ValueError(f'{where}: tokens must be of shape [B, N]; got '
                     f'tokens.shape={tokens.shape}. Choose a data set of '
                     'tokens.')


def position_mask(where: str, mask: Optional[jax.Array],
                  tokens: jax.Array) -> jax.Array:
  """Returns the mask of positions, `[B, N]`, of one for positions or rows.

  Args:
    where: the model, for messages.
    mask: bool, `[B, N]` or `[B]`, or None where every position is real.
    tokens: `[B, N]`, or with more axes before the last.

  Returns:
    bool, shaped as tokens.

  Raises:
    TypeError: the mask is not boolean.
    ValueError: its shape does not begin that of `tokens`.
  """
  if mask is None:
    return jnp.ones(tokens.shape, bool)
  checks.check_mask(mask)
  checks.check_leading('tokens', tokens, mask)
  missing = tuple(range(mask.ndim, tokens.ndim))
  return jnp.broadcast_to(jnp.expand_dims(mask, missing), tokens.shape)


def _is_size(value: Any) -> bool:
  is_integer = isinstance(value, (int, np.integer))
  return is_integer and not isinstance(value, bool) and value > 0
