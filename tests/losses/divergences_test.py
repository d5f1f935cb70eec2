"""Tests of the divergences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import losses

STUDENT = [[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]]
TEACHER = [[1.5, 0.0, -0.5], [0.2, -0.1, 0.0]]


@pytest.fixture(params=['eager', 'jit'])
def variant(request):
  return jax.jit if request.param == 'jit' else lambda function: function


def all_true(*shape):
  return jnp.ones(shape, bool)


def softmax(logits):
  """A softmax in float64, in plain NumPy."""
  exps = np.exp(np.asarray(logits, np.float64))
  return exps / exps.sum(-1, keepdims=True)


def kl(student, teacher, temperature=1.0):
  """KL of each row by its definition, in float64, without T^2."""
  p = softmax(np.divide(teacher, temperature))
  q = softmax(np.divide(student, temperature))
  return np.sum(p * np.log(p / q), axis=-1)


@pytest.mark.parametrize('temperature', [1.0, 2.0, 7.5])
def test_kl_is_the_definition_times_temperature_squared(variant, temperature):

  @variant
  def loss(student, teacher):
    return losses.kl_divergence(
        student, teacher, mask=all_true(2), temperature=temperature)

  total, count = loss(jnp.asarray(STUDENT), jnp.asarray(TEACHER))
  expected = temperature**2 * kl(STUDENT, TEACHER, temperature).sum()
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  assert count == 2


def test_kl_is_forward():
  # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2) = 0.1308122.
  # The reverse would be 0.1438410.
  total, _ = losses.kl_divergence(
      jnp.zeros((1, 2)),
      jnp.array([[math.log(3.0), 0.0]]),
      mask=all_true(1))
  np.testing.assert_allclose(total, 0.1308122, rtol=1e-5)


def test_kl_gradient_is_temperature_times_difference_of_probabilities(variant):
  # d/dz T^2 KL = T (q - p).

  @variant
  @jax.grad
  def grad(student):
    return losses.kl_divergence(
        student, jnp.asarray(TEACHER), mask=all_true(2), temperature=3.0).total

  expected = 3.0 * (
      softmax(np.divide(STUDENT, 3.0)) - softmax(np.divide(TEACHER, 3.0)))
  np.testing.assert_allclose(grad(jnp.asarray(STUDENT)), expected, atol=1e-6)


@pytest.mark.parametrize('temperature', [1e3, 1e4])
def test_kl_tends_to_squared_error_of_centred_logits(temperature):
  # 1/2 mean over classes of (centred difference)^2: the differences are
  # (.5, .5, -.5) and (-.1, .3, .3), centred (1, 1, -2)/3 and (-8, 4, 4)/30.
  # The rows give 1/2 * 6/27 = 1/9 and 1/2 * 96/2700 = 4/225.
  result = losses.kl_divergence(
      jnp.asarray(STUDENT),
      jnp.asarray(TEACHER),
      mask=all_true(2),
      temperature=temperature)
  np.testing.assert_allclose(result.total, 1 / 9 + 4 / 225, rtol=5e-3)


def test_kl_is_never_negative_near_zero():
  rng = np.random.default_rng(0)
  teacher = jnp.asarray(rng.normal(size=(256, 100)) * 3, jnp.float32)
  student = teacher + jnp.asarray(rng.normal(size=(256, 100)) * 1e-4,
                                  jnp.float32)
  each = jax.vmap(lambda s, t: losses.kl_divergence(
      s[None], t[None], mask=all_true(1)).total)(student, teacher)
  assert (each >= 0).all()
  # The exact values are around 5e-9 each.
  np.testing.assert_allclose(
      each.sum(), kl(student, teacher).sum(), rtol=1e-2)


def test_kl_of_equal_bfloat16_logits():
  logits = (jnp.arange(4000.0).reshape(4, 1000) % 37 / 3).astype(jnp.bfloat16)
  total, _ = losses.kl_divergence(logits, logits, mask=all_true(4))
  assert 0 <= total < 1e-6


def test_kl_of_far_distributions_is_exact():
  # p is almost 1 at class 0, q at class 1: KL = 80 to within 1e-30.
  student, teacher = jnp.array([[0.0, 80.0]]), jnp.array([[80.0, 0.0]])
  loss = lambda s: losses.kl_divergence(s, teacher, mask=all_true(1)).total
  value, grad = jax.value_and_grad(loss)(student)
  np.testing.assert_allclose(value, 80.0, rtol=1e-6)
  np.testing.assert_allclose(grad, [[-1.0, 1.0]], atol=1e-6)


@pytest.mark.parametrize('log_ratio', [-6.0, -3.0, -1.5, 1.5, 3.0, 6.0])
def test_kl_of_ratios_beyond_the_series_is_exact(log_ratio):
  # log(p/q) of the first class is beyond 1 in size. At 3 the series would be
  # wrong by 5e-5 of the divergence.
  p = 0.5 * math.exp(min(log_ratio, 0.0))
  q = p * math.exp(-log_ratio)
  student, teacher = (
      jnp.log(jnp.array([[x, 1 - x]], jnp.float32)) for x in (q, p))
  total, _ = losses.kl_divergence(student, teacher, mask=all_true(1))
  expected = p * log_ratio + (1 - p) * math.log((1 - p) / (1 - q))
  np.testing.assert_allclose(total, expected, rtol=2e-6)


@pytest.mark.parametrize('student_too', [False, True])
def test_class_that_the_teacher_rules_out(variant, student_too):
  # p = (1/2, 0, 1/2); q = (1, 1, 2)/4 or, without the class, (1, 0, 2)/3.
  low = -jnp.inf if student_too else 0.0
  student = jnp.array([[0.0, low, math.log(2.0)]])
  teacher = jnp.array([[0.0, -jnp.inf, 0.0]])

  def total(student, teacher):
    return losses.kl_divergence(student, teacher, mask=all_true(1)).total

  value, grads = variant(jax.value_and_grad(total, (0, 1)))(student, teacher)
  q = np.array([1, 0, 2]) / 3 if student_too else np.array([1, 1, 2]) / 4
  expected = 0.5 * np.log(0.5 / q[0]) + 0.5 * np.log(0.5 / q[2])
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(grads[0][0], q - [0.5, 0, 0.5], atol=1e-6)
  assert np.isfinite(grads[1]).all()


def test_class_that_the_student_alone_rules_out_is_infinitely_far():
  total, _ = losses.kl_divergence(
      jnp.array([[0.0, -jnp.inf]]), jnp.zeros((1, 2)), mask=all_true(1))
  assert total == jnp.inf


def test_infinite_logits_behind_the_mask():
  student = jnp.array([STUDENT])
  teacher = jnp.array([TEACHER]).at[0, 1].set(-jnp.inf)
  mask = jnp.array([[True, False]])
  value, grad = jax.value_and_grad(lambda s: losses.kl_divergence(
      s, teacher, mask=mask).total)(student)
  np.testing.assert_allclose(value, kl(STUDENT, TEACHER)[0], rtol=1e-5)
  assert np.isfinite(grad).all() and not grad[0, 1].any()


@pytest.mark.parametrize('mask_shape, count', [((2,), 6), ((2, 3), 6)])
def test_kl_counts_positions(mask_shape, count):
  logits = jnp.zeros((2, 3, 5))
  result = losses.kl_divergence(logits, logits, mask=all_true(*mask_shape))
  assert result.count == count


@pytest.mark.parametrize('temperature', [0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature):
  with pytest.raises(ValueError, match='^temperature must be positive; got'):
    losses.kl_divergence(
        jnp.zeros((1, 2)),
        jnp.zeros((1, 2)),
        mask=all_true(1),
        temperature=temperature)


def test_mask_over_classes_is_refused():
  logits = jnp.zeros((2, 3, 5))
  with pytest.raises(ValueError, match='mask must have the leading axes'):
    losses.kl_divergence(logits, logits, mask=all_true(2, 3, 5))


def test_teachers_mixed_equal_the_mean_of_teachers():
  # KL(sum w p || q) = sum w CE(p, q) - H(sum w p). The entropy is constant, so
  # the gradients agree although the values do not.
  rng = np.random.default_rng(1)
  student, one, two = (
      jnp.asarray(rng.normal(size=(4, 6)), jnp.float32) for _ in range(3))
  mixed = jnp.log(0.3 * jax.nn.softmax(one) + 0.7 * jax.nn.softmax(two))
  grad = jax.grad(lambda s, t: losses.kl_divergence(s, t, mask=all_true(4)).
                  total)
  np.testing.assert_allclose(
      grad(student, mixed),
      0.3 * grad(student, one) + 0.7 * grad(student, two),
      atol=1e-6)
