"""An encoder of text of the BERT family."""

from collections.abc import Callable, Mapping
from typing import Any, Optional, Union

import haiku as hk
import jax
import jax.numpy as jnp

from haikd.core import attention_mask
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.core import tap as tap_lib
from haikd.models import layers
from haikd.models import sequences
from haikd.models import transformer

HEADS = ('embedding', 'classification', 'masked_lm')
POOLS = ('mean', 'token')


class Embed(hk.Module):
  """Adds up what tables say of tokens, their places and their types."""

  def __init__(self, vocabulary: int, positions: int, position_offset: int,
               types: int, width: int, epsilon: float):
    super().__init__(name='embed')
    self.vocabulary = vocabulary
    self.positions = positions
    self.position_offset = position_offset
    self.types = types
    self.width = width
    self.epsilon = epsilon

  @property
  def embeddings(self) -> jax.Array:
    """The table of tokens, `[V, D]`."""
    return self._table('embeddings', self.vocabulary)

  def __call__(self, sequence: sequences.Sequence) -> jax.Array:
    """Maps rows of `[B, N]` to `[B, N, D]`."""
    outputs = self.embeddings[sequence.tokens]
    places = sequence.positions + self.position_offset
    outputs += self._table('positions', self.positions)[places]
    if self.types:
      types = 0 if sequence.types is None else sequence.types
      outputs += self._table('types', self.types)[types]
    return transformer.layer_norm(outputs, self.epsilon, 'norm')

  def _table(self, name, rows):
    init = hk.initializers.TruncatedNormal(0.02)
    return hk.get_parameter(name, (rows, self.width), init=init)


