"""The parts of a transformer with LayerNorm."""

from typing import Optional, Union

import haiku as hk
import jax
import jax.numpy as jnp

from haikd import attention
from haikd.core import attention_mask
from haikd.core import base
from haikd.core import tap as tap_lib
from haikd.models import layers


class Attention(hk.Module):
  """Multi-head self-attention; offers its maps as the tap `maps`."""

  def __init__(self, heads: int, *, qkv_bias: bool = True, name: str = 'attn'):
    super().__init__(name=name)
    self.heads = heads
    self.qkv_bias = qkv_bias

  def __call__(
      self,
      inputs: jax.Array,
      allowed: Optional[Union[jax.Array, attention_mask.AttentionMask]] = None
  ) -> jax.Array:
    """Maps `[B, N, D]` to `[B, N, D]`.

    Args:
      inputs: `[B, N, D]` floating.
      allowed: which keys a query may attend to, as in `base.QueryKey`; None for
        all.

    Returns:
      `[B, N, D]` in the dtype of `inputs`.
    """
    width = inputs.shape[-1]

    def heads(name):
      linear = layers.Linear(width, name, with_bias=self.qkv_bias)
      outputs = linear(inputs)
      return outputs.reshape(*inputs.shape[:-1], self.heads, -1)

    query, key, value = heads('query'), heads('key'), heads('value')
    query *= query.shape[-1]**-0.5
    query_key = tap_lib.tap('maps', base.QueryKey(query, key, allowed))
    outputs = attention.attend(query_key, value)
    return layers.Linear(width, name='output')(outputs.reshape(inputs.shape))


class Mlp(hk.Module):
  """Two linear layers with an activation between them."""

  def __init__(self, hidden: int, activation: layers.Activation,
               name: str = 'mlp'):
    super().__init__(name=name)
    self.hidden = hidden
    self.activation = activation

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps `[B, N, D]` to `[B, N, D]`."""
    outputs = layers.Linear(self.hidden, name='up')(inputs)
    outputs = self.activation(outputs)
    return layers.Linear(inputs.shape[-1], name='down')(outputs)


def layer_norm(inputs: jax.Array, epsilon: float, name: str) -> jax.Array:
  """Normalises the last axis in float32, with a scale and an offset."""
  norm = hk.LayerNorm(-1, True, True, eps=epsilon, name=name)
  return norm(inputs.astype(jnp.float32)).astype(inputs.dtype)
