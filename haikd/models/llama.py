"""A decoder language model of the Llama family."""

from typing import Optional

import haiku as hk
import jax
import jax.numpy as jnp

from haikd import base
from haikd import checks
from haikd import registry
from haikd import tapping
from haikd.models import layers

Rotation = tuple[jax.Array, jax.Array]  # Cosine and sine, `[B, N, K/2]`.


class Embed(hk.Module):
  """Looks tokens up in a table, `[V, D]`."""

  def __init__(self, vocabulary: int, width: int):
    super().__init__(name='embed')
    self.vocabulary = vocabulary
    self.width = width

  @property
  def embeddings(self) -> jax.Array:
    """The table."""
    return hk.get_parameter('embeddings', (self.vocabulary, self.width),
                            init=hk.initializers.TruncatedNormal(0.02))

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps `[B, N]` to `[B, N, D]`."""
    return self.embeddings[tokens]


class Attention(hk.Module):
  """Causal grouped-query attention; offers its maps as the tap `maps`."""

  def __init__(self, heads: int, key_value_heads: int, head_size: int,
               name: str = 'attn'):
    super().__init__(name=name)
    self.heads = heads
    self.key_value_heads = key_value_heads
    self.head_size = head_size

  def __call__(self, inputs: jax.Array, rotation: Rotation,
               mask: jax.Array) -> jax.Array:
    """Maps `[B, N, D]` to `[B, N, D]`; `mask` is `[B, N]`."""
    batch, length, width = inputs.shape

    def heads(name, count):
      outputs = _linear(count * self.head_size, name)(inputs)
      return outputs.reshape(batch, length, count, self.head_size)

    query = heads('query', self.heads)
    key = heads('key', self.key_value_heads)
    value = heads('value', self.key_value_heads)
    query = rotate(query, rotation) * self.head_size**-0.5
    key = rotate(key, rotation)
    looks = jnp.tri(length, dtype=bool) & mask[:, None, None, :]
    query_key = base.QueryKey(
        query.astype(inputs.dtype), key.astype(inputs.dtype), looks)
    maps = tapping.tap('maps', query_key).materialise().astype(value.dtype)
    # Key head g serves the query heads from g H/G on, without being repeated.
    maps = maps.reshape(batch, self.key_value_heads, -1, length, length)
    outputs = jnp.einsum('bgrnm,bmgk->bngrk', maps, value)
    return _linear(width, 'output')(outputs.reshape(batch, length, -1))


class Mlp(hk.Module):
  """SwiGLU: one linear map gates another, and a third leads back."""

  def __init__(self, hidden: int, name: str = 'mlp'):
    super().__init__(name=name)
    self.hidden = hidden

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps `[B, N, D]` to `[B, N, D]`."""
    gate = jax.nn.silu(_linear(self.hidden, 'gate')(inputs))
    outputs = gate * _linear(self.hidden, 'up')(inputs)
    return _linear(inputs.shape[-1], 'down')(outputs)


class Block(hk.Module):
  """Attention and MLP, each behind a norm and beside a shortcut.

  Its call takes nothing but arrays, so that it can be recomputed as it is.
  """

  def __init__(self, attention: dict[str, int], hidden: int, epsilon: float,
               dropout: float, is_training: bool, name: str):
    super().__init__(name=name)
    self.attention = attention
    self.hidden = hidden
    self.epsilon = epsilon
    self.dropout = dropout
    self.is_training = is_training

  def __call__(self, inputs: jax.Array, rotation: Rotation,
               mask: jax.Array) -> jax.Array:
    """Maps `[B, N, D]` to `[B, N, D]`; `mask` is `[B, N]`."""

    def branch(norm, module, positions, *more):
      outputs = module(_norm(positions, self.epsilon, norm), *more)
      return layers.dropout(outputs, self.dropout, self.is_training)

    attention = Attention(**self.attention)
    middle = inputs + branch('norm_attn', attention, inputs, rotation, mask)
    return middle + branch('norm_mlp', Mlp(self.hidden), middle)


class Unembed(hk.Module):
  """Makes logits of positions, which are not computed yet."""

  def __init__(self, vocabulary: int):
    super().__init__(name='logits')
    self.vocabulary = vocabulary

  def __call__(self, hidden: jax.Array) -> base.LinearLogits:
    """Maps `[B, N, D]` to `[B, N, V]`."""
    width = hidden.shape[-1]
    init = hk.initializers.TruncatedNormal(width**-0.5)
    kernel = hk.get_parameter('w', (width, self.vocabulary), hidden.dtype, init)
    return base.LinearLogits(hidden, kernel)


@registry.register_model(
    taps=dict(features='block*', attention='attn/maps'),
    tensor={
        # Whole heads and hidden units lie together; what comes back from them
        # is summed over the axis. Each part of the axis looks up its own
        # features and computes its own stretch of the vocabulary.
        'embed/embeddings': -1,
        'attn/query/w': -1,
        'attn/key/w': -1,
        'attn/value/w': -1,
        'attn/output/w': -2,
        'mlp/gate/w': -1,
        'mlp/up/w': -1,
        'mlp/down/w': -2,
        'logits/w': -1,
    })
