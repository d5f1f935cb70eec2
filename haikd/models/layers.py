"""What the models share: layers, and checks of options and inputs."""

from collections.abc import Callable, Iterable, Sequence
import functools
from typing import Any, Optional

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from haikd.core import checks
from haikd.core import globs

Activation = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Activation] = dict(
    elu=jax.nn.elu,
    gelu=functools.partial(jax.nn.gelu, approximate=False),
    gelu_tanh=functools.partial(jax.nn.gelu, approximate=True),
    leaky_relu=jax.nn.leaky_relu,
    relu=jax.nn.relu,
    silu=jax.nn.silu,
    tanh=jnp.tanh,
)

# How a transformer's parameters are split over the mesh axis `tensor`. A device
# holds entire heads and hidden units; the products of `output` and `down` are
# summed over the axis, and their bias is added once. A device looks up its
# share of the embedding features and computes the logits of its share of the
# vocabulary.
TENSOR_AXES = {
    'attn/query/*': -1,
    'attn/key/*': -1,
    'attn/value/*': -1,
    'attn/output/w': -2,
    'mlp/up/*': -1,
    'mlp/down/w': -2,
}
TEXT_TENSOR_AXES = {'embed/embeddings': -1, **TENSOR_AXES}
DECODER_TENSOR_AXES = {**TEXT_TENSOR_AXES, 'logits/w': -1}

_SCAN_ABOVE = 12  # Blocks.
# Haiku's default name for a stack without per-layer inputs.
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


class LayerNorm(hk.LayerNorm):
  """Normalises the last axis; parameters as those of `hk.LayerNorm`.

  It flattens the axes before the last as `Linear` does. What is left after the
  mean is subtracted serves the variance as well, so the gradient takes fewer
  passes.
  """

  def __init__(self, epsilon: float, name: str, *, offset: bool = True):
    super().__init__(-1, True, offset, eps=epsilon, name=name)

  def __call__(  # type: ignore[override]  # It makes its scale and offset.
      self, inputs: jax.Array) -> jax.Array:
    """Maps `[..., D]` to `[..., D]`."""
    width = inputs.shape[-1]
    rows = inputs.reshape(-1, width)
    rows -= jnp.mean(rows, axis=-1, keepdims=True)
    variance = jnp.mean(rows**2, axis=-1, keepdims=True)
    scale = hk.get_parameter('scale', (width,), inputs.dtype, jnp.ones)
    outputs = rows * jax.lax.rsqrt(variance + self.eps) * scale
    if self.create_offset:
      outputs += hk.get_parameter('offset', (width,), inputs.dtype, jnp.zeros)
    return outputs.reshape(inputs.shape)


def run_blocks(block: Callable[..., jax.Array], depth: int, inputs: jax.Array,
               scan: Optional[bool], *per_block: np.ndarray,
               first: int = 0) -> jax.Array:
  """Runs blocks of one kind, one after another.

  Args:
    block: takes its inputs, its name and its entry of each of `per_block`. The
      names are `block_0`, `block_1` and so on; with `scan` all are `block`.
    depth: the number of blocks.
    inputs: the inputs of the first block.
    scan: whether to compile one block and loop over it; None: only above 12
      blocks.
    *per_block: arrays, `[depth, ...]`, of what differs between blocks.
    first: the number in the name of the first block.

  Returns:
    The outputs of the last block.
  """
  if depth > _SCAN_ABOVE if scan is None else scan:
    # The name is the same whether or not blocks differ, so that weights fit
    # both.
    stack = hk.layer_stack(depth, with_per_layer_inputs=True, name=_STACK)
    loop = stack(lambda x, *entries: (block(x, 'block', *entries), None))
    return loop(inputs, *map(jnp.asarray, per_block))[0]
  outputs = inputs
  for i in range(depth):
    entries = (values[i] for values in per_block)
    outputs = block(outputs, f'block_{first + i}', *entries)
  return outputs


def dropout(inputs: jax.Array, rate: float, is_training: bool) -> jax.Array:
  """Returns the inputs, with dropout in training."""
  if not is_training or rate == 0:
    return inputs
  return hk.dropout(hk.next_rng_key(), rate, inputs)


