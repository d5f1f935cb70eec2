"""A decoder language model: Llama, and the families that vary it."""

from collections.abc import Iterable, Mapping
from typing import Any, Optional, Union

import jax
import numpy as np

from haikd.core import base
from haikd.core import registry
from haikd.core import transposed
from haikd.models import decoder
from haikd.models import decoder_options as options_lib
from haikd.models import layers
from haikd.models import rope_scaling as rope_scaling_lib
from haikd.models import rotary
from haikd.models import sequences


@registry.register_model(
    taps=dict(features='block*', attention='attn/maps'),
    task='causal_lm',
    tensor={
        **layers.DECODER_TENSOR_AXES,
        'mlp/gate/*': -1,
        'expert_*/gate/*': -1,
        'expert_*/up/*': -1,
        'expert_*/down/w': -2,
    },
    block_options=('window_layers', 'unrotated_layers'))
def llama(inputs: Union[jax.Array, Mapping[str, jax.Array]],
          *,
          is_training: bool,
          num_classes: int,
          mask: Optional[jax.Array] = None,
          width: int = 512,
          depth: int = 8,
          heads: int = 8,
          key_value_heads: Optional[int] = None,
          head_size: Optional[int] = None,
          hidden: Optional[int] = None,
          experts: Optional[int] = None,
          experts_per_token: int = 2,
          normalise_experts: bool = True,
          rope_base: float = 10000.0,
          rope_scaling: Optional[Mapping[str, Any]] = None,
          rope_fraction: float = 1.0,
          window: Optional[int] = None,
          window_layers: Optional[Iterable[int]] = None,
          window_rope_base: Optional[float] = None,
          unrotated_layers: Iterable[int] = (),
          qk_norm: Optional[str] = None,
          qkv_bias: bool = False,
          output_bias: bool = False,
          mlp_bias: bool = False,
          activation: str = 'silu',
          norms: str = 'before',
          norm_unit_offset: bool = False,
          epsilon: float = 1e-5,
          embedding_scale: Union[float, str] = 1.0,
          attention_scale: Optional[float] = None,
          attention_soft_cap: Optional[float] = None,
          residual_scale: float = 1.0,
          logits_scale: float = 1.0,
          logits_soft_cap: Optional[float] = None,
          tied: bool = False,
          dropout: float = 0.0,
          scan: Optional[bool] = None) -> base.LinearLogits:
  """A decoder language model: predicts each token's successor.

  Its options make it Llama 2 or 3, Mistral, Qwen 2 or 3, SmolLM2 or 3, Phi 3
  or 4, Granite 3, OLMo 2, or Gemma 2 or 3. Each block is a module `block_i`
  with output `[B, N, D]`. Inside it, `attn` offers its maps as `maps`. The
  linear maps `query`, `key`, `value` and `output` of `attn`, and `gate`, `up`
  and `down` of `mlp`, are modules too. Activations have the dtype of the
  embeddings; norms, rotations and softmax are computed in float32.

  A position attends to the real positions of its document up to itself. It is
  rotated by its index in the document, so that a document gives the same
  outputs wherever in a row it starts. A position that may attend to nothing, as
  in padding on the left, has maps of 0 and finite logits.

  Args:
    inputs: tokens, `[B, N]` integers below V; or, where rows hold several
      documents, a dict of `tokens`, `segments` and `positions`; see
      `sequences.read`.
    is_training: whether dropout is active, which takes a random key.
    num_classes: V, the size of the vocabulary.
    mask: bool, `[B, N]` or `[B]`, true where a position is real; None if all
      are.
    width: D.
    depth: the number of blocks.
    heads: H, the number of query heads.
    key_value_heads: G, the number of key and value heads, which divides H; None
      for H.
    head_size: K, even; None for width / heads.
    hidden: units of a block's MLP; None for 8/3 of the width, rounded up to a
      multiple of 64, which makes the MLP as large as an ungated one with 4 D
      units.
    experts: the number of MLPs in a block, from which a router chooses for each
      token; None for one MLP without a router. All of them are computed for all
      tokens, one after the other, and nothing balances their use in training.
    experts_per_token: how many are chosen.
    normalise_experts: whether the weights of those that are chosen sum to 1.
    rope_base: the base of the rotations, whose wavelengths range from 2 pi to
      nearly 2 pi times the base, in positions.
    rope_scaling: None, or a dict of a `kind` and its numbers that makes these
      wavelengths longer; see `rotary.angles`.
    rope_fraction: the part of a head's features, from the first on, that is
      rotated.
    window: how many positions a position attends to, itself and those right
      before it; None for all.
    window_layers: the blocks, from 0, that have the window; None for all.
    window_rope_base: the base of the rotations in blocks with a window, which
      have no scaling; None for the same rotations in all blocks.
    unrotated_layers: the blocks, from 0, without rotations.
    qk_norm: whether queries and keys are normalised: each 'head', or 'all'
      heads together; None for neither.
    qkv_bias: whether the linear maps to query, key and value have biases.
    output_bias: whether the linear map from the heads back to D has a bias.
    mlp_bias: whether the linear maps of the MLP have biases.
    activation: a name from `layers.ACTIVATIONS`, for the gate.
    norms: where a branch has its norms: 'before' it, 'after' it, or 'both'.
    norm_unit_offset: whether a norm multiplies by 1 plus its parameter `scale`,
      in place of the parameter itself.
    epsilon: added to the mean square in a norm.
    embedding_scale: what embeddings are multiplied by; 'sqrt_width' for the
      square root of D, rounded to their dtype.
    attention_scale: what scores are multiplied by; None for 1 / sqrt(K).
    attention_soft_cap: c, which bounds the scores by c tanh(scores / c); None
      for no bound.
    residual_scale: what a branch is multiplied by before it is added.
    logits_scale: what logits are multiplied by.
    logits_soft_cap: c, which then bounds the logits by c tanh(logits / c); None
      for no bound.
    tied: whether the token embeddings are also the kernel of the logits, in
      place of the parameter `logits/w`.
    dropout: rate, in training, on the embedding and at the end of each branch.
    scan: whether to compile one block and loop over it. The blocks' parameters
      are then stacked, `[depth, ...]`, under the one name `block`. None: only
      above 12 blocks.

  Returns:
    LinearLogits, `[B, N, V]`. Examples do not interact.

  Raises:
    ConfigError: an invalid option; the message gives the rule.
    TypeError: tokens are not integers, or `mask` is not boolean.
    ValueError: tokens do not have two axes, `mask` does not fit them, or
      `inputs` has other columns.

  References:
    Llama: Touvron et al., arXiv:2302.13971, section 2.2; Llama 3:
    arXiv:2407.21783, table 3. Mistral: Jiang et al., arXiv:2310.06825. Qwen:
    arXiv:2309.16609 and, with norms of queries and keys, arXiv:2505.09388.
    Gemma 2: arXiv:2408.00118; Gemma 3: arXiv:2503.19786. OLMo 2:
    arXiv:2501.00656. Phi 3: arXiv:2404.14219. Blocks without rotations: Yang et
    al., arXiv:2501.18795. Grouped-query attention: Ainslie et al.,
    arXiv:2305.13245. SwiGLU: Shazeer, arXiv:2002.05202, equation 6.
  """
  sequence = sequences.read(inputs, mask)
  key_value_heads = heads if key_value_heads is None else key_value_heads
  layers.check_positive(
      num_classes=num_classes,
      width=width,
      depth=depth,
      heads=heads,
      key_value_heads=key_value_heads)
  if head_size is None:
    layers.check_divides(heads=heads, width=width)
    head_size = width // heads
  if hidden is None:
    hidden = -(-8 * width // (3 * 64)) * 64
  layers.check_positive(head_size=head_size, hidden=hidden)
  layers.check_divides(key_value_heads=key_value_heads, heads=heads)
  layers.check_fraction(dropout=dropout)
  layers.check_choice('norms', norms, decoder.NORMS)
  layers.check_above_zero(
      rope_base=rope_base, epsilon=epsilon, residual_scale=residual_scale,
      logits_scale=logits_scale, **options_lib.given(
          window_rope_base=window_rope_base, attention_scale=attention_scale,
          attention_soft_cap=attention_soft_cap,
          logits_soft_cap=logits_soft_cap))
  if embedding_scale != decoder.SQRT_WIDTH:
    layers.check_above_zero(
        **options_lib.given(embedding_scale=embedding_scale))
  if qk_norm is not None:
    layers.check_choice('qk_norm', qk_norm, decoder.QK_NORMS)
  norm_options: dict[str, Any] = dict(
      epsilon=epsilon, unit_offset=norm_unit_offset)
  attention = dict(
      heads=heads,
      key_value_heads=key_value_heads,
      head_size=head_size,
      qk_norm=qk_norm,
      qkv_bias=qkv_bias,
      output_bias=output_bias,
      scale=head_size**-0.5 if attention_scale is None else attention_scale,
      soft_cap=attention_soft_cap)
  mlp = dict(
      hidden=hidden,
      activation=layers.activation('activation', activation),
      bias=mlp_bias)
  routing = None
  if experts is not None:
    options_lib.check_experts(experts, experts_per_token)
    routing = dict(count=experts, chosen=experts_per_token,
                   normalise=normalise_experts)
  windowed = options_lib.windowed(
      window, window_layers, window_rope_base, depth)
  unrotated = options_lib.has_each('unrotated_layers', unrotated_layers, depth)
  rotary_size = options_lib.rotary_size(head_size, rope_fraction)
  rope_scaling_lib.check(rope_scaling, rotary_size)
  rotations = [
      rotary.angles(sequence, rotary_size, rope_base, rope_scaling)]
  # What differs between blocks, for each of them.
  rotation_of = np.zeros(depth, np.int32)
  per_block = {}
  if window_rope_base is not None:
    rotation_of[windowed] = len(rotations)
    rotations.append(rotary.angles(sequence, rotary_size, window_rope_base))
  if unrotated.any():
    rotation_of[unrotated] = len(rotations)
    rotations.append(rotary.nothing(rotations[0]))
  if len(rotations) > 1:
    per_block['rotation'] = rotation_of
  if window_layers is not None:
    per_block['window'] = np.where(
        windowed, window or 0, sequences.EVERYTHING).astype(np.int32)

  def block(features, name, *entries):
    chosen = {'window': window, 'rotation': 0, **dict(zip(per_block, entries))}
    module = decoder.Block(
        attention=attention, mlp=mlp, routing=routing, norms=norm_options,
        norm_places=norms, residual_scale=residual_scale, dropout=dropout,
        is_training=is_training, name=name)
    rotation = rotary.choose(rotations, chosen['rotation'])
    return module(features, rotation, sequence, chosen['window'])

  embed = decoder.Embed(num_classes, width, embedding_scale)
  features = layers.dropout(embed(sequence.tokens), dropout, is_training)
  features = layers.run_blocks(
      block, depth, features, scan, *per_block.values())
  features = decoder.norm(features, 'norm', **norm_options)
  if tied:
    logits = base.LinearLogits(
        features, transposed.Transposed(embed.embeddings))
  else:
    logits = decoder.Unembed(num_classes)(features)
  return logits._replace(
      scale=decoder.scalar(None if logits_scale == 1 else logits_scale),
      soft_cap=decoder.scalar(logits_soft_cap))
