"""A text encoder of the ModernBERT family."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Optional, Union

import haiku as hk
import jax
import numpy as np

from haikd.core import attention_mask
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.models import decoder
from haikd.models import encoder
from haikd.models import layers
from haikd.models import rotary
from haikd.models import sequences
from haikd.models import transformer

_EVERY = 3  # By default every third block, from the first, has no window.


class Norm(NamedTuple):
  """A LayerNorm: what is added to the variance, and whether it has offsets."""

  epsilon: float
  offset: bool

  def __call__(self, inputs: jax.Array, name: str) -> jax.Array:
    """Normalises the last axis, as the module of a name."""
    return transformer.layer_norm(
        inputs, self.epsilon, name, offset=self.offset)


class Embed(hk.Module):
  """Token embeddings, normalised."""

  def __init__(self, vocabulary: int, width: int, norm: Norm):
    super().__init__(name='embed')
    self.vocabulary = vocabulary
    self.width = width
    self.norm = norm

  @property
  def embeddings(self) -> jax.Array:
    """The token embeddings, `[V, D]`."""
    return hk.get_parameter('embeddings', (self.vocabulary, self.width),
                            init=hk.initializers.TruncatedNormal(0.02))

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps `[B, N]` to `[B, N, D]`."""
    return self.norm(self.embeddings[tokens], 'norm')


class Block(hk.Module):
  """Pre-norm transformer block; the first one has no norm before attention.

  Its call takes arrays only, so that `hk.remat` can wrap it.
  """

  def __init__(self, attention: Mapping[str, Any], mlp: Mapping[str, Any],
               norm: Norm, is_first: bool, dropout: float, is_training: bool,
               name: str):
    super().__init__(name=name)
    self.attention = attention
    self.mlp = mlp
    self.norm = norm
    self.is_first = is_first
    self.dropout = dropout
    self.is_training = is_training

  def __call__(self, inputs: jax.Array, rotation: rotary.Rotation,
               allowed: attention_mask.AttentionMask) -> jax.Array:
    """Maps `[B, N, D]` to `[B, N, D]`."""

    def drop(outputs):
      return layers.dropout(outputs, self.dropout, self.is_training)

    # Norms of the embedding come right before, so a second one is left out.
    normed = inputs if self.is_first else self.norm(inputs, 'norm_attn')
    attention = decoder.Attention(**self.attention)
    attended = inputs + drop(attention(normed, rotation, allowed))
    mlp = decoder.Mlp(**self.mlp)
    return attended + drop(mlp(self.norm(attended, 'norm_mlp')))


@registry.register_model(
    taps=encoder.TAPS,
    task=encoder.task,
    block_options=('window_layers',),
    tensor={**layers.TEXT_TENSOR_AXES, 'mlp/gate/*': -1})
