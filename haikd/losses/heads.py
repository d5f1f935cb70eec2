"""Losses on the queries, keys and values of attention, head by head.

They compare taps of the linear maps inside attention, for example
`taps=dict(query='attn/query', key='attn/key', value='attn/value')`, which have
the heads one after the other in their last axis.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from haikd.core import base
from haikd.core import checks
from haikd.losses import divergences
from haikd.losses import groups
from haikd.losses import register

_EXCLUDED = -1e9  # A score whose softmax is 0.
_EXAMPLE = dict(student=(2, 3, 4), mask=(2, 3))

Taps = dict[str, jax.Array]


@register.register_loss(
    on=('query', 'key'), example=_EXAMPLE, any_width=True)
def attention_scores_mse(student: Taps, teacher: Taps, *, mask: jax.Array,
                         heads: int) -> base.LossSum:
  """Mean squared error of attention scores, before the softmax.

  The scores of a head are query keyᵀ / √K for heads of size K. Unlike maps,
  they also hold the part of a score that is equal for all keys. Networks need
  the same number of heads, of any size.

  The taps hold queries and keys before any rotation or bias by position, which
  the scores then lack; a causal network's later keys are compared too.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.
  Large batches go through the heads one by one, and again in the backward pass.

  Args:
    student: `{'query': [B, N, H K], 'key': [B, N, H K]}` floating.
    teacher: likewise, with any K.
    mask: bool, `[B]` or `[B, N]`, true where a position counts. Padded queries
      and keys are left out.
    heads: H, a positive integer that divides the widths of both networks.

  Returns:
    A LossSum: the squared errors summed over heads, queries and keys, and their
    number.

  Raises:
    ConfigError: a width is not a multiple of `heads`.
    ValueError: shapes differ in more than the width, or are not `[B, N, D]`.

  References:
    Jiao et al., TinyBERT, arXiv:1909.10351, equation 7. The authors' code keeps
    padded keys, with a score of 0.
  """
  mask = _positions(mask, student)
  pairs = mask[:, :, None] & mask[:, None]

  def error(student, teacher):
    errors = jnp.square(_scores(*student) - _scores(*teacher))
    return jnp.sum(jnp.where(pairs, errors, 0.0))

  sides = (tuple(_split(name, x[kind], heads, 'heads')
                 for kind in ('query', 'key'))
           for name, x in (('student', student), ('teacher', teacher)))
  count = jnp.sum(pairs, dtype=jnp.int32).astype(jnp.float32) * heads
  return base.LossSum(_over_heads(error, *sides), count)


@register.register_loss(
    on=('query', 'key', 'value'), example=_EXAMPLE, any_width=True)
def minilm_relations(
    student: Taps, teacher: Taps, *, mask: jax.Array, relation_heads: int,
    weights: Sequence[float] = (1.0, 1.0, 1.0)) -> base.LossSum:
  """Divergences of the relations among queries, keys and values.

  The queries of all heads are put in a row and cut into relation heads of size
  d. The relation of a relation head is softmax(A Aᵀ / √d), a distribution over
  keys for each position; likewise for keys and values. The loss is
  KL(teacher ‖ student). Networks may have any width and any number of attention
  heads.

  Additive over `B`: the sums of a batch's two halves add up to the batch's.
  Large batches go through the relation heads one by one, and again in the
  backward pass.

  Args:
    student: `{'query', 'key', 'value'}` to `[B, N, D]` floating.
    teacher: likewise, of any width.
    mask: bool, `[B]` or `[B, N]`, true where a position counts. Others are no
      positions of a relation.
    relation_heads: of both networks, a positive integer that divides their
      widths; the paper's 48 for a teacher of width 768 and 64 for one of 1024.
    weights: of the relations of queries, keys and values, at least 0.

  Returns:
    A LossSum: the weighted divergences in nats, summed over the three
    relations, over positions and relation heads; and the number of positions
    times relation heads.

  Raises:
    ConfigError: a width is not a multiple of `relation_heads`, or `weights` are
      not three numbers of at least 0.
    ValueError: shapes differ in more than the width, or are not `[B, N, D]`.

  References:
    Wang et al., MiniLMv2, arXiv:2012.15828, equations 5 to 8, for the relations
    of like with like, which the paper uses. The mean is over the positions of
    all examples at once.
  """
  weights = tuple(weights)
  if len(weights) != 3 or not all(
      checks.is_number(x) and x >= 0 for x in weights):
    raise checks.ConfigError(
        'weights must be three numbers of at least 0, of queries, keys and '
        f'values; got {weights}. Try (1.0, 1.0, 1.0).')
  mask = _positions(mask, student)

  def divergence(student, teacher):
    logits = (jnp.where(mask[:, None], _scores(x, x), _EXCLUDED)
              for x in (student, teacher))
    return jnp.sum(jnp.where(mask, divergences.kl_rows(*logits), 0.0))

  total = jnp.float32(0)
  for kind, weight in zip(('query', 'key', 'value'), weights):
    sides = (_split(name, x[kind], relation_heads, 'relation_heads')
             for name, x in (('student', student), ('teacher', teacher)))
    total += weight * _over_heads(divergence, *sides)
  count = jnp.sum(mask, dtype=jnp.int32).astype(jnp.float32) * relation_heads
  return base.LossSum(total, count)


def _positions(mask: jax.Array, taps: Taps) -> jax.Array:
  """Returns a mask `[B, N]`; raises ValueError for taps of other ranks."""
  for kind, value in taps.items():
    if value.ndim != 3:
      raise ValueError(
          f'{kind} must be [B, N, D]; got student[{kind!r}].shape='
          f"{value.shape}. Tap the linear maps, such as 'attn/{kind}'.")
  shape = next(iter(taps.values())).shape[:2]
  return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (2 - mask.ndim)),
                          shape)


def _split(side: str, value: jax.Array, heads: int, option: str) -> jax.Array:
  """Returns `[H, B, N, K]`."""
  if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or (
      value.shape[-1] % heads):
    raise checks.ConfigError(
        f'{option} must be a positive integer that divides the widths of both '
        f"networks' taps; got {heads}, {side} width {value.shape[-1]}.")
  return jnp.moveaxis(
      value.reshape(*value.shape[:-1], heads, -1), 2, 0)


def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
  """Returns the scores of one head, `[B, N, N]`."""
  return jnp.einsum('bnk,bmk->bnm', query, key) * query.shape[-1]**-0.5


def _over_heads(function: Any, student: Any, teacher: Any) -> jax.Array:
  """Returns the sum of `function(student, teacher)` over the heads."""
  heads, batch, length, _ = jax.tree.leaves(student)[0].shape
  if heads * batch * length**2 <= groups.MOST_AT_ONCE:
    return jnp.sum(jax.vmap(function)(student, teacher))
  each = jax.checkpoint(lambda sides: function(*sides))
  return jnp.sum(lax.map(each, (student, teacher)))
