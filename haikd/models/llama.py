"""A decoder language model of the Llama family."""

from collections.abc import Iterable, Mapping
from typing import Any, Optional, Union

import jax
import numpy as np

from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.models import decoder
from haikd.models import layers
from haikd.models import rotary
from haikd.models import sequences


@registry.register_model(
    taps=dict(features='block*', attention='attn/maps'),
    tensor={
        # A device holds entire heads and hidden units; the products of `output`
        # and `down` are summed over the axis. A device looks up its share of
        # the embedding features and computes the logits of its share of the
        # vocabulary.
        'embed/embeddings': -1,
        'attn/query/*': -1,
        'attn/key/*': -1,
        'attn/value/*': -1,
        'attn/output/w': -2,
        'mlp/gate/*': -1,
        'mlp/up/*': -1,
        'mlp/down/w': -2,
        'logits/w': -1,
    },
    block_options=('window_layers',))
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
          rope_base: float = 10000.0,
          rope_scaling: Optional[Mapping[str, Any]] = None,
          window: Optional[int] = None,
          window_layers: Optional[Iterable[int]] = None,
          qk_norm: bool = False,
          qkv_bias: bool = False,
          output_bias: bool = False,
          mlp_bias: bool = False,
          activation: str = 'silu',
          epsilon: float = 1e-5,
          tied: bool = False,
          dropout: float = 0.0,
          scan: Optional[bool] = None) -> base.LinearLogits:
  """A decoder language model: predicts each token's successor.

  Its options make it Llama 2 or 3, Mistral, Qwen 2 or 3, or SmolLM2. Each block
  is a module `block_i` with output `[B, N, D]`. Inside it, `attn` offers its
  maps as `maps`. The linear maps `query`, `key`, `value` and `output` of
  `attn`, and `gate`, `up` and `down` of `mlp`, are modules too. Activations
  have the dtype of the embeddings; norms, rotations and softmax are computed in
  float32.

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
    rope_base: the base of the rotations, whose wavelengths range from 2 pi to
      nearly 2 pi times the base, in positions.
    rope_scaling: None, or a dict of a `kind` and its numbers that makes these
      wavelengths longer; see `rotary.angles`.
    window: how many positions a position attends to, itself and those right
      before it; None for all.
    window_layers: the blocks, from 0, that have the window; None for all.
    qk_norm: whether each head's queries and keys are normalised.
    qkv_bias: whether the linear maps to query, key and value have biases.
    output_bias: whether the linear map from the heads back to D has a bias.
    mlp_bias: whether the linear maps of the MLP have biases.
    activation: a name from `layers.ACTIVATIONS`, for the gate.
    epsilon: added to the mean square in a norm.
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
    Grouped-query attention: Ainslie et al., arXiv:2305.13245. SwiGLU: Shazeer,
    arXiv:2002.05202, equation 6.
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
  layers.check_above_zero(rope_base=rope_base, epsilon=epsilon)
  if head_size % 2:
    raise checks.ConfigError(
        'head_size must be even, since features are rotated in pairs; got '
        f'head_size={head_size}, width={width}, heads={heads}. Choose another '
        'head_size, or other heads.')
  rotary.check_scaling(rope_scaling, head_size)
  attention = dict(
      heads=heads,
      key_value_heads=key_value_heads,
      head_size=head_size,
      qk_norm=qk_norm,
      qkv_bias=qkv_bias,
      output_bias=output_bias)
  mlp = dict(
      hidden=hidden,
      activation=layers.activation('activation', activation),
      bias=mlp_bias)
  rotation = rotary.angles(sequence, head_size, rope_base, rope_scaling)

  def block(features, name, block_window=window):
    module = decoder.Block(attention, mlp, epsilon, dropout, is_training, name)
    return module(features, rotation, sequence, block_window)

  embed = decoder.Embed(num_classes, width)
  features = layers.dropout(embed(sequence.tokens), dropout, is_training)
  windows = _windows(window, window_layers, depth, sequence.tokens.shape[1])
  features = layers.run_blocks(block, depth, features, scan, *windows)
  features = decoder.norm(features, epsilon, 'norm')
  if tied:
    return base.LinearLogits(features, embed.embeddings.T)
  return decoder.Unembed(num_classes)(features)


def _windows(window: Optional[int], window_layers: Optional[Iterable[int]],
             depth: int, length: int) -> tuple[np.ndarray, ...]:
  """Returns each block's window in one array, or () if all windows agree.

  A block without a window gets one of `length`, which hides nothing.
  """
  if window is not None:
    layers.check_positive(window=window)
  if window_layers is None:
    return ()
  chosen = tuple(window_layers)
  if window is None:
    raise checks.ConfigError(
        'window must be given with window_layers; got window=None, '
        f'window_layers={chosen}.')
  if not set(chosen) <= set(range(depth)):
    raise checks.ConfigError(
        f'window_layers must be blocks, from 0 to {depth - 1}; got '
        f'{chosen}, depth={depth}.')
  windows = np.full(depth, length, np.int32)
  windows[list(chosen)] = window
  return (windows,)