def modernbert(inputs: Union[jax.Array, Mapping[str, jax.Array]],
               *,
               is_training: bool,
               num_classes: Optional[int] = None,
               mask: Optional[jax.Array] = None,
               vocabulary: int = 50368,
               width: int = 768,
               depth: int = 22,
               heads: int = 12,
               hidden: int = 1152,
               rope_base: float = 160000.0,
               window: int = 65,
               window_layers: Optional[Iterable[int]] = None,
               window_rope_base: float = 10000.0,
               attention_bias: bool = False,
               mlp_bias: bool = False,
               norm_offset: bool = False,
               activation: str = 'gelu',
               epsilon: float = 1e-5,
               head: str = 'embedding',
               pool: str = 'mean',
               dense: Sequence[Mapping[str, Any]] = (),
               normalise: bool = True,
               transform_activation: str = 'gelu',
               transform_bias: bool = False,
               logits_bias: bool = True,
               dropout: float = 0.0,
               scan: Optional[bool] = None) -> base.Output:
  """A bidirectional encoder with rotary positions and local attention.

  The defaults are ModernBERT base. Each block is a module `block_i` with output
  `[B, N, D]`. Inside it, `attn` offers its maps as `maps`. The linear maps
  `query`, `key`, `value` and `output` of `attn`, and `gate`, `up` and `down` of
  `mlp`, are modules too. Activations have the dtype of the embeddings; norms,
  rotations, softmax, pooling and text vectors are float32.

  A position attends to the real positions of its document, in some blocks only
  to those near it. Only real positions are counted, so that a text gives the
  same outputs wherever in its row it starts.

  Args:
    inputs: `[..., N]` integers below V, or a dict of such `tokens` and any of
      `positions`, `segments` and `types`, which are ignored; see
      `sequences.read`. All axes before the last, such as the axis of the two
      sentences of a pair, count rows.
    is_training: whether dropout is active, which takes a random key.
    num_classes: for head 'classification'; other heads ignore it.
    mask: bool, of the shape of tokens or of their first axes, true where a
      position is real; None if all are.
    vocabulary: V.
    width: D.
    depth: the number of blocks.
    heads: H, which divides D.
    hidden: units of a block's MLP.
    rope_base: the base of the rotations in blocks without a window.
    window: how many positions away a key must be fewer than, in blocks with a
      window.
    window_layers: the blocks, from 0, that have the window; None for all but
      every third, from the first.
    window_rope_base: the base of the rotations in these blocks.
    attention_bias: whether the linear maps of attention have biases.
    mlp_bias: whether those of the MLP have.
    norm_offset: whether norms have offsets.
    activation: a name from `layers.ACTIVATIONS`, for the gate of the MLP.
    epsilon: added to the variance in a norm.
    head: 'embedding', a vector for each text; 'classification', logits for
      each text; 'masked_lm', logits for each position, with the token
      embeddings as kernel.
    pool: how a text becomes a vector: 'mean', 'max' or 'mean_sqrt' of its
      positions, or its 'token' or 'last_token', the first or last; see
      `encoder.pooled`. For heads 'embedding' and 'classification'; for the
      former also 'none', a vector for each token, for late interaction.
    dense: linear layers after pooling, each a dict of `size` and any of
      `activation`, `bias` and `normalise` (before the layer). For head
      'embedding'.
    normalise: whether vectors have length 1. For head 'embedding'.
    transform_activation: of the linear map before logits.
    transform_bias: whether this map has a bias.
    logits_bias: whether the logits of tokens have a bias.
    dropout: rate, in training, on the embedding, at the end of each branch and
      before the logits of head 'classification'.
    scan: whether to compile one block and loop over it, for all blocks but the
      first. Their parameters are then stacked, `[depth - 1, ...]`, under the
      one name `block`. None: only above 13 blocks.

  Returns:
    By head: an Embedding of vectors `[..., D]`, also offered as the tap
    `embedding`, or with pool='none' a TokenEmbedding, `[..., N, D]`, as the tap
    `token_embedding`; logits `[..., num_classes]`; or LinearLogits,
    `[..., N, V]`. Texts do not interact.

  Raises:
    ConfigError: an invalid option; the message gives the rule.
    TypeError: tokens are not integers, or the mask is not boolean.
    ValueError: `inputs` or `mask` of another form, or several documents in a
      row where the head reads one.

  References:
    Warner et al., arXiv:2412.13663.
  """
  layers.check_positive(
      vocabulary=vocabulary,
      width=width,
      depth=depth,
      heads=heads,
      hidden=hidden,
      window=window)
  layers.check_divides(heads=heads, width=width)
  layers.check_above_zero(
      rope_base=rope_base, window_rope_base=window_rope_base, epsilon=epsilon)
  layers.check_fraction(dropout=dropout)
  classes = encoder.check_head(head=head, num_classes=num_classes)
  encoder.check_pooling(pool=pool, dense=dense, head=head)
  if width // heads % 2:
    raise checks.ConfigError(
        'width / heads must be even, since features are rotated in pairs; got '
        f'width={width}, heads={heads}. Choose other heads.')
  sequence, leading = encoder.read(inputs, mask)
  encoder.check_one_text(sequence, head)
  length = sequence.tokens.shape[1]
  has_window = _has_window(window_layers, depth).astype(np.int32)
  windows = np.where(
      has_window, window, sequences.EVERYTHING).astype(np.int32)
  rotations = [rotary.angles(sequence, width // heads, rope)
               for rope in (rope_base, window_rope_base)]
  attention = dict(
      heads=heads,
      key_value_heads=heads,
      head_size=width // heads,
      qk_norm=None,
      qkv_bias=attention_bias,
      output_bias=attention_bias,
      scale=(width // heads)**-0.5,
      soft_cap=None,
      norms={})
  mlp = dict(
      hidden=hidden,
      activation=layers.activation('activation', activation),
      bias=mlp_bias)
  norm = Norm(epsilon, norm_offset)

  def block(features, name, block_window, is_local, is_first=False):
    module = Block(attention, mlp, norm, is_first, dropout, is_training, name)
    rotation = rotary.choose(rotations, is_local)
    allowed = sequence.allowed(causal=False, window=block_window)
    return module(features, rotation, allowed)

  embed = Embed(vocabulary, width, norm)
  features = layers.dropout(embed(sequence.tokens), dropout, is_training)
  features = block(
      features, 'block_0', windows[0], has_window[0], is_first=True)
  if depth > 1:
    features = layers.run_blocks(
        block, depth - 1, features, scan, windows[1:], has_window[1:], first=1)
  features = norm(features, 'norm')
  if head == 'embedding':
    return encoder.embedding(
        features, sequence.mask, leading, pool=pool, dense=dense,
        normalise=normalise)
  if head == 'classification':
    dtype = features.dtype
    features = encoder.pooled(features, sequence.mask, pool).astype(dtype)
  function = layers.activation('transform_activation', transform_activation)
  features = encoder.transform(
      features, function, epsilon, with_bias=transform_bias, offset=norm_offset)
  if head == 'masked_lm':
    features = features.reshape(*leading, length, width)
    return encoder.Unembed(with_bias=logits_bias)(features, embed.embeddings)
  features = layers.dropout(features, dropout, is_training)
  logits = layers.Linear(classes, name='logits')(features)
  return logits.reshape(*leading, classes)


def _has_window(window_layers: Optional[Iterable[int]],
                depth: int) -> np.ndarray:
  """Returns whether each block has a window, bool `[depth]`."""
  numbers = np.arange(depth)
  if window_layers is None:
    return numbers % _EVERY != 0
  chosen = tuple(window_layers)
  if not set(chosen) <= set(range(depth)):
    raise checks.ConfigError(
        f'window_layers must be blocks, from 0 to {depth - 1}; got '
        f'{chosen}, depth={depth}.')
  return np.isin(numbers, chosen)
