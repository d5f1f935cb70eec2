"""A small convolutional network."""

from collections.abc import Sequence
import functools

import haiku as hk
import jax
import jax.numpy as jnp

from haikd.core import checks
from haikd.core import registry
from haikd.models import layers

NORMS = ('none', 'batch', 'group')
POOLS = dict(none=None, max=hk.max_pool, avg=hk.avg_pool)


class Stage(hk.Module):
  """A 3x3 convolution, a norm, an activation, and pooling by two if asked."""

  def __init__(self, channels: int, *, norm: str, groups: int, decay: float,
               activation: layers.Activation, pool: str, name: str):
    super().__init__(name=name)
    self.channels = channels
    self.norm = norm
    self.groups = groups
    self.decay = decay
    self.activation = activation
    self.pool = POOLS[pool]

  def __call__(self, inputs: jax.Array, is_training: bool) -> jax.Array:
    """Maps `[B, h, w, C]` to `[B, h', w', channels]`; pooling halves h, w."""
    conv = hk.Conv2D(
        self.channels, 3, with_bias=self.norm == 'none', name='conv')
    outputs = conv(inputs)
    if self.norm == 'batch':
      norm = hk.BatchNorm(create_scale=True, create_offset=True,
                          decay_rate=self.decay, name='norm')
      outputs = norm(outputs, is_training)
    elif self.norm == 'group':
      outputs = hk.GroupNorm(self.groups, name='norm')(outputs)
    outputs = self.activation(outputs)
    if self.pool is None:
      return outputs
    return self.pool(outputs, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')


@registry.register_model(
    taps=dict(features='stage_*'), task='classification')
def convnet(inputs: jax.Array,
            *,
            is_training: bool,
            num_classes: int,
            channels: Sequence[int] = (32, 64),
            norm: str = 'batch',
            groups: int = 8,
            decay: float = 0.9,
            activation: str = 'relu',
            pool: str = 'max',
            dropout: float = 0.0) -> jax.Array:
  """A stack of 3x3 convolutions, the mean over the image, and a linear layer.

  Each stage is a module `stage_i`. Its captured output is
  `[B, h_i, w_i, C_i]`; every stage that pools halves h and w.

  Args:
    inputs: images, `[B, h, w, C]` floating.
    is_training: whether dropout is active, which takes a random key, and
      whether BatchNorm uses the statistics of the batch and updates its running
      ones.
    num_classes: V.
    channels: C_i of each stage.
    norm: 'none', 'batch' (Ioffe and Szegedy) or 'group' (Wu and He).
    groups: the number of groups of norm 'group'; divides every C_i.
    decay: the share of BatchNorm's running statistics kept in a step.
    activation: a name from `layers.ACTIVATIONS`.
    pool: 'max' or 'avg' over 2x2 pixels at the end of each stage, or 'none'.
    dropout: rate, in training, at the input of the last linear layer.

  Returns:
    Logits, `[B, V]` in the dtype of `inputs`. Examples interact in training
    through BatchNorm only.

  Raises:
    ConfigError: an invalid option, or more pooling than the image has pixels
      for.
    TypeError: `inputs` is not floating point.
    ValueError: `inputs` does not have four axes.

  References:
    BatchNorm: Ioffe and Szegedy, arXiv:1502.03167.
    GroupNorm: Wu and He, arXiv:1803.08494.
  """
  layers.check_images(inputs)
  layers.check_positive(num_classes=num_classes, groups=groups)
  layers.check_sizes('channels', channels)
  layers.check_choice('norm', norm, NORMS)
  layers.check_choice('pool', pool, POOLS)
  layers.check_fraction(dropout=dropout, decay=decay)
  if norm == 'group' and any(size % groups for size in channels):
    raise checks.ConfigError(
        f'groups must divide each of channels; got groups={groups}, '
        f'channels={tuple(channels)}. Choose a common divisor.')
  if pool != 'none' and min(inputs.shape[1:3]) < 2**len(channels):
    raise checks.ConfigError(
        'channels must have few enough stages for each to halve the image; got '
        f'channels={tuple(channels)}, inputs.shape={inputs.shape}. Give fewer, '
        "or pool='none'.")
  stage = functools.partial(
      Stage,
      norm=norm,
      groups=groups,
      decay=decay,
      activation=layers.activation('activation', activation),
      pool=pool)
  outputs = inputs
  for i, size in enumerate(channels):
    outputs = stage(size, name=f'stage_{i}')(outputs, is_training)
  outputs = jnp.mean(outputs, axis=(1, 2))
  outputs = layers.dropout(outputs, dropout, is_training)
  return layers.Linear(num_classes, name='logits')(outputs)
