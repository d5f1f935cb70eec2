"""The parts of a decoder of the Llama family."""

from collections.abc import Mapping
from typing import Any, Optional, Union

import haiku as hk
import jax
from jax import lax
import jax.numpy as jnp

from haikd import attention
from haikd.core import attention_mask
from haikd.core import base
from haikd.models import layers
from haikd.models import rotary
from haikd.models import sequences

SQRT_WIDTH = 'sqrt_width'  # The scale of embeddings that follows from D.
NORMS = ('before', 'after', 'both')  # Where a branch of a block has its norms.
QK_NORMS = ('head', 'all')


class Embed(hk.Module):
  """Token embeddings: rows of a table, `[V, D]`, times a scale."""

  def __init__(self, vocabulary: int, width: int, scale: Union[float, str]):
    super().__init__(name='embed')
    self.vocabulary = vocabulary
    self.width = width
    self.scale = scale

  @property
  def embeddings(self) -> jax.Array:
    """The table."""
    return hk.get_parameter('embeddings', (self.vocabulary, self.width),
                            init=hk.initializers.TruncatedNormal(0.02))

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps `[B, N]` to `[B, N, D]`."""
    outputs = self.embeddings[tokens]
    if self.scale == SQRT_WIDTH:
      # Networks were trained with this number in the compute dtype.
      return outputs * jnp.asarray(self.width**0.5, outputs.dtype)
    return scaled(outputs, float(self.scale))


class Attention(hk.Module):
  """Causal grouped-query attention; offers its maps as the tap `maps`.

  Args:
    heads: the number of query heads, H.
    key_value_heads: the number of heads of keys and values, G.
    head_size: the features of a head, K.
    qk_norm: whether queries and keys are normalised: each 'head', or 'all'
      heads together; None for neither.
    qkv_bias: whether queries, keys and values have biases.
    output_bias: whether the output has a bias.
    scale: what scores are multiplied by.
    soft_cap: c, which bounds the scores by c tanh(scores / c); None for none.
    norms: the options of those norms.
    name: the module's name.
  """

  def __init__(self, *, heads: int, key_value_heads: int, head_size: int,
               qk_norm: Optional[str], qkv_bias: bool, output_bias: bool,
               scale: float, soft_cap: Optional[float],
               norms: Mapping[str, Any], name: str = 'attn'):
    super().__init__(name=name)
    self.heads = heads
    self.key_value_heads = key_value_heads
    self.head_size = head_size
    self.qk_norm = qk_norm
    self.qkv_bias = qkv_bias
    self.output_bias = output_bias
    self.scale = scale
    self.soft_cap = soft_cap
    self.norms = norms

  def __call__(self, inputs: jax.Array, rotation: rotary.Rotation,
               allowed: attention_mask.AttentionMask) -> jax.Array:
    """Maps `[B, N, D]` to `[B, N, D]`."""
    batch, length, width = inputs.shape

    def heads(name, count, qk_norm=None):
      linear = layers.Linear(
          count * self.head_size, name, with_bias=self.qkv_bias)
      outputs = linear(inputs)
      if qk_norm == 'all':
        outputs = norm(outputs, f'norm_{name}', **self.norms)
      outputs = outputs.reshape(batch, length, count, self.head_size)
      if qk_norm == 'head':
        outputs = norm(outputs, f'norm_{name}', **self.norms)
      return outputs

    query = heads('query', self.heads, self.qk_norm)
    key = heads('key', self.key_value_heads, self.qk_norm)
    value = heads('value', self.key_value_heads)
    query = rotary.rotate(query, rotation) * self.scale
    key = rotary.rotate(key, rotation)
    query_key = base.QueryKey(
        query.astype(inputs.dtype), key.astype(inputs.dtype), allowed,
        scalar(self.soft_cap))
    outputs = attention.attend_and_tap(query_key, value)
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


class Experts(hk.Module):
  """Some MLPs for each token, which a router chooses, weighted by it.

  Each MLP is computed for all tokens, one after the other: exact, and simple to
  split over devices, at the cost of those that are not chosen.

  Args:
    count: the number of MLPs, E.
    chosen: how many of them a token gets.
    normalise: whether the weights of those sum to 1.
    mlp: the options of an MLP.
    name: the module's name.
  """

  def __init__(self, *, count: int, chosen: int, normalise: bool,
               mlp: Mapping[str, Any], name: str = 'mlp'):
    super().__init__(name=name)
    self.count = count
    self.chosen = chosen
    self.normalise = normalise
    self.mlp = mlp

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps `[B, N, D]` to `[B, N, D]`."""
    scores = layers.Linear(self.count, 'router', with_bias=False)(inputs)
    shares = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
    values, chosen = lax.top_k(shares, self.chosen)
    if self.normalise:
      values /= jnp.sum(values, axis=-1, keepdims=True)
    weights = jnp.einsum(
        '...k,...ke->...e', values, jax.nn.one_hot(chosen, self.count))
    outputs = jnp.zeros(inputs.shape, jnp.float32)
    for i in range(self.count):
      expert = Mlp(name=f'expert_{i}', **self.mlp)
      outputs += weights[..., i, None] * expert(inputs)
    return outputs.astype(inputs.dtype)