def activation(option: str, name: str) -> Activation:
  """Returns the activation that an option names, or raises ConfigError."""
  check_choice(option, name, ACTIVATIONS)
  return ACTIVATIONS[name]


def check_choice(option: str, value: Any, known: Iterable[str]) -> None:
  """Raises ConfigError unless an option is one of the known names."""
  if value not in tuple(known):
    raise checks.ConfigError(f'{option} must be a known name; got {value!r}. '
                             f'{checks.suggest(str(value), known)}')


def check_positive(**sizes: Any) -> None:
  """Raises ConfigError unless every option is a positive integer."""
  for option, value in sizes.items():
    if not _is_size(value):
      raise checks.ConfigError(
          f'{option} must be a positive integer; got {value!r}.')


def check_at_least_zero(**sizes: Any) -> None:
  """Raises ConfigError unless every option is an integer of at least 0."""
  for option, value in sizes.items():
    if not _is_size(value) and (value != 0 or isinstance(value, bool)):
      raise checks.ConfigError(
          f'{option} must be an integer of at least 0; got {value!r}.')


def check_sizes(option: str, sizes: Sequence[int]) -> None:
  """Raises ConfigError unless an option holds one or more positive integers."""
  is_sequence = isinstance(sizes, (tuple, list))
  if not is_sequence or not sizes or not all(map(_is_size, sizes)):
    raise checks.ConfigError(
        f'{option} must hold one or more positive integers; got {sizes!r}. '
        'Write a tuple, such as (64, 64).')


def check_fraction(**fractions: float) -> None:
  """Raises ConfigError unless every option is at least 0 and below 1."""
  for option, value in fractions.items():
    if not 0 <= value < 1:
      raise checks.ConfigError(
          f'{option} must be at least 0 and below 1; got {value!r}.')


def check_above_zero(**numbers: float) -> None:
  """Raises ConfigError unless every option is a number above 0."""
  for option, value in numbers.items():
    if not checks.is_number(value) or value <= 0:
      raise checks.ConfigError(
          f'{option} must be a number above 0; got {value!r}.')


def check_divides(**sizes: int) -> None:
  """Raises ConfigError unless the first of two options divides the second."""
  (divisor_option, divisor), (option, size) = sizes.items()
  if size % divisor:
    below = max(size // divisor, 1) * divisor
    raise checks.ConfigError(
        f'{divisor_option} must divide {option}; got {divisor_option}='
        f'{divisor}, {option}={size}. It divides {below} and '
        f'{below + divisor}.')


def check_real(inputs: jax.Array) -> None:
  """Raises TypeError unless the inputs are floating point."""
  if not checks.is_real(inputs):
    raise TypeError('inputs must be floating point; got inputs.dtype='
                    f'{jnp.result_type(inputs)}. Scale images to [0, 1].')


def check_images(inputs: jax.Array) -> None:
  """Raises unless the inputs are floating-point images `[B, h, w, C]`."""
  check_real(inputs)
  if inputs.ndim != 4:
    raise ValueError('inputs must be images [B, h, w, C]; got inputs.shape='
                     f'{inputs.shape}. Add a channel axis to grey images, as '
                     'in `images[..., None]`.')


def check_tokens(name: str, tokens: jax.Array) -> None:
  """Raises unless a column of the inputs is integer, `[B, N]`."""
  if not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise TypeError(f'{name} must be integers; got {name}.dtype='
                    f'{tokens.dtype}. Choose a data set of tokens.')
  if tokens.ndim != 2:
    raise ValueError(f'{name} must be of shape [B, N]; got {name}.shape='
                     f'{tokens.shape}. Choose a data set of tokens.')


def position_mask(mask: Optional[jax.Array], tokens: jax.Array) -> jax.Array:
  """Expands a mask of positions or of rows to a mask of positions.

  Args:
    mask: bool, `[B, N]` or `[B]`, or None where every position is real.
    tokens: `[B, N]`, or with more axes before the last.

  Returns:
    bool, of the shape of `tokens`.

  Raises:
    TypeError: the mask is not boolean.
    ValueError: the shape of the mask does not begin that of `tokens`.
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
