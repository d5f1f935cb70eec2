"""Models whose parameters are the inputs of one loss, and nothing else."""

from typing import Optional

import haiku as hk
import jax
import jax.numpy as jnp

from haikd.core import attention_mask
from haikd.core import base
from haikd.core import registry
from haikd.core import tap as tap_lib


@registry.register_model('bench/hidden')
def hidden(inputs: jax.Array, *, is_training: bool, num_classes: int,
           rows: int, width: int) -> base.LinearLogits:
  """The last hidden states of a language model, as parameters.

  Args:
    inputs: tokens, `[B, N]`; their shape alone is used.
    is_training: not used.
    num_classes: V.
    rows: B of the global batch, since a network is initialised on one example.
    width: D.

  Returns:
    LinearLogits of shape `[B, N, V]`.
  """
  del is_training
  states = _drawn('hidden', 1.0, rows, inputs.shape[1], width)
  kernel = _drawn('kernel', width**-0.5, width, num_classes)
  return base.LinearLogits(states[:len(inputs)], kernel)


@registry.register_model('bench/maps', taps=dict(attention='maps'))
def maps(inputs: jax.Array, *, is_training: bool, mask: Optional[jax.Array],
         rows: int, heads: int, head_size: int) -> jax.Array:
  """Queries and keys of one layer of causal attention, as the tap `maps`.

  Args:
    inputs: tokens, `[B, N]`; their shape alone is used.
    is_training: not used.
    mask: bool, `[B, N]`, true where a position is real.
    rows: B of the global batch.
    heads: H.
    head_size: K.

  Returns:
    Zeros, `[B, N, 1]`, in place of logits.
  """
  del is_training
  allowed = attention_mask.AttentionMask(mask, causal=True)
  query, key = (
      _drawn(name, scale, rows, inputs.shape[1], heads, head_size)
      for name, scale in (('query', head_size**-0.5), ('key', 1.0)))
  count = len(inputs)
  tap_lib.tap('maps', base.QueryKey(query[:count], key[:count], allowed))
  return jnp.zeros((*inputs.shape, 1))


def _drawn(name, scale, *shape):
  return hk.get_parameter(name, shape, init=hk.initializers.RandomNormal(scale))
