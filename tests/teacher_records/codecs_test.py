"""What is kept of a prediction: its size, and that it is unbiased."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd.core import base
from haikd.teacher_records import hidden
from haikd.teacher_records import logarithms
from haikd.teacher_records import packing
from haikd.teacher_records import sampled
from haikd.teacher_records import top_k

V = 600


def shapes():
  """Logits of three shapes: peaked, with a heavy tail, and flat."""
  rng = np.random.default_rng(0)
  ranks = rng.permutation(V)
  return np.stack([-0.7 * ranks, -1.2 * np.log1p(ranks),
                   0.3 * rng.normal(size=V)]).astype(np.float32)


def probabilities(logits, temperature=1.0):
  powers = np.exp(np.asarray(logits, np.float64) / temperature)
  return powers / powers.sum(-1, keepdims=True)


def dense(decoded, classes=V):
  """The estimate of each position as an array [P, V], in float64."""
  total = np.zeros((len(decoded.ids), classes))
  rows = np.arange(len(decoded.ids))[:, None]
  np.add.at(total, (np.broadcast_to(rows, decoded.ids.shape), decoded.ids),
            decoded.weights.astype(np.float64))
  return total


def through_bytes(codec, logits, uniform):
  """The estimates of each copy, written and read."""
  arrays = jax.device_get(jax.jit(codec.make)(logits, uniform))
  return [codec.decode(codec.encode(arrays, copy), len(logits))
          for copy in range(uniform.shape[1])]


@pytest.mark.parametrize('bits', [1, 3, 8, 13, 16, 17, 25])
@pytest.mark.parametrize('size', [0, 1, 8, 21])
def test_integers_come_back_from_as_few_bytes_as_they_fit(bits, size):
  values = np.random.default_rng(bits).integers(0, 2**bits, size)
  values[:1] = 2**bits - 1
  content = packing.pack(values, bits)
  assert len(content) == (size * bits + 7) // 8
  np.testing.assert_array_equal(packing.unpack(content, size, bits), values)


def test_bits_are_those_of_the_largest_integer():
  # ceil(log2 V): 49152 classes need 16 bits, 151936 need 18.
  assert [packing.bits_for(x) for x in (1, 2, 3, 256, 257, 49152, 151936)] == [
      1, 1, 2, 8, 9, 16, 18]
  with pytest.raises(ValueError, match=r'at most 2\*\*25'):
    packing.bits_for(2**25 + 1)


@pytest.mark.parametrize('bits,error', [(8, 1 / 32), (16, 1 / 4096)])
def test_log_probabilities_are_rounded_down_or_to_the_nearest(bits, error):
  logs = jnp.asarray(-np.linspace(0, 15, 333), jnp.float32)
  below = logarithms.decode(np.asarray(logarithms.below(logs, bits)), bits)
  nearest = logarithms.decode(np.asarray(logarithms.nearest(logs, bits)), bits)
  assert ((below <= logs) & (below > logs - 2 * error - 1e-6)).all()
  assert np.abs(nearest - logs).max() <= error + 1e-6
  last = logarithms.nearest(jnp.array([-jnp.inf, -1e4]), bits)
  assert np.isneginf(logarithms.decode(np.asarray(last), bits)).all()


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_estimates_sum_to_one_and_keep_the_largest(bits, temperature):
  codec = sampled.Codec(V, 16, 32, bits, temperature)
  decoded, = through_bytes(codec, shapes(), np.full((3, 1), 0.3, np.float32))
  p = probabilities(shapes(), temperature)
  np.testing.assert_allclose(dense(decoded).sum(-1), 1, rtol=1e-6)
  np.testing.assert_array_equal(decoded.ids[:, :16],
                                np.argsort(-p, axis=-1)[:, :16])
  largest = -np.sort(-p, axis=-1)[:, :16]
  step = logarithms.STEPS[bits]
  kept = decoded.weights[:, :16]
  is_in_range = largest > np.exp(-15.0)
  assert (kept <= largest * (1 + 1e-5)).all()
  assert (kept >= largest * np.exp(-step) * (1 - 1e-5))[is_in_range].all()
  entropy = -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1)
  np.testing.assert_allclose(decoded.entropy, entropy, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('bits', [8, 16])
def test_a_class_is_drawn_as_often_as_it_should_give_or_take_one(bits):
  codec = sampled.Codec(V, 4, 32, bits, 1.0)
  uniform = np.linspace(0, 0.999, 7, dtype=np.float32).reshape(1, 7)
  logits = shapes()
  p = probabilities(logits)
  for decoded in through_bytes(codec, logits, np.repeat(uniform, 3, 0)):
    kept = np.zeros((3, V))
    np.put_along_axis(kept, decoded.ids[:, :4], decoded.weights[:, :4], -1)
    rest = p - kept
    weight = rest.sum(-1, keepdims=True) / 32
    # A draw that falls on a border may go to either side.
    assert (np.abs(dense(decoded) - p) <= weight * (1 + 1e-3) + 1e-6).all()


def check_unbiased(copies, bits):
  """A z-test of each class over many draws, for all three shapes."""
  codec = sampled.Codec(V, 4, 8, bits, 1.0)
  rng = np.random.default_rng(1)
  make = jax.jit(codec.make)
  p, part = probabilities(shapes()), 500
  total, square = np.zeros((3, V)), np.zeros((3, V))
  for _ in range(copies // part):
    arrays = jax.device_get(make(
        shapes(), rng.random((3, part), dtype=np.float32)))
    for copy in range(part):
      estimate = dense(codec.decode(codec.encode(arrays, copy), 3))
      total += estimate
      square += (estimate - p)**2
  # By the prediction itself: a class that was never drawn has no variance.
  least = p / 8 / copies
  deviation = np.sqrt(np.maximum(square / copies / copies, least))
  z = (total / copies - p) / np.maximum(deviation, 1e-9)
  # 1,800 classes: 5 standard deviations occur once in 1,000 such tests.
  assert np.abs(z).max() < 5
  assert np.abs(z)[p > 1e-4].mean() < 1.2


def test_expectation_is_the_prediction():
  check_unbiased(500, 8)


@pytest.mark.slow
@pytest.mark.parametrize('bits', [8, 16])
def test_expectation_is_the_prediction_in_10000_draws(bits):
  check_unbiased(10_000, bits)


def test_expectation_over_all_starts_is_the_prediction():
  # The mean over a fine even grid of u replaces chance: its error is at most
  # the weight of a draw, times the spacing.
  codec = sampled.Codec(V, 4, 8, 8, 1.0)
  grid = ((np.arange(250) + 0.5) / 250).astype(np.float32)
  mean = np.mean([dense(x) for x in through_bytes(
      codec, shapes(), np.repeat(grid[None], 3, 0))], axis=0)
  np.testing.assert_allclose(mean, probabilities(shapes()), atol=8e-4)


def test_classes_that_are_ruled_out_are_never_drawn():
  logits = shapes()
  logits[:, 100:] = -np.inf
  codec = sampled.Codec(V, 16, 64, 8, 1.0)
  uniform = np.full((3, 1), 1 - 2.0**-24, np.float32)
  decoded, = through_bytes(codec, logits, uniform)
  assert decoded.ids.max() < 100 and np.isfinite(decoded.entropy).all()


@pytest.mark.parametrize('bits', [8, 16])
def test_top_k_keeps_log_probabilities_and_the_rest(bits):
  codec = top_k.Codec(V, 12, bits, 2.0)
  decoded, = through_bytes(codec, shapes(), np.zeros((3, 1), np.float32))
  p = np.sort(probabilities(shapes(), 2.0))[:, ::-1]
  error = logarithms.STEPS[bits] / 2 + 1e-5
  np.testing.assert_allclose(decoded.log_probs, np.log(p[:, :12]), atol=error)
  np.testing.assert_allclose(decoded.rest, np.log(p[:, 12:].sum(-1)),
                             atol=1 / 4096 + 1e-5)
  assert (np.take_along_axis(probabilities(shapes(), 2.0), decoded.ids, -1) ==
          p[:, :12]).all()


def test_hidden_states_come_back_behind_a_rotation():
  rng = np.random.default_rng(0)
  states = rng.normal(size=(5, 64)).astype(np.float32)
  states[:, 3] *= 50  # As a decoder's states are.
  states[2] = 0
  logits = base.LinearLogits(
      jnp.asarray(states), jnp.asarray(rng.normal(size=(64, 9)), jnp.float32),
      jnp.arange(9.0), 0.5, 30.0)
  codec = hidden.Codec(64)
  arrays = jax.device_get(jax.jit(codec.make)(logits.hidden, None))
  content = codec.encode(arrays, 0)
  assert len(content) == 5 * (64 + 4)
  decoded = codec.decode(content, 5)
  again = hidden.rotated(logits)._replace(
      hidden=decoded.values * decoded.scale[:, None])
  expected = np.asarray(states, np.float64) @ np.asarray(logits.kernel)
  expected = 0.5 * (expected + np.arange(9.0))
  expected = 30 * np.tanh(expected / 30)
  error = np.abs(again.materialise() - expected)
  # A coordinate's error is at most scale/2, and uniform.
  limit = 4 * (decoded.scale[:, None] / 12**0.5 *
               np.linalg.norm(logits.kernel, axis=0) * 0.5)
  assert (error <= limit + 1e-4).all()
  # One scale for unrotated states would be four times as coarse.
  assert decoded.scale.mean() * 127 * 2 < np.abs(states[:2]).max()


@pytest.mark.parametrize('codec', [
    sampled.Codec(49152, 8, 64, 8, 1.0),
    top_k.Codec(49152, 50, 8, 1.0)], ids=lambda x: str(tuple(x)))
def test_sizes_are_what_packing_promises(codec):
  rng = np.random.default_rng(0)
  logits = (4 * rng.normal(size=(7, 49152))).astype(np.float32)
  arrays = jax.device_get(jax.jit(codec.make)(
      logits, rng.random((7, 1), dtype=np.float32)))
  size = len(codec.encode(arrays, 0)) / 7
  if isinstance(codec, top_k.Codec):
    assert size == 50 * (2 + 1) + 2
  else:
    most = codec.exact * (2 + codec.bits / 8) + 4 + codec.draws * (2 + 1 / 8)
    assert size <= most + 1 and size > most / 2


def test_decoded_padding_has_the_dtypes_of_what_is_read():
  for codec in (sampled.Codec(V, 4, 8, 8, 1.0), top_k.Codec(V, 4, 16, 1.0)):
    decoded, = through_bytes(codec, shapes(), np.zeros((3, 1), np.float32))
    describe = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert describe(codec.zeros((3,))) == describe(decoded)
