"""Losses from records of a teacher, against NumPy and the live teacher."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import losses
from haikd.core import base
from haikd.losses import chunks
from haikd.losses import cutting
from haikd.teacher_records import sampled
from haikd.teacher_records import top_k

B, N, V, D = 2, 5, 40, 6
T = 2.0
MASK = np.arange(N) < np.array([[5], [3]])
RNG = np.random.default_rng(0)
TEACHER = (3 * RNG.normal(size=(B, N, V))).astype(np.float32)
STUDENT = (2 * RNG.normal(size=(B, N, V))).astype(np.float32)


def record(codec, grid=(0.4,)):
  """Records of TEACHER for each u, written and read, with NaN in padding."""
  flat = TEACHER.reshape(-1, V)
  uniform = np.broadcast_to(np.float32(grid), (len(flat), len(grid)))
  arrays = jax.device_get(jax.jit(codec.make)(flat, uniform))
  decoded = [codec.decode(codec.encode(arrays, copy), len(flat))
             for copy in range(len(grid))]

  def place(*copies):
    x = np.stack(copies).reshape(len(grid), B, N, *copies[0].shape[1:])
    spoilt = np.nan if x.dtype.kind == 'f' else -7
    mask = MASK.reshape(1, B, N, *(1,) * (x.ndim - 3))
    x = np.where(mask, x, spoilt).astype(x.dtype)
    return jnp.asarray(x if len(grid) > 1 else x[0])

  return jax.tree.map(place, *decoded)


def softmax(logits):
  powers = np.exp(np.asarray(logits, np.float64))
  return powers / powers.sum(-1, keepdims=True)


def value_and_grad(name, teacher, over_copies=False, **options):
  loss = haikd.get_loss(name)
  total = lambda student, teacher: loss(
      student, teacher, mask=jnp.asarray(MASK), temperature=T, **options).total
  run = jax.value_and_grad(total)
  if over_copies:
    run = jax.vmap(run, in_axes=(None, 0))
  return jax.jit(run)(jnp.asarray(STUDENT), teacher)


def test_sampled_kl_is_the_cross_entropy_less_the_entropy():
  records = record(sampled.Codec(V, 4, 8, 8, T))
  estimate = np.zeros((B, N, V))
  for row in np.argwhere(MASK):
    row = tuple(row)
    np.add.at(estimate[row], records.ids[row], records.weights[row])
  q = softmax(STUDENT / T)
  kept = MASK[..., None]
  entropy = np.where(MASK, records.entropy, 0)
  expected = T**2 * (-(estimate * np.log(q)).sum() - entropy.sum())
  value, gradient = value_and_grad('kl_divergence', records)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(
      gradient, np.where(kept, T * (q - estimate), 0), rtol=1e-5, atol=1e-6)


def test_expected_gradient_is_that_of_the_live_teacher():
  # An even grid of u stands for chance.
  drawn = record(sampled.Codec(V, 4, 8, 8, T), (np.arange(200) + 0.5) / 200)
  values, gradients = value_and_grad('kl_divergence', drawn, over_copies=True)
  value, gradient = value_and_grad('kl_divergence', jnp.asarray(TEACHER))
  np.testing.assert_allclose(np.mean(values), value, rtol=1e-3)
  np.testing.assert_allclose(np.mean(gradients, 0), gradient, atol=1e-3)
  assert np.std(gradients, 0).max() > 0.02  # A single one is not.


def test_everything_kept_is_the_live_teacher():
  codec = sampled.Codec(V, V, 1, 16, T)
  got = value_and_grad('kl_divergence', record(codec))
  expected = value_and_grad('kl_divergence', jnp.asarray(TEACHER))
  for x, y in zip(got, expected):
    np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize('rest', ['bucket', 'renormalise'])
@pytest.mark.parametrize('k', [4, 7])
def test_top_k_kl_is_that_of_coarse_predictions(rest, k):
  records = record(top_k.Codec(V, 7, 16, T))
  chosen = np.argsort(-TEACHER, axis=-1)[..., :k]
  p, q = softmax(TEACHER / T), softmax(STUDENT / T)
  coarse = []
  for x in (p, q):
    parts = np.take_along_axis(x, chosen, -1)
    if rest == 'bucket':
      parts = np.concatenate([parts, 1 - parts.sum(-1, keepdims=True)], -1)
    coarse.append(parts / parts.sum(-1, keepdims=True))
  expected = T**2 * np.sum(
      np.where(MASK, np.sum(coarse[0] * np.log(coarse[0] / coarse[1]), -1), 0))
  value, gradient = value_and_grad('top_k_kl', records, k=k, rest=rest)
  np.testing.assert_allclose(value, expected, rtol=1e-3)
  live = value_and_grad('top_k_kl', jnp.asarray(TEACHER), k=k, rest=rest)
  np.testing.assert_allclose(live[0], expected, rtol=1e-4)
  np.testing.assert_allclose(gradient, live[1], atol=2e-3)


@pytest.mark.parametrize('name,codec,weight', [
    ('kl_divergence', sampled.Codec(V, 4, 8, 8, T), [2.0, 0.5]),
    ('top_k_kl', top_k.Codec(V, 7, 8, T), None)], ids=['sampled', 'top_k'])
def test_chunks_give_what_arrays_give(name, codec, weight):
  records = record(codec)
  rng = np.random.default_rng(1)
  lazy = base.LinearLogits(
      jnp.asarray(rng.normal(size=(B, N, D)), jnp.float32),
      jnp.asarray(rng.normal(size=(D, V)), jnp.float32), jnp.ones(V))
  loss = functools.partial(haikd.get_loss(name), temperature=T)
  factors = jnp.ones(B) if weight is None else jnp.asarray(weight)

  @jax.jit
  @jax.value_and_grad
  def in_chunks(student):
    return chunks.weighted(
        [lambda student, teacher, *, mask, labels: loss(
            student, teacher, mask=mask)],
        jnp.ones(1), student, records, mask=jnp.asarray(MASK),
        weight=None if weight is None else factors,
        sizes=cutting.ChunkSizes(chunk_bytes=4 * 4 * V))[0]

  @jax.jit
  @jax.value_and_grad
  def by_rows(student):
    logits = student.materialise()
    return sum(
        factors[i] * loss(
            logits[i:i + 1], jax.tree.map(lambda x, i=i: x[i:i + 1], records),
            mask=jnp.asarray(MASK[i:i + 1])).total for i in range(B))

  for x, y in zip(jax.tree.leaves(in_chunks(lazy)),
                  jax.tree.leaves(by_rows(lazy))):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_records_that_a_loss_does_not_take_are_refused():
  records = record(top_k.Codec(V, 7, 8, T))
  with pytest.raises(ValueError, match='k must be at most the number of class'):
    losses.top_k_kl(
        jnp.asarray(STUDENT), records, mask=jnp.asarray(MASK), k=8)
  with pytest.raises(TypeError, match='reverse_kl does not take recorded TopK'):
    losses.reverse_kl(jnp.asarray(STUDENT), records, mask=jnp.asarray(MASK))
