"""A decoder language model of the GPT-2 family."""

from collections.abc import Callable, Mapping
from typing import Optional, Union

import haiku as hk
import jax

from haikd.core import attention_mask
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.models import decoder
from haikd.models import layers
from haikd.models import sequences
from haikd.models import transformer


class Embed(hk.Module):
  """Adds up what tables say of tokens and of their places."""

  def __init__(self, vocabulary: int, positions: int, width: int):
    super().__init__(name='embed')
    self.vocabulary = vocabulary
    self.positions = positions
    self.width = width

  @property
  def embeddings(self) -> jax.Array:
    """The table of tokens, `[V, D]`."""
    return self._table('embeddings', self.vocabulary, 0.02)

  def __call__(self, sequence: sequences.Sequence) -> jax.Array:
    """Maps rows of `[B, N]` to `[B, N, D]`."""
    places = self._table('positions', self.positions, 0.01)
    return self.embeddings[sequence.tokens] + places[sequence.positions]

  def _table(self, name, rows, deviation):
    init = hk.initializers.TruncatedNormal(deviation)
    return hk.get_parameter(name, (rows, self.width), init=init)


class Block(hk.Module):
  """Attention and MLP, each behind a norm and beside a shortcut.

  Its call takes nothing but arrays, so that it can be recomputed as it is.
  """

  def __init__(self, heads: int, hidden: int, activation: Callable,
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

    def branch(norm, module, positions, *more):
      normed = transformer.layer_norm(positions, self.epsilon, norm)
      outputs = module(normed, *more)
      return layers.dropout(outputs, self.dropout, self.is_training)

    attention = transformer.Attention(self.heads)
    middle = inputs + branch('norm_attn', attention, inputs, allowed)
    mlp = transformer.Mlp(self.hidden, self.activation)
    return middle + branch('norm_mlp', mlp, middle)


@registry.register_model(
    taps=dict(features='block*', attention='attn/maps'),
    tensor={
        # As in llama: heads, hidden units and features of the embedding lie
        # apart, and what comes back from them is summed.
        'embed/embeddings': -1,
        'attn/query/*': -1,
        'attn/key/*': -1,
        'attn/value/*': -1,
        'attn/output/w': -2,
        'mlp/up/*': -1,
        'mlp/down/w': -2,
        'logits/w': -1,
    })
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
  """A decoder language model: what follows each token, given those before.

  The defaults are those of the smallest GPT-2. Each block is a module `block_i`
  with output `[B, N, D]`. Inside, `attn` offers its maps as `maps`; its linear
  maps `query`, `key`, `value` and `output`, and those of `mlp`, `up` and
  `down`, are modules too. Activations have the dtype of the tables; norms and
  softmax are computed in float32.

  A position looks at real positions of its document up to itself, and is placed
  by how many of them there are before it, so that a document gives the same
  wherever in which row it stands. One that may look at nothing, as before a
  sequence padded on the left, has maps of 0 and finite logits.

  Args:
    inputs: tokens, `[B, N]` integers below V, or a dict of such `tokens` and of
      `segments` and `positions`, where rows hold several documents; see
      `sequences.read`.
    is_training: whether dropout is active, which takes a random key.
    num_classes: V, the size of the vocabulary.
    mask: bool, `[B, N]` or `[B]`, true where a position is real; None if all
      are.
    positions: the longest document; N may not be larger.
    width: D.
    depth: the number of blocks.
    heads: H, which divides D.
    hidden: units of a block's MLP; None for 4 D.
    activation: a name from `layers.ACTIVATIONS`, for the MLP.
    epsilon: added to the variance in a norm.
    tied: whether the table of the embedding serves for the logits too, in place
      of the parameter `logits/w`.
    dropout: rate, in training, on the embedding and at the end of each branch.
    scan: whether to compile one block and loop over it. The blocks' parameters
      are then stacked, `[depth, ...]`, under the one name `block`. None for so
      above 12 blocks.

  Returns:
    LinearLogits that stand for `[B, N, V]`. Examples do not interact.

  Raises:
    ConfigError: an option that cannot be, or rows that are too long; the legal
      values are named.
    TypeError: tokens are not integers, or `mask` not boolean.
    ValueError: tokens have not two axes, `mask` does not suit them, or `inputs`
      has other columns.

  References:
    GPT-2: Radford et al., Language Models are Unsupervised Multitask Learners,
    2019, section 2.3.
  """
  where = 'models.gpt2'
  sequence = sequences.read(where, inputs, mask)
  hidden = 4 * width if hidden is None else hidden
  layers.check_positive(
      where,
      num_classes=num_classes,
      positions=positions,
      width=width,
      depth=depth,
      heads=heads,
      hidden=hidden)
  layers.check_divides(where, heads=heads, width=width)
  layers.check_fraction(where, dropout=dropout)
  layers.check_above_zero(where, epsilon=epsilon)
  length = sequence.tokens.shape[1]
  if length > positions:
    # A place beyond the table would read its last row.
    raise checks.ConfigError(
        f'{where}: positions must be at least the length of rows; got '
        f'positions={positions}, N={length}. Choose shorter rows.')
  function = layers.activation(where, activation)
  allowed = sequence.allowed(causal=True)

  def block(values, name):
    module = Block(heads, hidden, function, epsilon, dropout, is_training, name)
    return module(values, allowed)

  embed = Embed(num_classes, positions, width)
  outputs = layers.dropout(embed(sequence), dropout, is_training)
  outputs = layers.run_blocks(block, depth, outputs, scan)
  outputs = transformer.layer_norm(outputs, epsilon, 'norm')
  if tied:
    return base.LinearLogits(outputs, embed.embeddings.T)
  return decoder.Unembed(num_classes)(outputs)
