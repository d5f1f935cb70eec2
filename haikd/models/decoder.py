"""The parts of a decoder of the Llama family."""

from collections.abc import Mapping
from typing import Any, Optional, Union

import haiku as hk
import jax
import jax.numpy as jnp

from haikd import attention
from haikd.core import attention_mask
from haikd.core import base
from haikd.core import tap as tap_lib
from haikd.models import layers
from haikd.models import rotary
from haikd.models import sequences


class Embed(hk.Module):
  """Token embeddings: rows of a table, `[V, D]`."""

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
  """Causal grouped-query attention; offers its maps as the tap `maps`.

  Args:
    heads: the number of query heads, H.
    key_value_heads: the number of heads of keys and values, G.
    head_size: the features of a head, K.
    qk_norm: whether each head's queries and keys are normalised.
    qkv_bias: whether queries, keys and values have biases.
    output_bias: whether the output has a bias.
    epsilon: added to the variance in those norms.
    name: the module's name.
  """

  def __init__(self, *, heads: int, key_value_heads: int, head_size: int,
               qk_norm: bool, qkv_bias: bool, output_bias: bool, epsilon: float,
               name: str = 'attn'):
    super().__init__(name=name)
    self.heads = heads
    self.key_value_heads = key_value_heads
    self.head_size = head_size
    self.qk_norm = qk_norm
    self.qkv_bias = qkv_bias
    self.output_bias = output_bias
    self.epsilon = epsilon

  def __call__(self, inputs: jax.Array, rotation: rotary.Rotation,
               allowed: attention_mask.AttentionMask) -> jax.Array:
    """Maps `[B, N, D]` to `[B, N, D]`."""
    batch, length, width = inputs.shape

    def heads(name, count):
      linear = layers.Linear(
          count * self.head_size, name, with_bias=self.qkv_bias)
      return linear(inputs).reshape(batch, length, count, self.head_size)

    query = heads('query', self.heads)
    key = heads('key', self.key_value_heads)
    value = heads('value', self.key_value_heads)
    if self.qk_norm:
      query = norm(query, self.epsilon, 'norm_query')
      key = norm(key, self.epsilon, 'norm_key')
    query = rotary.rotate(query, rotation) * self.head_size**-0.5
    key = rotary.rotate(key, rotation)
    query_key = base.QueryKey(
        query.astype(inputs.dtype), key.astype(inputs.dtype), allowed)
    outputs = attention.attend(tap_lib.tap('maps', query_key), value)
    linear = layers.Linear(width, 'output', with_bias=self.output_bias)
    return linear(outputs.reshape(batch, length, -1))


class Mlp(hk.Module):
  """Gated MLP: an activated gate times a linear map, then a map to D."""

  def __init__(self, *, hidden: int, activation: layers.Activation, bias: bool,
               name: str = 'mlp'):
    super().__init__(name=name)
    self.hidden = hidden
    self.activation = activation
    self.bias = bias

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps `[B, N, D]` to `[B, N, D]`."""

    def linear(size, name, inputs):
      return layers.Linear(size, name, with_bias=self.bias)(inputs)

    gate = self.activation(linear(self.hidden, 'gate', inputs))
    outputs = gate * linear(self.hidden, 'up', inputs)
    return linear(inputs.shape[-1], 'down', outputs)


class Block(hk.Module):
  """Pre-norm transformer block with RMSNorm.

  Its call takes arrays only, so that `hk.remat` can wrap it.
  """

  def __init__(self, attention: Mapping[str, Any], mlp: Mapping[str, Any],
               epsilon: float, dropout: float, is_training: bool, name: str):
    super().__init__(name=name)
    self.attention = attention
    self.mlp = mlp
    self.epsilon = epsilon
    self.dropout = dropout
    self.is_training = is_training

  def __call__(self, inputs: jax.Array, rotation: rotary.Rotation,
               sequence: sequences.Sequence,
               window: Optional[Union[int, jax.Array]]) -> jax.Array:
    """Maps `[B, N, D]` to `[B, N, D]`."""

    def branch(name, module, features, *arguments):
      outputs = module(norm(features, self.epsilon, name), *arguments)
      return layers.dropout(outputs, self.dropout, self.is_training)

    module = Attention(epsilon=self.epsilon, **self.attention)
    allowed = sequence.allowed(causal=True, window=window)
    attended = inputs + branch('norm_attn', module, inputs, rotation, allowed)
    return attended + branch('norm_mlp', Mlp(**self.mlp), attended)


class Unembed(hk.Module):
  """Maps positions to lazy logits."""

  def __init__(self, vocabulary: int):
    super().__init__(name='logits')
    self.vocabulary = vocabulary

  def __call__(self, hidden: jax.Array) -> base.LinearLogits:
    """Maps `[B, N, D]` to `[B, N, V]`."""
    width = hidden.shape[-1]
    init = hk.initializers.TruncatedNormal(width**-0.5)
    kernel = hk.get_parameter('w', (width, self.vocabulary), hidden.dtype, init)
    return base.LinearLogits(hidden, kernel)


def norm(inputs: jax.Array, epsilon: float, name: str) -> jax.Array:
  """Divides by the root mean square of the last axis, in float32."""
  module = hk.RMSNorm(-1, eps=epsilon, name=name)
  return module(inputs.astype(jnp.float32)).astype(inputs.dtype)
