"""A vision transformer."""

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
  """Embeds the patches of images, with learned tokens and positions."""

  def __init__(self, patch_size: int, width: int, tokens: tuple[str, ...]):
    super().__init__(name='embed')
    self.patch_size = patch_size
    self.width = width
    self.tokens = tokens

  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps `[B, h, w, C]` to `[B, N, D]`, learned tokens first."""
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
  """Pre-norm transformer block."""

  def __init__(self, heads: int, qkv_bias: bool, hidden: int,
               activation: layers.Activation, epsilon: float, dropout: float,
               name: str):
    super().__init__(name=name)
    self.heads = heads
    self.qkv_bias = qkv_bias
    self.hidden = hidden
    self.activation = activation
    self.epsilon = epsilon
    self.dropout = dropout

  def __call__(self, inputs: jax.Array, is_training: bool) -> jax.Array:
    """Maps `[B, N, D]` to `[B, N, D]`."""

    def branch(norm, module, features):
      outputs = module(layers.LayerNorm(self.epsilon, norm)(features))
      return layers.dropout(outputs, self.dropout, is_training)

    attention = transformer.Attention(self.heads, qkv_bias=self.qkv_bias)
    attended = inputs + branch('norm_attn', attention, inputs)
    mlp = transformer.Mlp(self.hidden, self.activation)
    return attended + branch('norm_mlp', mlp, attended)


@registry.register_model(
    taps=dict(features='block*', attention='attn/maps'),
    task='classification',
    tensor=layers.TENSOR_AXES)
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
  """A pre-norm vision transformer.

  The defaults are DeiT-Ti. Each block is a module `block_i` with output
  `[B, N, D]`. Inside it, `attn` offers its maps, `[B, H, N, N]`, as `maps`; its
  linear maps `query`, `key`, `value` and `output` are modules too. The N
  positions are the class token and the distillation token, if any, and then the
  patches, row by row.

  Args:
    inputs: images, `[B, h, w, C]` floating.
    is_training: whether dropout is active, which takes a random key.
    num_classes: V.
    image_size: the height and width that images must have; None for those of
      the first images.
    channels: the C that images must have; None for that of the first images.
    patch_size: height and width of a patch in pixels; divides h and w.
    width: D.
    depth: the number of blocks.
    heads: H, which divides D.
    mlp_ratio: hidden units of a block's MLP per feature.
    activation: a name from `layers.ACTIVATIONS`, for the MLP.
    epsilon: added to the variance in a norm.
    qkv_bias: whether the linear maps to query, key and value have biases.
    pool: what the logits are computed from: 'token', the class token; or
      'mean', the mean over positions, without a class token.
    distilled: whether a distillation token follows the class token.
    distillation_head: whether the distillation token has a second linear map to
      logits; the mean of both logits is returned.
    dropout: rate, in training, on the embedding and at the end of each branch.
    scan: whether to compile one block and loop over it. The blocks' parameters
      are then stacked, `[depth, ...]`, under the one name `block`. None: only
      above 12 blocks.

  Returns:
    Logits, `[B, V]` in the dtype of `inputs`. Examples do not interact.

  Raises:
    ConfigError: an invalid option; the message gives the rule.
    TypeError: `inputs` is not floating point.
    ValueError: `inputs` does not have four axes.

  References:
    ViT: Dosovitskiy et al., arXiv:2010.11929, equations 1 to 4.
    DeiT: Touvron et al., arXiv:2012.12877, table 1; the distillation token,
    section 4.
  """
  layers.check_images(inputs)
  # Rounded: in floating point 15 / 22 x 22 is less than 15.
  hidden = int(round(mlp_ratio * width, 6))
  layers.check_positive(
      num_classes=num_classes,
      patch_size=patch_size,
      width=width,
      depth=depth,
      heads=heads)
  layers.check_choice('pool', pool, POOLS)
  layers.check_fraction(dropout=dropout)
  layers.check_above_zero(epsilon=epsilon)
  layers.check_divides(heads=heads, width=width)
  _check_images(inputs.shape, patch_size, image_size, channels)
  _check_tokens(pool, distilled, distillation_head)
  if hidden < 1:
    raise checks.ConfigError(
        'mlp_ratio must give at least one hidden unit; got mlp_ratio='
        f'{mlp_ratio}, width={width}. A customary value is 4.')
  function = layers.activation('activation', activation)

  def block(features, name):
    module = Block(heads, qkv_bias, hidden, function, epsilon, dropout, name)
    return module(features, is_training)

  tokens = ('token', 'distillation_token')[:(pool == 'token') + distilled]
  features = Embed(patch_size, width, tokens)(inputs)
  features = layers.dropout(features, dropout, is_training)
  features = layers.run_blocks(block, depth, features, scan)
  features = layers.LayerNorm(epsilon, 'norm')(features)
  if pool == 'mean':
    pooled = jnp.mean(features, axis=1)
  else:
    pooled = features[:, 0]
  logits = layers.Linear(num_classes, name='logits')(pooled)
  if distillation_head:
    second = layers.Linear(num_classes, name='distillation_logits')
    logits = (logits + second(features[:, 1])) / 2
  return logits


def _check_images(shape: tuple[int, ...], patch_size: int,
                  image_size: Optional[int], channels: Optional[int]) -> None:
  _, height, width, image_channels = shape
  if height % patch_size or width % patch_size:
    raise checks.ConfigError(
        'patch_size must divide the height and width of images; got '
        f'patch_size={patch_size}, inputs.shape={shape}. Resize the images, or '
        'choose another patch_size.')
  required = (image_size or height, image_size or width,
              channels or image_channels)
  if shape[1:] != required:
    raise checks.ConfigError(
        f'images must be {" x ".join(map(str, required))}, as image_size and '
        f'channels say; got {height} x {width} x {image_channels}. '
        'Resize the images, or choose another network.')


def _check_tokens(pool: str, distilled: bool, distillation_head: bool) -> None:
  if distilled and pool != 'token':
    raise checks.ConfigError("pool must be 'token' with a distillation token; "
                             f'got pool={pool!r}, distilled=True.')
  if distillation_head and not distilled:
    raise checks.ConfigError('distilled must be True for distillation_head; '
                             'got distilled=False, distillation_head=True.')
