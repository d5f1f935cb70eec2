"""The encoder of T5, which makes a vector of a text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional, Union

import haiku as hk
import jax

from haikd.core import attention_mask
from haikd.core import base
from haikd.core import registry
from haikd.models import decoder
from haikd.models import encoder
from haikd.models import layers
from haikd.models import relative
from haikd.models import transformer


class Block(hk.Module):
  """Pre-norm transformer block with RMSNorm and no biases.

  Its call takes arrays only, so that `hk.remat` can wrap it.
  """

  def __init__(self, attention: Mapping[str, Any],
               mlp: Callable[[], Callable[[jax.Array], jax.Array]],
               epsilon: float, dropout: float, is_training: bool, name: str):
    super().__init__(name=name)
    self.attention = attention
    self.mlp = mlp
    self.epsilon = epsilon
    self.dropout = dropout
    self.is_training = is_training

  def __call__(self, inputs: jax.Array, allowed: attention_mask.AttentionMask,
               bias: jax.Array) -> jax.Array:
    """Maps `[B, N, D]` to the same; arguments as in `transformer.Attention`."""

    def branch(name, module, features, *arguments):
      outputs = module(decoder.norm(
          features, name, epsilon=self.epsilon, unit_offset=False), *arguments)
      return layers.dropout(outputs, self.dropout, self.is_training)

    attention = transformer.Attention(
        scaled=False, qkv_bias=False, output_bias=False, **self.attention)
    attended = inputs + branch('norm_attn', attention, inputs, allowed, bias)
    return attended + branch('norm_mlp', self.mlp(), attended)


@registry.register_model(
    taps=encoder.TAPS,
    task='embedding',
    tensor={**layers.TEXT_TENSOR_AXES, 'mlp/gate/*': -1})
def t5_encoder(inputs: Union[jax.Array, Mapping[str, jax.Array]],
               *,
               is_training: bool,
               mask: Optional[jax.Array] = None,
               vocabulary: int = 32128,
               width: int = 768,
               depth: int = 12,
               heads: int = 12,
               head_size: int = 64,
               hidden: int = 3072,
               gated: bool = False,
               activation: str = 'relu',
               relative_buckets: int = 32,
               max_distance: int = 128,
               epsilon: float = 1e-6,
               pool: str = 'mean',
               dense: Sequence[Mapping[str, Any]] = (),
               normalise: bool = True,
               dropout: float = 0.0,
               scan: Optional[bool] = None) -> base.Embedding:
  """The encoder of T5, as in sentence-T5 and GTR.

  The defaults are T5 base. Each block is a module `block_i` with output
  `[B, N, D]`. Inside it, `attn` offers its maps as `maps`. The linear maps
  `query`, `key`, `value` and `output` of `attn`, and `gate` (where it is
  gated), `up` and `down` of `mlp`, are modules too. Activations have the dtype
  of the embeddings; norms, softmax, pooling and text vectors are float32.

  A position attends to every real position. Order is known from the distance
  of two positions alone: a number for each head and bucket of distances,
  learned once for all blocks, is added to scores, which are not scaled.

  Args:
    inputs: `[..., N]` integers below V, or a dict of such `tokens` and perhaps
      `types`, which are ignored. All axes before the last, such as the axis of
      the two sentences of a pair, count rows.
    is_training: whether dropout is active, which takes a random key.
    mask: bool, of the shape of tokens or of their first axes, true where a
      position is real; None if all are.
    vocabulary: V.
    width: D.
    depth: the number of blocks.
    heads: H.
    head_size: K; H K need not be D.
    hidden: units of a block's MLP.
    gated: whether the MLP multiplies an activated gate with a linear map.
    activation: a name from `layers.ACTIVATIONS`, for the MLP.
    relative_buckets: buckets of distances, a multiple of 4.
    max_distance: the distance from which on all share a bucket.
    epsilon: added to the mean square in a norm.
    pool: how a text becomes a vector: 'mean', 'max' or 'mean_sqrt' of its
      positions, or its 'token' or 'last_token', the first or last; see
      `encoder.pooled`; or 'none', a vector for each token, for late
      interaction.
    dense: linear layers after pooling, each a dict of `size` and any of
      `activation`, `bias` and `normalise` (before the layer).
    normalise: whether vectors have length 1.
    dropout: rate, in training, on the embedding, at the end of each branch and
      after the last norm.
    scan: whether to compile one block and loop over it. The blocks' parameters
      are then stacked, `[depth, ...]`, under the one name `block`. None: only
      above 12 blocks.

  Returns:
    An Embedding of vectors `[..., D]`, also offered as the tap `embedding`;
    with pool='none' a TokenEmbedding, `[..., N, D]`, as the tap
    `token_embedding`.
    Texts do not interact.

  Raises:
    ConfigError: an invalid option; the message gives the rule.
    TypeError: tokens are not integers, or the mask is not boolean.
    ValueError: `inputs` or `mask` of another form, or several documents in a
      row.

  References:
    Raffel et al., arXiv:1910.10683. Gated: Shazeer, arXiv:2002.05202.
    Sentence-T5: Ni et al., arXiv:2108.08877.
  """
  layers.check_positive(
      vocabulary=vocabulary,
      width=width,
      depth=depth,
      heads=heads,
      head_size=head_size,
      hidden=hidden)
  layers.check_above_zero(epsilon=epsilon)
  layers.check_fraction(dropout=dropout)
  relative.check(relative_buckets=relative_buckets, max_distance=max_distance)
  encoder.check_pooling(pool=pool, dense=dense)
  function = layers.activation('activation', activation)
  sequence, leading = encoder.read(inputs, mask)
  encoder.check_one_text(sequence, 'embedding')
  allowed = sequence.allowed(causal=False)
  bias = relative.RelativeBias(heads, relative_buckets, max_distance)(
      sequence.tokens.shape[1])

  def mlp():
    if gated:
      return decoder.Mlp(hidden=hidden, activation=function, bias=False)
    return transformer.Mlp(hidden, function, with_bias=False)

  def block(features, name):
    module = Block(dict(heads=heads, head_size=head_size), mlp, epsilon,
                   dropout, is_training, name)
    return module(features, allowed, bias)

  embed = decoder.Embed(vocabulary, width, scale=1.0)
  features = layers.dropout(embed(sequence.tokens), dropout, is_training)
  features = layers.run_blocks(block, depth, features, scan)
  features = decoder.norm(
      features, 'norm', epsilon=epsilon, unit_offset=False)
  features = layers.dropout(features, dropout, is_training)
  return encoder.embedding(
      features, sequence.mask, leading, pool=pool, dense=dense,
      normalise=normalise)
