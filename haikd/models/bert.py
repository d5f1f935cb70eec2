"""A text encoder of the BERT family."""

from collections.abc import Mapping
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
  """Token, position and type embeddings, added and normalised."""

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
    """The token embeddings, `[V, D]`."""
    return self._table('embeddings', self.vocabulary)

  def __call__(self, sequence: sequences.Sequence) -> jax.Array:
    """Maps rows of `[B, N]` to `[B, N, D]`."""
    outputs = self.embeddings[sequence.tokens]
    rows = sequence.positions + self.position_offset
    outputs += self._table('positions', self.positions)[rows]
    if self.types:
      types = 0 if sequence.types is None else sequence.types
      outputs += self._table('types', self.types)[types]
    return transformer.layer_norm(outputs, self.epsilon, 'norm')

  def _table(self, name, rows):
    init = hk.initializers.TruncatedNormal(0.02)
    return hk.get_parameter(name, (rows, self.width), init=init)


class Block(hk.Module):
  """Post-norm transformer block.

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

    def add(features, branch, norm):
      branch = layers.dropout(branch, self.dropout, self.is_training)
      return transformer.layer_norm(features + branch, self.epsilon, norm)

    attention = transformer.Attention(self.heads)
    attended = add(inputs, attention(inputs, allowed), 'norm_attn')
    mlp = transformer.Mlp(self.hidden, self.activation)
    return add(attended, mlp(attended), 'norm_mlp')


class Unembed(hk.Module):
  """Maps positions to lazy logits, with the token embeddings as kernel."""

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
        # As in llama: heads, hidden units and embedding features are split,
        # and the products of `output` and `down` are summed over the axis.
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
  `[B, N, D]`. Inside it, `attn` offers its maps as `maps`. The linear maps
  `query`, `key`, `value` and `output` of `attn`, and `up` and `down` of `mlp`,
  are modules too. Activations have the dtype of the embeddings; norms, softmax,
  pooling and text vectors are float32.

  A position attends to every real position of its document. Only real positions
  are counted, and the first token is the first real one, so that a text gives
  the same outputs wherever in its row it starts.

  Args:
    inputs: `[..., N]` integers below V, or a dict of such `tokens` and any of
      `positions`, `segments` and `types`; see `sequences.read`. All axes before
      the last, such as the axis of the two sentences of a pair, count rows.
    is_training: whether dropout is active, which takes a random key.
    num_classes: for head 'classification'; other heads ignore it.
    mask: bool, of the shape of tokens or of their first axes, true where a
      position is real; None if all are.
    vocabulary: V.
    positions: rows of the position embeddings.
    position_offset: the row for the first position of a text; 2 in RoBERTa.
    types: rows of the type embeddings; 0 for no type embeddings, and types in
      `inputs` are then ignored. Without types in `inputs` all are of type 0.
    width: D.
    depth: the number of blocks.
    heads: H, which divides D.
    hidden: units of a block's MLP; None for 4 D.
    activation: a name from `layers.ACTIVATIONS`, for the MLP, and for the
      transform of head 'masked_lm'.
    epsilon: added to the variance in a norm.
    head: 'embedding', a vector for each text; 'classification', logits for
      each text, from its first token; 'masked_lm', logits for each position,
      with the token embeddings as kernel.
    pool: how a text becomes a vector: 'mean', the mean over real positions, or
      'token', the first token. For head 'embedding'.
    normalise: whether vectors have length 1. For head 'embedding'.
    pooler_activation: the activation of the linear map before the logits:
      'tanh' in BERT and RoBERTa, 'relu' in DistilBERT; None for no such map.
      For head 'classification'.
    dropout: rate, in training, on the embedding, at the end of each branch and
      before the logits of head 'classification'.
    scan: whether to compile one block and loop over it. The blocks' parameters
      are then stacked, `[depth, ...]`, under the one name `block`. None: only
      above 12 blocks.

  Returns:
    By head: an Embedding of vectors `[..., D]`, also offered as the tap
    `embedding`; logits `[..., num_classes]`; or LinearLogits, `[..., N, V]`.
    Texts do not interact.

  Raises:
    ConfigError: an invalid option, or rows longer than the position embeddings;
      the message gives the rule.
    TypeError: tokens are not integers, or the mask is not boolean.
    ValueError: `inputs` or `mask` of another form, or several documents in a
      row where the head reads one.

  References:
    BERT: Devlin et al., arXiv:1810.04805. RoBERTa: Liu et al.,
    arXiv:1907.11692. DistilBERT: Sanh et al., arXiv:1910.01108. Sentence
    vectors: Reimers and Gurevych, arXiv:1908.10084, section 3.
  """
  hidden = 4 * width if hidden is None else hidden
  layers.check_positive(
      vocabulary=vocabulary,
      positions=positions,
      width=width,
      depth=depth,
      heads=heads,
      hidden=hidden)
  layers.check_at_least_zero(position_offset=position_offset, types=types)
  layers.check_divides(heads=heads, width=width)
  layers.check_above_zero(epsilon=epsilon)
  layers.check_fraction(dropout=dropout)
  layers.check_choice('head', head, HEADS)
  layers.check_choice('pool', pool, POOLS)
  function = layers.activation('activation', activation)
  sequence, leading = _read(inputs, mask)
  _check_rows(sequence, head, positions - position_offset)
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
  if num_classes is None:
    raise checks.ConfigError(
        f'num_classes must be given with head={head!r}; got None.')
  layers.check_positive(num_classes=num_classes)
  token = _first(features, sequence.mask)
  if pooler_activation is not None:
    function = layers.activation('pooler_activation', pooler_activation)
    token = function(layers.Linear(width, name='pooler')(token))
  token = layers.dropout(token, dropout, is_training)
  logits = layers.Linear(num_classes, name='logits')(token)
  return logits.reshape(*leading, num_classes)


