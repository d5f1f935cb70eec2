"""A vision transformer."""

from collections.abc import Callable
from typing import Optional

import haiku as hk
import jax
import jax.numpy as jnp

from haikd.core import checks
from haikd.core import registry
from haikd.models import layers
from haikd.models import transformer

POOLS = ('token', 'mean')


class Embed(hk.Module):
  """Cuts images into patches and makes positions of them."""

  def __init__(self, patch_size: int, width: int, tokens: tuple[str, ...]):
    super().__init__(name='embed')
    self.patch_size = patch_size
    self.width = width
    self.tokens = tokens

  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps `[B, h, w, C]` to `[B, N, D]`, the learned tokens, if any, first."""
    batch, height, width, channels = images.shape
    size = self.patch_size
    rows, columns = height // size, width // size
    patches = images.reshape(batch, rows, size, columns, size, channels)
    patches = patches.transpose(0, 1, 3, 2, 4, 5)
    patches = patches.reshape(batch, rows * columns, size * size * channels)
    outputs = layers.Linear(self.width, name='patches')(patches)
    init = hk.initializers.TruncatedNormal(0.02)
    dtype = outputs.dtype
    tokens = [
        jnp.broadcast_to(
            hk.get_parameter(name, (1, 1, self.width), dtype, init),
            (batch, 1, self.width)) for name in self.tokens
    ]
    outputs = jnp.concatenate([*tokens, outputs], axis=1)
    return outputs + hk.get_parameter('positions', outputs.shape[1:], dtype,
                                      init)


class Block(hk.Module):
  """Attention and MLP, each behind a norm and beside a shortcut."""

  def __init__(self, heads: int, qkv_bias: bool, hidden: int,
               activation: Callable, epsilon: float, dropout: float, name: str):
    super().__init__(name=name)
    self.heads = heads
    self.qkv_bias = qkv_bias
    self.hidden = hidden
    self.activation = activation
    self.epsilon = epsilon
    self.dropout = dropout

  def __call__(self, inputs: jax.Array, is_training: bool) -> jax.Array:
    """Maps `[B, N, D]` to `[B, N, D]`."""

    def branch(norm, module, positions):
      outputs = module(_norm(norm, self.epsilon)(positions))
      return layers.dropout(outputs, self.dropout, is_training)

    attention = transformer.Attention(self.heads, qkv_bias=self.qkv_bias)
    middle = inputs + branch('norm_attn', attention, inputs)
    mlp = transformer.Mlp(self.hidden, self.activation)
    return middle + branch('norm_mlp', mlp, middle)


@registry.register_model(
    taps=dict(features='block*', attention='attn/maps'),
    tensor={
        # Whole heads and hidden units lie together; what comes back from them
        # is summed over the axis, its bias added once.
        'attn/query/*': -1,
        'attn/key/*': -1,
        'attn/value/*': -1,
        'attn/output/w': -2,
        'mlp/up/*': -1,
        'mlp/down/w': -2,
    })
def vit(inputs: jax.Array,
        *,
        is_training: bool,
        num_classes: int,
        image_size: Optional[int] = None,
        channels: Optional[int] = None,
        patch_size: int = 16,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        activation: str = 'gelu',
        epsilon: float = 1e-6,
        qkv_bias: bool = True,
        pool: str = 'token',
        distilled: bool = False,
        distillation_head: bool = False,
        dropout: float = 0.0,
        scan: Optional[bool] = None) -> jax.Array:
  """A vision transformer with the norm before each branch.

  The defaults are DeiT-Ti. Each block is a module `block_i` with output
  `[B, N, D]`. Inside, `attn` offers its maps, `[B, H, N, N]`, as `maps`, and
  its linear maps `query`, `key`, `value` and `output` are modules too. N counts
  the patches, row by row, after the class token and the distillation token
  where there are such.

  Args:
    inputs: images, `[B, h, w, C]` floating.
    is_training: whether dropout is active, which takes a random key.
    num_classes: V.
    image_size: height and width that images must have; None for whatever comes
      first.
    channels: C that images must have; None for whatever comes first.
    patch_size: height and width of a patch in pixels; divides h and w.
    width: D.
    depth: the number of blocks.
    heads: H, which divides D.
    mlp_ratio: hidden units of a block's MLP per feature.
    activation: a name from `layers.ACTIVATIONS`, for the MLP.
    epsilon: added to the variance in a norm.
    qkv_bias: whether the linear maps to query, key and value have biases.
    pool: what the logits are read from: 'token', the class token, or 'mean',
      the mean over positions, where there is no class token.
    distilled: whether a distillation token stands after the class token.
    distillation_head: whether the distillation token has logits of its own, so
      that those returned are the mean of the two.
    dropout: rate, in training, on the embedding and at the end of each branch.
    scan: whether to compile one block and loop over it. The blocks' parameters
      are then stacked, `[depth, ...]`, under the one name `block`. None for so
      above 12 blocks.

  Returns:
    Logits, `[B, V]` in the dtype of `inputs`. Examples do not interact.

  Raises:
    ConfigError: an option that cannot be; the legal values are named.
    TypeError: `inputs` is not floating point.
    ValueError: `inputs` has not four axes.

  References:
    ViT: Dosovitskiy et al., arXiv:2010.11929, equations 1 to 4.
    DeiT: Touvron et al., arXiv:2012.12877, table 1; the distillation token,
    section 4.
  """
  where = 'models.vit'
  layers.check_images(where, inputs)
  # A quotient of integers, times one of them, may fall short of the other.
  hidden = int(round(mlp_ratio * width, 6))
  layers.check_positive(
      where,
      num_classes=num_classes,
      patch_size=patch_size,
      width=width,
      depth=depth,
      heads=heads)
  layers.check_choice(where, 'pool', pool, POOLS)
  layers.check_fraction(where, dropout=dropout)
  layers.check_above_zero(where, epsilon=epsilon)
  _check_divides(where, inputs.shape, patch_size, width, heads)
  _check_images(where, inputs.shape, image_size, channels)
  _check_tokens(where, pool, distilled, distillation_head)
  if hidden < 1:
    raise checks.ConfigError(
        f'{where}: mlp_ratio must give a hidden unit or more; got mlp_ratio='
        f'{mlp_ratio}, width={width}. Customary is 4.')
  function = layers.activation(where, activation)

  def block(positions, name):
    module = Block(heads, qkv_bias, hidden, function, epsilon, dropout, name)
    return module(positions, is_training)

  tokens = ('token', 'distillation_token')[:(pool == 'token') + distilled]
  positions = Embed(patch_size, width, tokens)(inputs)
  positions = layers.dropout(positions, dropout, is_training)
  positions = layers.run_blocks(block, depth, positions, scan)
  positions = _norm('norm', epsilon)(positions)
  if pool == 'mean':
    pooled = jnp.mean(positions, axis=1)
  else:
    pooled = positions[:, 0]
  logits = layers.Linear(num_classes, name='logits')(pooled)
  if distillation_head:
    second = layers.Linear(num_classes, name='distillation_logits')
    logits = (logits + second(positions[:, 1])) / 2
  return logits


def _norm(name: str, epsilon: float) -> hk.LayerNorm:
  return hk.LayerNorm(-1, True, True, eps=epsilon, name=name)


def _check_images(where: str, shape: tuple[int, ...], size: Optional[int],
                  channels: Optional[int]) -> None:
  wanted = (size or shape[1], size or shape[2], channels or shape[3])
  if shape[1:] != wanted:
    raise checks.ConfigError(
        f'{where}: images must be {wanted[0]} x {wanted[1]} x {wanted[2]}, as '
        f'image_size and channels say; got {shape[1]} x {shape[2]} x '
        f'{shape[3]}. Resize the images, or choose another network.')


def _check_tokens(where: str, pool: str, distilled: bool,
                  distillation_head: bool) -> None:
  if distilled and pool != 'token':
    raise checks.ConfigError(
        f"{where}: pool must be 'token' beside a distillation token; got "
        f'pool={pool!r}, distilled=True.')
  if distillation_head and not distilled:
    raise checks.ConfigError(
        f'{where}: distilled must be True for distillation_head; got '
        'distilled=False, distillation_head=True.')


def _check_divides(where: str, shape: tuple[int, ...], patch_size: int,
                   width: int, heads: int) -> None:
  if shape[1] % patch_size or shape[2] % patch_size:
    raise checks.ConfigError(
        f'{where}: patch_size must divide the height and width of images; got '
        f'patch_size={patch_size}, inputs.shape={shape}. Resize the images, or '
        'choose another size.')
  if width % heads:
    below = max(width // heads, 1) * heads
    raise checks.ConfigError(
        f'{where}: heads must divide width; got heads={heads}, width={width}. '
        f'{below} and {below + heads} are widths that it divides.')
