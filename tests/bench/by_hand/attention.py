"""Attention, with its maps whole, or in blocks of queries."""

import jax
import jax.numpy as jnp


def allowed(mask, length, causal):
  """Returns where a query may look: bool, broadcastable to `[B, H, N, N]`."""
  if mask.ndim == 1:  # Of images.
    return None
  keys = mask[:, None, None, :]
  return keys & jnp.tri(length, dtype=bool) if causal else keys


def maps_of(query, key, allowed):
  """Returns maps `[B, H, n, m]` of `[B, n, H, K]`, already scaled."""
  scores = jnp.einsum('bnhk,bmhk->bhnm', query, key)
  if allowed is not None:
    scores = jnp.where(allowed, scores, -1e30)
  return jax.nn.softmax(scores, axis=-1)


def whole(query, key, value, allowed):
  """Returns (outputs `[B, N, H, K]`, maps)."""
  maps = maps_of(query, key, allowed)
  return jnp.einsum('bhnm,bmhk->bnhk', maps, value), maps


def distances(student, teacher):
  """Returns 1 - cos of each row, the teacher's heads averaged by groups."""
  batch, heads, queries, keys = student.shape
  teacher = teacher.reshape(batch, heads, -1, queries, keys).mean(2)
  dot = (student * teacher).sum(-1)
  squares = (student**2).sum(-1) * (teacher**2).sum(-1)
  return 1 - dot * jax.lax.rsqrt(squares)


def blocks(query, key, value, mask, causal, teacher=None):
  """Goes through the queries block by block; no maps are kept for later.

  Args:
    query: `[B, N, H, K]`, as key and value are.
    key: see query.
    value: see query.
    mask: bool, `[B, N]`, or `[B]` of images.
    causal: whether keys behind a block are left out.
    teacher: query and key of the teacher's layer, or None.

  Returns:
    Outputs, `[B, N, H, K]`, and the sum of distances to the teacher's maps.
  """
  length = query.shape[1]
  size = max(64, length // 8)

  # Shapes differ from block to block, so that each is a call of its own.
  @jax.checkpoint
  def block(query, keys, value, allowed, counts, pair):
    outputs, maps = whole(query, keys, value, allowed)
    if pair is None:
      return outputs, 0.0
    apart = distances(maps, maps_of(*pair, allowed))
    return outputs, jnp.where(counts, apart, 0).sum()

  outputs, total = [], 0.0
  for start in range(0, length, size):
    end = min(start + size, length)
    seen = slice(None, end if causal else length)
    allowed = None
    counts = mask[:, None, None]
    if mask.ndim == 2:
      allowed = mask[:, None, None, seen]
      counts = mask[:, None, start:end]
      if causal:
        allowed &= (jnp.arange(start, end)[:, None] >= jnp.arange(end))
    pair = teacher and (teacher[0][:, start:end], teacher[1][:, seen])
    part, more = block(query[:, start:end], key[:, seen], value[:, seen],
                       allowed, counts, pair)
    outputs.append(part)
    total += more
  return jnp.concatenate(outputs, axis=1), total