def _read(
    inputs: Any, mask: Optional[jax.Array]
) -> tuple[sequences.Sequence, tuple[int, ...]]:
  """Flattens the leading axes into rows; returns the rows and these axes."""
  columns = inputs if isinstance(inputs, Mapping) else dict(tokens=inputs)
  tokens = columns.get('tokens')
  if tokens is None or tokens.ndim < 2:
    return sequences.read(inputs, mask), ()  # Raises: inputs are no rows.
  mask = layers.position_mask(mask, tokens)
  rows = lambda x: x.reshape(-1, x.shape[-1])
  columns = jax.tree.map(rows, dict(columns))
  return sequences.read(columns, rows(mask)), tokens.shape[:-1]


def _check_rows(sequence: sequences.Sequence, head: str, limit: int) -> None:
  length = sequence.tokens.shape[1]
  if length > limit:
    raise checks.ConfigError(
        'positions - position_offset must be at least the length of rows; got '
        f'{limit}, and rows of {length} tokens. Cut the rows, or raise '
        'positions.')
  if sequence.segments is not None and head != 'masked_lm':
    raise ValueError(
        f'rows must hold one text each for head={head!r}; got segments, which '
        'mark rows packed with several. Choose a data set of padded rows.')


def _first(features: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns the first real position of each row, `[B, D]`."""
  first = jnp.argmax(mask, axis=1)[:, None, None]
  return jnp.take_along_axis(features, first, axis=1)[:, 0]


def _pooled(features: jax.Array, mask: jax.Array, pool: str) -> jax.Array:
  """Returns a vector for each row, `[B, D]` float32; 0 for all padding."""
  if pool == 'token':
    return _first(features, mask).astype(jnp.float32)
  total = jnp.sum(
      features, axis=1, where=mask[..., None], dtype=jnp.float32)
  return total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)


def _unit(vectors: jax.Array) -> jax.Array:
  # The maximum is inside the root: the gradient of a root at 0 is infinite.
  squares = jnp.sum(vectors**2, axis=-1, keepdims=True)
  return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