class Block(hk.Module):
  """Transformer block with RMSNorm before or after its branches, or both.

  Its call takes arrays only, so that `hk.remat` can wrap it.

  Args:
    attention: the options of its attention.
    mlp: the options of its MLP, or of each of its experts.
    routing: the further options of `Experts`; None for one MLP.
    norms: the options of its norms.
    norm_places: of `NORMS`.
    residual_scale: what a branch is multiplied by before it is added.
    dropout: rate, at the end of each branch.
    is_training: whether dropout is active.
    name: the module's name.
  """

  def __init__(self, *, attention: Mapping[str, Any], mlp: Mapping[str, Any],
               routing: Optional[Mapping[str, Any]],
               norms: Mapping[str, Any], norm_places: str,
               residual_scale: float, dropout: float, is_training: bool,
               name: str):
    super().__init__(name=name)
    self.attention = attention
    self.mlp = mlp
    self.routing = routing
    self.norms = norms
    self.norm_places = norm_places
    self.residual_scale = residual_scale
    self.dropout = dropout
    self.is_training = is_training

  def __call__(self, inputs: jax.Array, rotation: rotary.Rotation,
               sequence: sequences.Sequence,
               window: Optional[Union[int, jax.Array]]) -> jax.Array:
    """Maps `[B, N, D]` to `[B, N, D]`."""

    def branch(module, features, *arguments):
      name = f'norm_{module.name}'
      if self.norm_places != 'after':
        features = norm(features, name, **self.norms)
      outputs = module(features, *arguments)
      if self.norm_places != 'before':
        outputs = norm(outputs, f'{name}_output', **self.norms)
      outputs = layers.dropout(outputs, self.dropout, self.is_training)
      return scaled(outputs, self.residual_scale)

    module = Attention(norms=self.norms, **self.attention)
    allowed = sequence.allowed(causal=True, window=window)
    attended = inputs + branch(module, inputs, rotation, allowed)
    mlp: hk.Module = (Mlp(**self.mlp) if self.routing is None else
                      Experts(mlp=self.mlp, **self.routing))
    return attended + branch(mlp, attended)


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


def norm(inputs: jax.Array, name: str, *, epsilon: float,
         unit_offset: bool) -> jax.Array:
  """Divides by the root mean square of the last axis, in float32.

  Args:
    inputs: `[..., D]` floating.
    name: of the module, whose parameter is `scale`.
    epsilon: added to the mean square.
    unit_offset: whether the result is multiplied by 1 plus the parameter, in
      place of the parameter itself.

  Returns:
    `[..., D]`, in the dtype of the inputs.
  """

  def factor(next_getter, value, context):
    del context
    scale = next_getter(value).astype(jnp.float32)
    return scale + 1 if unit_offset else scale  # A float32, as all of this.

  module = hk.RMSNorm(-1, eps=epsilon, name=name,
                      scale_init=jnp.zeros if unit_offset else None)
  with hk.custom_getter(factor):
    return module(inputs.astype(jnp.float32)).astype(inputs.dtype)


def scaled(values: jax.Array, scale: float) -> jax.Array:
  """Returns values times a scale, which is not rounded to their dtype."""
  if scale == 1:
    return values
  return (values.astype(jnp.float32) * scale).astype(values.dtype)


def scalar(number: Optional[float]) -> Optional[jax.Array]:
  """Returns a number as a float32 array, or None."""
  return None if number is None else jnp.float32(number)
