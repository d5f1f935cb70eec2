"""The parts of a transformer with LayerNorm."""

from typing import Optional, Union

import haiku as hk
import jax
import jax.numpy as jnp

from haikd import attention
from haikd.core import attention_mask
from haikd.core import base
from haikd.models import layers


class Attention(hk.Module):
  """Multi-head self-attention; offers its maps as the tap `maps`.

  Args:
    heads: H.
    head_size: K; None for D / H.
    scaled: whether scores are divided by the root of K.
    qkv_bias: whether queries, keys and values have biases.
    output_bias: whether the output has a bias.
    name: the module's name.
  """

  def __init__(self, heads: int, *, head_size: Optional[int] = None,
               scaled: bool = True, qkv_bias: bool = True,
               output_bias: bool = True, name: str = 'attn'):
    super().__init__(name=name)
    self.heads = heads
    self.head_size = head_size
    self.scaled = scaled
    self.qkv_bias = qkv_bias
    self.output_bias = output_bias

  def __call__(
      self,
      inputs: jax.Array,
      allowed: Optional[Union[jax.Array, attention_mask.AttentionMask]] = None,
      bias: Optional[jax.Array] = None,
  ) -> jax.Array:
    """Maps `[B, N, D]` to `[B, N, D]`.

    Args:
      inputs: `[B, N, D]` floating.
      allowed: which keys a query may attend to, as in `base.QueryKey`; None for
        all.
      bias: what is added to scores, as in `base.QueryKey`; None for nothing.

    Returns:
      `[B, N, D]` in the dtype of `inputs`.
    """
    batch, length, width = inputs.shape
    head_size = self.head_size or width // self.heads

    def heads(name):
      linear = layers.Linear(
          self.heads * head_size, name, with_bias=self.qkv_bias)
      outputs = linear(inputs)
      return outputs.reshape(*inputs.shape[:-1], self.heads, -1)

    query, key, value = heads('query'), heads('key'), heads('value')
    if self.scaled:
      query *= head_size**-0.5
    query_key = base.QueryKey(query, key, allowed, bias=bias)
    outputs = attention.attend_and_tap(query_key, value)
    linear = layers.Linear(width, 'output', with_bias=self.output_bias)
    return linear(outputs.reshape(batch, length, -1))


class Mlp(hk.Module):
  """Two linear layers with an activation between them."""

  def __init__(self, hidden: int, activation: layers.Activation, *,
               with_bias: bool = True, name: str = 'mlp'):
    super().__init__(name=name)
    self.hidden = hidden
    self.activation = activation
    self.with_bias = with_bias

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps `[B, N, D]` to `[B, N, D]`."""
    up, down = (
        layers.Linear(size, name, with_bias=self.with_bias)
        for size, name in ((self.hidden, 'up'), (inputs.shape[-1], 'down')))
    return down(self.activation(up(inputs)))


def layer_norm(inputs: jax.Array, epsilon: float, name: str, *,
               offset: bool = True) -> jax.Array:
  """Normalises the last axis in float32, with a scale and perhaps an offset."""
  norm = layers.LayerNorm(epsilon, name, offset=offset)
  return norm(inputs.astype(jnp.float32)).astype(inputs.dtype)