class Block(hk.Module):
  """Attention and MLP, each beside a shortcut, and a norm after the sum.

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

    def add(positions, branch, norm):
      branch = layers.dropout(branch, self.dropout, self.is_training)
      return transformer.layer_norm(positions + branch, self.epsilon, norm)

    attention = transformer.Attention(self.heads)
    middle = add(inputs, attention(inputs, allowed), 'norm_attn')
    mlp = transformer.Mlp(self.hidden, self.activation)
    return add(middle, mlp(middle), 'norm_mlp')


class Unembed(hk.Module):
  """Makes logits of positions by the table that embeds, not computed yet."""

  def __init__(self):
    super().__init__(name='logits')

  def __call__(self, hidden: jax.Array, table: jax.Array) -> base.LinearLogits:
    """Maps `[..., D]` and `[V, D]` to `[..., V]`."""
    bias = hk.get_parameter('b', table.shape[:1], init=jnp.zeros)
    return base.LinearLogits(hidden, table.T, bias)


@registry.register_model(
    taps=dict(
        features='block*', attention='attn/maps', embedding='embedding'),
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
    })
def bert(inputs: Union[jax.Array, Mapping[str, jax.Array]],
         *,
         is_training: bool,
         num_classes: Optional[int] = None,
         mask: Optional[jax.Array] = None,
         vocabulary: int = 30522,
         positions: int = 512,
         position_offset: int = 0,
         types: int = 2,
         width: int = 768,
         depth: int = 12,
         heads: int = 12,
         hidden: Optional[int] = None,
         activation: str = 'gelu',
         epsilon: float = 1e-12,
         head: str = 'embedding',
         pool: str = 'mean',
         normalise: bool = True,
         pooler_activation: Optional[str] = 'tanh',
         dropout: float = 0.0,
         scan: Optional[bool] = None) -> base.Output:
  """A bidirectional encoder: BERT, MiniLM, RoBERTa or DistilBERT.

  The defaults are BERT base. Each block is a module `block_i` with output
  `[B, N, D]`. Inside, `attn` offers its maps as `maps`; its linear maps
  `query`, `key`, `value` and `output`, and those of `mlp`, `up` and `down`, are
  modules too. Activations have the dtype of the tables; norms, softmax, pooling
  and the vectors of texts are float32.

  A position looks at every real one of its document. Places are counted over
  real positions, and the first token is the first real one, so that a text
  gives the same wherever in its row it stands.

  Args:
    inputs: `[..., N]` integers below V, or a dict of such `tokens` and some of
      `positions`, `segments` and `types`; see `sequences.read`. Axes before
      the last, such as that of the two sentences of a pair, are rows alike.
    is_training: whether dropout is active, which takes a random key.
    num_classes: for head 'classification'; other heads make no use of it.
    mask: bool, shaped as tokens or as their first axes, true where a position
      is real; None if all are.
    vocabulary: V.
    positions: rows of the table of places.
    position_offset: which row the first place of a text reads; 2 in RoBERTa.
    types: rows of the table of token types, 0 for no such table, when types in
      `inputs` say nothing. Without types in `inputs` all are of the first.
    width: D.
    depth: the number of blocks.
    heads: H, which divides D.
    hidden: units of a block's MLP; None for 4 D.
    activation: a name from `layers.ACTIVATIONS`, for the MLP, and for the
      transform of head 'masked_lm'.
    epsilon: added to the variance in a norm.
    head: 'embedding', a vector for each text; 'classification', logits for
      each text, from its first token; 'masked_lm', logits for each position,
      made by the table that embeds.
    pool: what a vector is read from: 'mean', the mean over real positions, or
      'token', the first token. For head 'embedding'.
    normalise: whether vectors have length 1. For head 'embedding'.
    pooler_activation: of the linear map before the logits: 'tanh' in BERT and
      RoBERTa, 'relu' in DistilBERT; None for no such map. For head
      'classification'.
    dropout: rate, in training, on the embedding, at the end of each branch and
      before the logits of head 'classification'.
    scan: whether to compile one block and loop over it. The blocks' parameters
      are then stacked, `[depth, ...]`, under the one name `block`. None for so
      above 12 blocks.

  Returns:
    By head: an Embedding of vectors `[..., D]`, offered as the tap `embedding`
    too; logits `[..., V]`; or LinearLogits that stand for `[..., N, V]`. Texts
    do not interact.

  Raises:
    ConfigError: an option that cannot be, or rows longer than the table of
      places; the legal values are named.
    TypeError: tokens are not integers, or the mask is not boolean.
    ValueError: `inputs` or `mask` of another form, or several documents in a
      row where the head reads one.

  References:
    BERT: Devlin et al., arXiv:1810.04805. RoBERTa: Liu et al.,
    arXiv:1907.11692. DistilBERT: Sanh et al., arXiv:1910.01108. Vectors of
    sentences: Reimers and Gurevych, arXiv:1908.10084, section 3.
  """
  where = 'models.bert'
  hidden = 4 * width if hidden is None else hidden
  layers.check_positive(
      where, vocabulary=vocabulary, positions=positions, width=width,
      depth=depth, heads=heads, hidden=hidden)
  layers.check_at_least_zero(
      where, position_offset=position_offset, types=types)
  layers.check_divides(where, heads=heads, width=width)
  layers.check_above_zero(where, epsilon=epsilon)
  layers.check_fraction(where, dropout=dropout)
  layers.check_choice(where, 'head', head, HEADS)
  layers.check_choice(where, 'pool', pool, POOLS)
  function = layers.activation(where, activation)
  sequence, leading = _read(where, inputs, mask)
  _check_rows(where, sequence, head, positions - position_offset)
  allowed = sequence.allowed(causal=False)

  def block(features, name):
    module = Block(heads, hidden, function, epsilon, dropout, is_training, name)
    return module(features, allowed)

  embed = Embed(vocabulary, positions, position_offset, types, width, epsilon)
  features = layers.dropout(embed(sequence), dropout, is_training)
  features = layers.run_blocks(block, depth, features, scan)
  if head == 'masked_lm':
    transformed = function(layers.Linear(width, name='transform')(features))
    transformed = transformer.layer_norm(transformed, epsilon, 'transform_norm')
    transformed = transformed.reshape(*leading, -1, width)
    return Unembed()(transformed, embed.embeddings)
  if head == 'embedding':
    vectors = _pooled(features, sequence.mask, pool)
    vectors = _unit(vectors) if normalise else vectors
    vectors = vectors.reshape(*leading, width)
    return base.Embedding(tap_lib.tap('embedding', vectors))
  layers.check_positive(where, num_classes=num_classes)
  token = _first(features, sequence.mask)
  if pooler_activation is not None:
    function = layers.activation(where, pooler_activation)
    token = function(layers.Linear(width, name='pooler')(token))
  token = layers.dropout(token, dropout, is_training)
  logits = layers.Linear(num_classes, name='logits')(token)
  return logits.reshape(*leading, num_classes)


def _read(where: str, inputs: Any, mask: Optional[jax.Array]):
  """Returns all rows as a Sequence, and the axes that they come from."""
  columns = inputs if isinstance(inputs, Mapping) else dict(tokens=inputs)
  tokens = columns.get('tokens')
  if tokens is None or tokens.ndim < 2:
    return sequences.read(where, inputs, mask), ()  # Says what is wrong.
  mask = layers.position_mask(where, mask, tokens)
  rows = lambda x: x.reshape(-1, x.shape[-1])
  columns = jax.tree.map(rows, dict(columns))
  return sequences.read(where, columns, rows(mask)), tokens.shape[:-1]


def _check_rows(where: str, sequence: sequences.Sequence, head: str,
                places: int) -> None:
  length = sequence.tokens.shape[1]
  if length > places:
    raise checks.ConfigError(
        f'{where}: rows must be of no more tokens than there are places; got '
        f'{length} tokens, and positions - position_offset = {places}. Cut '
        'the rows, or raise positions.')
  if sequence.segments is not None and head != 'masked_lm':
    raise ValueError(
        f'{where}: rows must hold one text each for head={head!r}; got '
        'segments, of rows packed with several. Choose rows that are padded.')


def _first(features: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns the first real position of each row, `[B, D]`."""
  place = jnp.argmax(mask, axis=1)[:, None, None]
  return jnp.take_along_axis(features, place, axis=1)[:, 0]


def _pooled(features: jax.Array, mask: jax.Array, pool: str) -> jax.Array:
  """Returns a vector for each row, `[B, D]` float32; 0 if nothing is real."""
  if pool == 'token':
    return _first(features, mask).astype(jnp.float32)
  total = jnp.sum(
      features, axis=1, where=mask[..., None], dtype=jnp.float32)
  return total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)


def _unit(vectors: jax.Array) -> jax.Array:
  # The maximum is inside the root, whose gradient at 0 is infinite.
  squares = jnp.sum(vectors**2, axis=-1, keepdims=True)
  return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
