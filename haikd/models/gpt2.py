"""A decoder language model of the GPT-2 family."""

from collections.abc import Mapping
from typing import Optional, Union

import haiku as hk
import jax

from haikd.core import attention_mask
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.core import transposed
from haikd.models import decoder
from haikd.models import layers
from haikd.models import sequences
from haikd.models import transformer


class Embed(hk.Module):
  """Token embeddings plus learned position embeddings."""

  def __init__(self, vocabulary: int, positions: int, width: int):
    super().__init__(name='embed')
    self.vocabulary = vocabulary
    self.positions = positions
    self.width = width

  @property
  def embeddings(self) -> jax.Array:
    """The token embeddings, `[V, D]`."""
    return self._table('embeddings', self.vocabulary, 0.02)

  def __call__(self, sequence: sequences.Sequence) -> jax.Array:
    """Maps rows of `[B, N]` to `[B, N, D]`."""
    position_embeddings = self._table('positions', self.positions, 0.01)
    return (self.embeddings[sequence.tokens] +
            position_embeddings[sequence.positions])

  def _table(self, name, rows, stddev):
    init = hk.initializers.TruncatedNormal(stddev)
    return hk.get_parameter(name, (rows, self.width), init=init)


class Block(hk.Module):
  """Pre-norm transformer block.

  Its call takes arrays only, so that `hk.remat` can wrap it.
  """

  def __init__(self, heads: int, hidden: int, activation: layers.Activation,
               epsilon: float, dropout: float, is_training: bool, name: str):
    super().__init__(name=name)
    self.heads = heads
    self.hidden = hidden
    self.activation = activation
    self.epsilon = epsilon
    self.dropout = dropout
    self.is_training = is_training

  def __call__(self, inputs: jax.Array,
               allowed: attention_mask.AttentionMask) -> jax.Array:
    """Maps `[B, N, D]` to the same; `allowed` as in `transformer.Attention`."""

    def branch(norm, module, features, *arguments):
      normed = transformer.layer_norm(features, self.epsilon, norm)
      outputs = module(normed, *arguments)
      return layers.dropout(outputs, self.dropout, self.is_training)

    attention = transformer.Attention(self.heads)
    attended = inputs + branch('norm_attn', attention, inputs, allowed)
    mlp = transformer.Mlp(self.hidden, self.activation)
    return attended + branch('norm_mlp', mlp, attended)


@registry.register_model(
    taps=dict(features='block*', attention='attn/maps'),
    task='causal_lm',
    tensor=layers.DECODER_TENSOR_AXES)
def gpt2(inputs: Union[jax.Array, Mapping[str, jax.Array]],
         *,
         is_training: bool,
         num_classes: int,
         mask: Optional[jax.Array] = None,
         positions: int = 1024,
         width: int = 768,
         depth: int = 12,
         heads: int = 12,
         hidden: Optional[int] = None,
         activation: str = 'gelu_tanh',
         epsilon: float = 1e-5,
         tied: bool = True,
         dropout: float = 0.0,
         scan: Optional[bool] = None) -> base.LinearLogits:
  """A decoder language model: predicts each token's successor.

  The defaults are those of the smallest GPT-2. Each block is a module `block_i`
  with output `[B, N, D]`. Inside it, `attn` offers its maps as `maps`. The
  linear maps `query`, `key`, `value` and `output` of `attn`, and `up` and
  `down` of `mlp`, are modules too. Activations have the dtype of the
  embeddings; norms and softmax are computed in float32.

  A position attends to the real positions of its document up to itself. Its
  position embedding is that of the number of real positions before it, so that
  a document gives the same outputs wherever in a row it starts. A position that
  may attend to nothing, as in padding on the left, has maps of 0 and finite
  logits.

  Args:
    inputs: tokens, `[B, N]` integers below V; or, where rows hold several
      documents, a dict of `tokens`, `segments` and `positions`; see
      `sequences.read`.
    is_training: whether dropout is active, which takes a random key.
    num_classes: V, the size of the vocabulary.
    mask: bool, `[B, N]` or `[B]`, true where a position is real; None if all
      are.
    positions: the rows of the position embeddings; N may not be larger.
    width: D.
    depth: the number of blocks.
    heads: H, which divides D.
    hidden: units of a block's MLP; None for 4 D.
    activation: a name from `layers.ACTIVATIONS`, for the MLP.
    epsilon: added to the variance in a norm.
    tied: whether the token embeddings are also the kernel of the logits, in
      place of the parameter `logits/w`.
    dropout: rate, in training, on the embedding and at the end of each branch.
    scan: whether to compile one block and loop over it. The blocks' parameters
      are then stacked, `[depth, ...]`, under the one name `block`. None: only
      above 12 blocks.

  Returns:
    LinearLogits, `[B, N, V]`. Examples do not interact.

  Raises:
    ConfigError: an invalid option, or rows that are too long; the message gives
      the rule.
    TypeError: tokens are not integers, or `mask` is not boolean.
    ValueError: tokens do not have two axes, `mask` does not fit them, or
      `inputs` has other columns.

  References:
    GPT-2: Radford et al., Language Models are Unsupervised Multitask Learners,
    2019, section 2.3.
  """
  sequence = sequences.read(inputs, mask)
  hidden = 4 * width if hidden is None else hidden
  layers.check_positive(
      num_classes=num_classes,
      positions=positions,
      width=width,
      depth=depth,
      heads=heads,
      hidden=hidden)
  layers.check_divides(heads=heads, width=width)
  layers.check_fraction(dropout=dropout)
  layers.check_above_zero(epsilon=epsilon)
  length = sequence.tokens.shape[1]
  if length > positions:
    # JAX would clamp a position beyond the table to its last row.
    raise checks.ConfigError(
        'positions must be at least the length of rows; got positions='
        f'{positions}, N={length}. Choose shorter rows.')
  function = layers.activation('activation', activation)
  allowed = sequence.allowed(causal=True)

  def block(features, name):
    module = Block(heads, hidden, function, epsilon, dropout, is_training, name)
    return module(features, allowed)

  embed = Embed(num_classes, positions, width)
  features = layers.dropout(embed(sequence), dropout, is_training)
  features = layers.run_blocks(block, depth, features, scan)
  features = transformer.layer_norm(features, epsilon, 'norm')
  if tied:
    return base.LinearLogits(
        features, transposed.Transposed(embed.embeddings))
  return decoder.Unembed(num_classes)(features)
