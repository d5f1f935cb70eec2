"""Logits and attention maps that are computed when they are asked for."""

from typing import Any, NamedTuple, Optional, Union

import jax
import jax.numpy as jnp

from haikd.core import attention_mask
from haikd.core import distances
from haikd.core import transposed

Array = jax.Array


class LinearLogits(NamedTuple):
  """Lazy logits: `hidden @ kernel + bias`.

  A network with a large vocabulary returns this instead of its logits, so that
  a loss can compute them in chunks.

  Attributes:
    hidden: `[..., D]` floating.
    kernel: `[D, V]` floating; or a `Transposed` table `[V, D]`, such as the
      embeddings of a network that ties them to its logits.
    bias: `[V]` floating, or None.
    scale: a number or scalar that the sum is then multiplied by; None for 1.
    soft_cap: a number or scalar c that bounds the result, which becomes
      c tanh(logits / c); None for no bound.
  """

  hidden: Array
  kernel: transposed.Kernel
  bias: Optional[Array] = None
  scale: Optional[Array] = None
  soft_cap: Optional[Array] = None

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the logits, `[..., V]`."""
    return (*self.hidden.shape[:-1], self.kernel.shape[-1])

  def materialise(self) -> Array:
    """Returns the logits, `[..., V]` float32."""
    return self.finish(self.products())

  def products(self) -> Array:
    """Returns `hidden @ kernel`, `[..., V]` float32."""
    return jnp.einsum('...d,dv->...v', self.hidden, jnp.asarray(self.kernel),
                      preferred_element_type=jnp.float32)

  def finish(self, products: Array) -> Array:
    """Returns the logits, float32, given `hidden @ kernel`."""
    logits = products
    if self.bias is not None:
      logits += self.bias
    if self.scale is not None:
      logits *= self.scale
    return capped(logits, self.soft_cap)


class _Fields(NamedTuple):
  """The fields of QueryKey, which changes a method of NamedTuple."""

  query: Array
  key: Array
  mask: Optional[Union[Array, attention_mask.AttentionMask]] = None
  soft_cap: Optional[Array] = None
  bias: Optional[Array] = None
  maps: Optional[Array] = None


class QueryKey(_Fields):
  """Lazy attention maps: the softmax of the scores `query key^T`.

  Attributes:
    query: `[B, N, H, K]` floating, already multiplied by its scale, such as
      1/sqrt(K).
    key: `[B, M, G, K]` floating; G divides H, and each key head serves H/G
      consecutive query heads (grouped-query attention).
    mask: an AttentionMask; or bool, broadcastable to `[B, H, N, M]`, true where
      a query may attend to a key; or None.
    soft_cap: a float32 scalar c: scores become c tanh(scores / c); or None.
    bias: `[H, N + M - 1]` floating, added to the scores by distance: the column
      j - i + N - 1 for query i and key j. None to add nothing.
    maps: the maps, `[B, H, N, M]` float32, if attention has kept them; or None.
  """

  __slots__ = ()

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the maps, `[B, H, N, M]`."""
    batch, queries, heads, _ = self.query.shape
    return (batch, heads, queries, self.key.shape[1])

  def materialise(self) -> Array:
    """Returns the maps, `[B, H, N, M]` float32; rows sum to 1.

    The row of a query that may attend to no key is all 0.
    """
    if self.maps is not None:
      return self.maps
    key = jnp.repeat(self.key, self.query.shape[2] // self.key.shape[2], axis=2)
    scores = jnp.einsum(
        'bnhk,bmhk->bhnm', self.query, key, preferred_element_type=jnp.float32)
    scores = capped(scores, self.soft_cap)
    if self.bias is not None:
      scores += distances.expand(self.bias, *scores.shape[2:])
    mask = self.mask
    if isinstance(mask, attention_mask.AttentionMask):
      mask = mask.block((0, scores.shape[2]), (0, scores.shape[3]))
    return jax.nn.softmax(scores, axis=-1, where=mask)

  def _replace(self, **changes: Any) -> 'QueryKey':
    """Returns a copy with other fields, and with no maps if none are given."""
    return super()._replace(**{'maps': None, **changes})


def capped(values: Array, soft_cap: Optional[Array]) -> Array:
  """Returns c tanh(values / c) for a soft cap c; the values for None."""
  return values if soft_cap is None else soft_cap * jnp.tanh(values / soft_cap)
