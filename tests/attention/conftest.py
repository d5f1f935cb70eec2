"""Attention masks, each given by rules and as an array."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

from haikd.attention import blocks
from haikd.core import attention_mask

B, H, N = 3, 4, 22
LENGTHS = np.array([N, 5, 14])
RIGHT = np.arange(N) < LENGTHS[:, None]  # Where a position is real.
LEFT = RIGHT[:, ::-1]
SEGMENTS = np.where(RIGHT, 1 + np.arange(N) // 6, 0)
# How many positions a key lies behind its query.
BEHIND = np.arange(N)[:, None] - np.arange(N)
DRAWN = np.random.default_rng(5).random((B, H, N, N)) < 0.3


def rules(real=None, segments=None, **options):
  arrays = (x if x is None else jnp.asarray(x) for x in (real, segments))
  return attention_mask.AttentionMask(*arrays, **options)


# {name: (mask, which positions are real, the mask as an array)}.
MASKS = dict(
    none=(None, None, np.ones((N, N), bool)),
    causal=(rules(causal=True), None, BEHIND >= 0),
    right=(rules(RIGHT, causal=True), RIGHT,
           RIGHT[:, None, None] & (BEHIND >= 0)),
    left=(rules(LEFT, causal=True), LEFT, LEFT[:, None, None] & (BEHIND >= 0)),
    both_ways=(rules(RIGHT), RIGHT, RIGHT[:, None, None]),
    window=(rules(RIGHT, causal=True, window=3), RIGHT,
            RIGHT[:, None, None] & (BEHIND >= 0) & (BEHIND < 3)),
    traced_window=(rules(causal=True, window=jnp.int32(3)), None,
                   (BEHIND >= 0) & (BEHIND < 3)),
    local=(rules(LEFT, window=3), LEFT,
           LEFT[:, None, None] & (np.abs(BEHIND) < 3)),
    segments=(rules(RIGHT, SEGMENTS, causal=True), RIGHT,
              RIGHT[:, None, None] & (BEHIND >= 0) &
              (SEGMENTS[:, None, :, None] == SEGMENTS[:, None, None])),
    keys_array=(jnp.asarray(RIGHT[:, None, None]), None, RIGHT[:, None, None]),
    array=(jnp.asarray(DRAWN), None, DRAWN),
    numpy_array=(DRAWN, None, DRAWN),
    shared_array=(jnp.asarray(DRAWN[0, 0]), None, DRAWN[0, 0]),
)


def by_hand(query, key, allowed, soft_cap=None, bias=None):
  """Returns materialised maps, `[B, H, N, M]`; rows without a key are 0."""
  key = jnp.repeat(key, query.shape[2] // key.shape[2], axis=2)
  scores = jnp.einsum('bnhk,bmhk->bhnm', query, key)
  if soft_cap is not None:
    scores = soft_cap * jnp.tanh(scores / soft_cap)
  if bias is not None:
    queries, keys = scores.shape[2:]
    ahead = np.arange(keys) - np.arange(queries)[:, None]
    scores += bias[:, ahead + queries - 1]
  weights = jnp.exp(scores) * allowed
  total = weights.sum(-1, keepdims=True)
  return weights / jnp.where(total > 0, total, 1)


@pytest.fixture
def masks():
  """Gives the contents of this module to tests."""
  return sys.modules[__name__]


@pytest.fixture
def small_blocks(monkeypatch):
  """Cuts even small maps into blocks, of one example and 4 rows."""
  monkeypatch.setattr(blocks, '_MIN_ROWS', 4)
  monkeypatch.setattr(blocks, '_CAUSAL_BYTES', dict(cpu=1))
  monkeypatch.setattr(blocks, '_MAX_BYTES', dict(cpu=1))
  monkeypatch.setattr(blocks, '_ACCELERATOR_BYTES', 1)
