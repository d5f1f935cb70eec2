"""Residual networks, built from Haiku's block groups."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import haiku as hk
import jax
import jax.numpy as jnp

from haikd.core import checks
from haikd.core import registry
from haikd.models import layers

_LAYOUT_OPTIONS = ('blocks', 'channels', 'bottleneck')


class ResNet(hk.Module):
  """`hk.nets.ResNet` for any number of groups, and a stem for small images.

  For a network that `hk.nets.ResNet` can express, this one has parameters of
  the same names and computes the same. Only the logits are initialised
  differently.
  """

  def __init__(self, *, num_classes: int, blocks: Sequence[int],
               channels: Sequence[int], bottleneck: bool,
               stem_channels: int, small_images: bool, preactivation: bool,
               decay: float, name: str):
    super().__init__(name=name)
    norm: dict[str, Any] = dict(
        create_scale=True, create_offset=True, decay_rate=decay, eps=1e-5)
    self.pools = not small_images
    self.preactivation = preactivation
    self.initial_conv = hk.Conv2D(
        stem_channels,
        kernel_shape=3 if small_images else 7,
        stride=1 if small_images else 2,
        with_bias=False,
        name='initial_conv')
    position = 'final' if preactivation else 'initial'
    self.batchnorm = hk.BatchNorm(name=f'{position}_batchnorm', **norm)
    self.groups = []
    for i, (count, size) in enumerate(zip(blocks, channels)):
      self.groups.append(
          hk.nets.ResNet.BlockGroup(
              channels=size,
              num_blocks=count,
              stride=1 if i == 0 else 2,
              bn_config=norm,
              resnet_v2=preactivation,
              bottleneck=bottleneck,
              use_projection=i > 0 or size != stem_channels,
              name=f'block_group_{i}'))
    self.logits = layers.Linear(num_classes, name='logits')

  def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
    """Maps `[B, h, w, C]` to logits `[B, V]`."""
    outputs = self.initial_conv(images)
    if not self.preactivation:
      outputs = jax.nn.relu(self.batchnorm(outputs, is_training))
    if self.pools:
      outputs = hk.max_pool(outputs, (1, 3, 3, 1), (1, 2, 2, 1), 'SAME')
    for group in self.groups:
      outputs = group(outputs, is_training, False)
    if self.preactivation:
      outputs = jax.nn.relu(self.batchnorm(outputs, is_training))
    return self.logits(jnp.mean(outputs, axis=(1, 2)))


@registry.register_model(
    taps=dict(features='block_group_*'), task='classification')
def resnet(inputs: jax.Array,
           *,
           is_training: bool,
           num_classes: int,
           depth: Optional[int] = None,
           blocks: Optional[Sequence[int]] = None,
           channels: Optional[Sequence[int]] = None,
           bottleneck: Optional[bool] = None,
           stem: Optional[int] = None,
           width: float = 1.0,
           small_images: bool = False,
           preactivation: bool = False,
           decay: float = 0.9) -> jax.Array:
  """A residual network: one of the published depths, or another layout.

  Each group of blocks is a module `block_group_i`. Its captured output is
  `[B, h_i, w_i, C_i]`; every group after the first halves h and w.

  The customary networks for 32x32 images are `small_images=True` with
  `blocks=(n, n, n), channels=(16, 32, 64)` for ResNet-(6n + 2), and with
  `blocks=(n, n, n), channels=(16 k, 32 k, 64 k), stem=16, preactivation=True`
  for the wide WRN-(6n + 4)-k. Shortcuts that change shape are 1x1
  convolutions.

  Args:
    inputs: images, `[B, h, w, C]` floating.
    is_training: whether BatchNorm uses the statistics of the batch and updates
      its running ones.
    num_classes: V.
    depth: 18, 34, 50, 101, 152 or 200, for the published layout; give either
      this or `blocks` and `channels`.
    blocks: the number of blocks in each group.
    channels: C_i, the channels that each group returns.
    bottleneck: with `blocks`: whether a block is 1x1, 3x3 and 1x1, the first
      two with a quarter of the channels, in place of 3x3 and 3x3; None for
      False.
    stem: channels of the first convolution; None for the first of `channels`,
      or a quarter of it with bottlenecks. `width` applies to it too.
    width: factor on all channels, such as 0.5 for half as many.
    small_images: whether the stem is a 3x3 convolution that keeps the size of
      the image, in place of 7x7 with stride 2 and a max-pool of stride 2.
    preactivation: whether norm and activation come before each convolution
      (the second version), in place of after it.
    decay: the share of BatchNorm's running statistics kept in a step.

  Returns:
    Logits, `[B, V]` in the dtype of `inputs`. Examples interact in training
    through BatchNorm only.

  Raises:
    ConfigError: an invalid option, or options that contradict each other.
    TypeError: `inputs` is not floating point.
    ValueError: `inputs` does not have four axes.

  References:
    He et al., arXiv:1512.03385, table 1 and section 4.2; preactivation: He et
    al., arXiv:1603.05027; wide: Zagoruyko and Komodakis, arXiv:1605.07146.
  """
  layers.check_images(inputs)
  layers.check_positive(num_classes=num_classes)
  layers.check_fraction(decay=decay)
  blocks, channels, bottleneck = _layout(depth, blocks, channels, bottleneck)
  if stem is None:
    stem = max(channels[0] // 4, 1) if bottleneck else channels[0]
  layers.check_positive(stem=stem)
  stem, *channels = (_scaled(size, width) for size in (stem, *channels))
  if bottleneck and any(size % 4 for size in channels):
    raise checks.ConfigError(
        'channels must be multiples of 4 with bottlenecks; got '
        f'{tuple(channels)} after width={width}. Choose others.')
  network = ResNet(
      num_classes=num_classes,
      blocks=blocks,
      channels=channels,
      bottleneck=bottleneck,
      stem_channels=stem,
      small_images=small_images,
      preactivation=preactivation,
      decay=decay,
      name=f'res_net{depth or ""}')
  return network(inputs, is_training)


def _layout(
    depth: Optional[int], blocks: Optional[Sequence[int]],
    channels: Optional[Sequence[int]], bottleneck: Optional[bool]
) -> tuple[Sequence[int], Sequence[int], bool]:
  """Returns blocks, channels and bottleneck, of a depth or as given."""
  if depth is not None:
    options = zip(_LAYOUT_OPTIONS, (blocks, channels, bottleneck))
    given = [name for name, value in options if value is not None]
    if given:
      raise checks.ConfigError(
          f'depth must come alone; got depth={depth} and {", ".join(given)}. '
          'Leave out the one or the others.')
    known = hk.nets.ResNet.CONFIGS
    if depth not in known:
      raise checks.ConfigError(
          f'depth must be one of {", ".join(map(str, known))}; got {depth!r}. '
          'Give blocks and channels for another layout.')
    config: Mapping[str, Any] = known[depth]
    return (config['blocks_per_group'], config['channels_per_group'],
            config['bottleneck'])
  if blocks is None or channels is None:
    raise checks.ConfigError(
        'depth must be given, or both blocks and channels; got depth=None, '
        f'blocks={blocks!r}, channels={channels!r}. For example, depth=18.')
  layers.check_sizes('blocks', blocks)
  layers.check_sizes('channels', channels)
  if len(blocks) != len(channels):
    raise checks.ConfigError(
        'blocks must have as many groups as channels; got blocks='
        f'{tuple(blocks)}, channels={tuple(channels)}.')
  return blocks, channels, bool(bottleneck)


def _scaled(size: int, width: float) -> int:
  scaled = round(size * width)
  if scaled < 1:
    raise checks.ConfigError(
        f'width must leave at least one channel; got {width} for {size} '
        'channels. Customary values are 0.25 to 4.')
  return scaled