def llama(tokens: jax.Array,
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
          epsilon: float = 1e-5,
          tied: bool = False,
          dropout: float = 0.0,
          scan: Optional[bool] = None) -> base.LinearLogits:
  """A decoder language model: what follows each token, given those before.

  Each block is a module `block_i` with output `[B, N, D]`. Inside, `attn`
  offers its maps as `maps`; its linear maps `query`, `key`, `value` and
  `output`, and those of `mlp`, `gate`, `up` and `down`, are modules too. No
  linear map has a bias. Activations have the dtype of the embedding's
  parameters; norms, rotations and softmax are computed in float32.

  A position looks at real positions up to itself, and is rotated by the number
  of real positions before it, so that a sequence gives the same wherever in its
  row it stands. One that may look at nothing, as before a sequence padded on
  the left, has maps of 0 and finite logits.

  Args:
    tokens: `[B, N]` integers below V.
    is_training: whether dropout is active, which takes a random key.
    num_classes: V, the size of the vocabulary.
    mask: bool, `[B, N]` or `[B]`, true where a position is real; None if all
      are.
    width: D.
    depth: the number of blocks.
    heads: H, of queries.
    key_value_heads: G, heads of keys and values, which divides H; None for H.
    head_size: K, even; None for width / heads.
    hidden: units of a block's MLP; None for 8/3 of the width, rounded up to a
      multiple of 64, which makes the MLP as large as one of 4 D with two maps.
    rope_base: features are rotated with wave lengths from 2 pi to nearly
      2 pi times this, in positions.
    epsilon: added to the mean square in a norm.
    tied: whether the table of the embedding serves for the logits too, in place
      of the parameter `logits/w`.
    dropout: rate, in training, on the embedding and at the end of each branch.
    scan: whether to compile one block and loop over it. The blocks' parameters
      are then stacked, `[depth, ...]`, under the one name `block`. None for so
      above 12 blocks.

  Returns:
    LinearLogits that stand for `[B, N, V]`. Examples do not interact.

  Raises:
    ConfigError: an option that cannot be; the legal values are named.
    TypeError: `tokens` is not of integers, or `mask` not boolean.
    ValueError: `tokens` has not two axes, or `mask` does not suit it.

  References:
    Llama: Touvron et al., arXiv:2302.13971, section 2.2; Llama 3:
    arXiv:2407.21783, table 3. Rotation: Su et al., arXiv:2104.09864, equation
    34. Grouped queries: Ainslie et al., arXiv:2305.13245. SwiGLU: Shazeer,
    arXiv:2002.05202, equation 6.
  """
  where = 'models.llama'
  layers.check_tokens(where, tokens)
  mask = layers.position_mask(where, mask, tokens)
  key_value_heads = heads if key_value_heads is None else key_value_heads
  layers.check_positive(
      where,
      num_classes=num_classes,
      width=width,
      depth=depth,
      heads=heads,
      key_value_heads=key_value_heads)
  if head_size is None:
    layers.check_divides(where, heads=heads, width=width)
    head_size = width // heads
  if hidden is None:
    hidden = -(-8 * width // (3 * 64)) * 64
  layers.check_positive(where, head_size=head_size, hidden=hidden)
  layers.check_divides(where, key_value_heads=key_value_heads, heads=heads)
  layers.check_fraction(where, dropout=dropout)
  layers.check_above_zero(where, rope_base=rope_base, epsilon=epsilon)
  if head_size % 2:
    raise checks.ConfigError(
        f'{where}: head_size must be even, since features are rotated in pairs;'
        f' got head_size={head_size}, width={width}, heads={heads}. Choose '
        'another, or other heads.')
  attention = dict(
      heads=heads, key_value_heads=key_value_heads, head_size=head_size)
  rotation = angles(mask, head_size, rope_base)

  def block(positions, name):
    module = Block(attention, hidden, epsilon, dropout, is_training, name)
    return module(positions, rotation, mask)

  embed = Embed(num_classes, width)
  positions = layers.dropout(embed(tokens), dropout, is_training)
  positions = layers.run_blocks(block, depth, positions, scan)
  positions = _norm(positions, epsilon, 'norm')
  if tied:
    return base.LinearLogits(positions, embed.embeddings.T)
  return Unembed(num_classes)(positions)


def angles(mask: jax.Array, head_size: int, rope_base: float) -> Rotation:
  """Returns by how much the features of each position are rotated.

  Args:
    mask: bool, `[B, N]`, true where a position is real; only these count.
    head_size: K.
    rope_base: see `llama`.

  Returns:
    Cosine and sine of position x base^(-2i/K), `[B, N, K/2]` float32.
  """
  places = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
  exponents = jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size
  turns = places[..., None] * rope_base**-exponents
  return jnp.cos(turns), jnp.sin(turns)


def rotate(heads: jax.Array, rotation: Rotation) -> jax.Array:
  """Rotates feature i together with feature i + K/2, as one complex number.

  Args:
    heads: `[B, N, H, K]` floating.
    rotation: what `angles` returns.

  Returns:
    `[B, N, H, K]` float32.
  """
  cosine, sine = (part[:, :, None] for part in rotation)
  real, imaginary = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate(
      [real * cosine - imaginary * sine, real * sine + imaginary * cosine],
      axis=-1)


def _linear(size: int, name: str) -> layers.Linear:
  return layers.Linear(size, name, with_bias=False)


def _norm(inputs: jax.Array, epsilon: float, name: str) -> jax.Array:
  norm = hk.RMSNorm(-1, eps=epsilon, name=name)
  return norm(inputs.astype(jnp.float32)).astype(inputs.dtype)
