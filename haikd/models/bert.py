"""A text encoder of the BERT family."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import haiku as hk
import jax

from haikd.core import attention_mask
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.models import encoder
from haikd.models import layers
from haikd.models import relative
from haikd.models import sequences
from haikd.models import transformer

_MAX_DISTANCE = 128  # Of relative positions in MPNet.


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

  def __call__(self, inputs: jax.Array, allowed: attention_mask.AttentionMask,
               bias: Optional[jax.Array]) -> jax.Array:
    """Maps `[B, N, D]` to the same; arguments as in `transformer.Attention`."""

    def add(features, branch, norm):
      branch = layers.dropout(branch, self.dropout, self.is_training)
      return transformer.layer_norm(features + branch, self.epsilon, norm)

    attention = transformer.Attention(self.heads)
    attended = add(inputs, attention(inputs, allowed, bias), 'norm_attn')
    mlp = transformer.Mlp(self.hidden, self.activation)
    return add(attended, mlp(attended), 'norm_mlp')


@registry.register_model(
    taps=encoder.TAPS,
    task=encoder.task,
    tensor=layers.TEXT_TENSOR_AXES)
def bert(inputs: Union[jax.Array, Mapping[str, jax.Array]],
         *,
         is_training: bool,
         num_classes: Optional[int] = None,
         mask: Optional[jax.Array] = None,
         vocabulary: int = 30522,
         positions: int = 512,
         position_offset: int = 0,
         relative_buckets: int = 0,
         types: int = 2,
         width: int = 768,
         depth: int = 12,
         heads: int = 12,
         hidden: Optional[int] = None,
         activation: str = 'gelu',
         epsilon: float = 1e-12,
         head: str = 'embedding',
         pool: str = 'mean',
         dense: Sequence[Mapping[str, Any]] = (),
         normalise: bool = True,
         pooler_activation: Optional[str] = 'tanh',
         dropout: float = 0.0,
         scan: Optional[bool] = None) -> base.Output:
  """A bidirectional encoder: BERT, MiniLM, RoBERTa, DistilBERT or MPNet.

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
    position_offset: the row for the first position of a text; 2 in RoBERTa and
      MPNet.
    relative_buckets: buckets of relative positions, each with a number a head
      that is added to scores: a multiple of 4, 32 in MPNet; 0 for none.
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
    pool: how a text becomes a vector: 'mean', 'max' or 'mean_sqrt' of its
      positions, or its 'token' or 'last_token', the first or last; see
      `encoder.pooled`; or 'none', a vector for each token, for late
      interaction. For head 'embedding'.
    dense: linear layers after pooling, each a dict of `size` and any of
      `activation`, `bias` and `normalise` (before the layer). For head
      'embedding'.
    normalise: whether vectors have length 1. For head 'embedding'.
    pooler_activation: the activation of the linear map before the logits:
      'relu' in DistilBERT, 'tanh' in the others; None for no such map. For head
      'classification'.
    dropout: rate, in training, on the embedding, at the end of each branch and
      before the logits of head 'classification'.
    scan: whether to compile one block and loop over it. The blocks' parameters
      are then stacked, `[depth, ...]`, under the one name `block`. None: only
      above 12 blocks.

  Returns:
    By head: an Embedding of vectors `[..., D]`, also offered as the tap
    `embedding`, or with pool='none' a TokenEmbedding, `[..., N, D]`, as the tap
    `token_embedding`; logits `[..., num_classes]`; or LinearLogits,
    `[..., N, V]`. Texts do not interact.

  Raises:
    ConfigError: an invalid option, or rows longer than the position embeddings;
      the message gives the rule.
    TypeError: tokens are not integers, or the mask is not boolean.
    ValueError: `inputs` or `mask` of another form, or several documents in a
      row where the head reads one.

  References:
    BERT: Devlin et al., arXiv:1810.04805. RoBERTa: Liu et al.,
    arXiv:1907.11692. DistilBERT: Sanh et al., arXiv:1910.01108. MPNet: Song et
    al., arXiv:2004.09297. Sentence vectors: Reimers and Gurevych,
    arXiv:1908.10084, section 3.
  """
  hidden = 4 * width if hidden is None else hidden
  layers.check_positive(
      vocabulary=vocabulary,
      positions=positions,
      width=width,
      depth=depth,
      heads=heads,
      hidden=hidden)
  layers.check_at_least_zero(
      position_offset=position_offset,
      relative_buckets=relative_buckets,
      types=types)
  if relative_buckets:
    relative.check(
        relative_buckets=relative_buckets, max_distance=_MAX_DISTANCE)
  layers.check_divides(heads=heads, width=width)
  layers.check_above_zero(epsilon=epsilon)
  layers.check_fraction(dropout=dropout)
  classes = encoder.check_head(head=head, num_classes=num_classes)
  encoder.check_pooling(pool=pool, dense=dense, head=head)
  function = layers.activation('activation', activation)
  sequence, leading = encoder.read(inputs, mask)
  encoder.check_one_text(sequence, head)
  _check_length(sequence, positions - position_offset)
  allowed = sequence.allowed(causal=False)

  bias = None
  if relative_buckets:
    positions_apart = relative.RelativeBias(
        heads, relative_buckets, _MAX_DISTANCE)
    bias = positions_apart(sequence.tokens.shape[1])

  def block(features, name):
    module = Block(heads, hidden, function, epsilon, dropout, is_training, name)
    return module(features, allowed, bias)

  embed = Embed(vocabulary, positions, position_offset, types, width, epsilon)
  features = layers.dropout(embed(sequence), dropout, is_training)
  features = layers.run_blocks(block, depth, features, scan)
  if head == 'masked_lm':
    transformed = encoder.transform(features, function, epsilon)
    transformed = transformed.reshape(*leading, -1, width)
    return encoder.Unembed()(transformed, embed.embeddings)
  if head == 'embedding':
    return encoder.embedding(
        features, sequence.mask, leading, pool=pool, dense=dense,
        normalise=normalise)
  token = encoder.pooled(features, sequence.mask, 'token')
  if pooler_activation is not None:
    function = layers.activation('pooler_activation', pooler_activation)
    token = function(layers.Linear(width, name='pooler')(token))
  token = layers.dropout(token, dropout, is_training)
  logits = layers.Linear(classes, name='logits')(token)
  return logits.reshape(*leading, classes)


def _check_length(sequence: sequences.Sequence, limit: int) -> None:
  length = sequence.tokens.shape[1]
  if length > limit:
    raise checks.ConfigError(
        'positions - position_offset must be at least the length of rows; got '
        f'{limit}, and rows of {length} tokens. Cut the rows, or raise '
        'positions.')
