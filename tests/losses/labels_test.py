"""Tests of the losses on labels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import losses


@pytest.fixture(params=['eager', 'jit'])
def variant(request):
  return jax.jit if request.param == 'jit' else lambda function: function


def all_true(*shape):
  return jnp.ones(shape, bool)


def softmax(logits):
  """A softmax in float64, in plain NumPy."""
  exps = np.exp(np.asarray(logits, np.float64))
  return exps / exps.sum(-1, keepdims=True)


def test_cross_entropy_of_integers(variant):
  # log(sum exp) - logit: 2.462207 - 0.1 = 2.362207 for [2, 1, .5, .1] at 3,
  # and 3.328826 - 3 = 0.328826 for [0, 3, 1, .5] at 1; their mean is 1.3455165.

  @variant
  def loss(student, labels):
    return losses.cross_entropy(student, mask=all_true(2), labels=labels)

  result = loss(
      jnp.array([[2.0, 1.0, 0.5, 0.1], [0.0, 3.0, 1.0, 0.5]]),
      jnp.array([3, 1]))
  np.testing.assert_allclose(result.mean(), 1.3455165, rtol=1e-6)


@pytest.mark.parametrize('dtype', [np.uint8, np.int8, np.int32, np.int64])
def test_cross_entropy_takes_any_integer(dtype):
  # Uniform over more classes than a byte can count: log 300, twice.
  result = losses.cross_entropy(
      jnp.zeros((2, 300)), mask=all_true(2), labels=np.array([99, 0], dtype))
  np.testing.assert_allclose(result, [2 * math.log(300.0), 2], rtol=1e-6)


def test_cross_entropy_of_probabilities_is_the_mixture(variant):
  # 0.3 at class 0 and 0.7 at class 2: 0.3 CE(0) + 0.7 CE(2).
  student = jnp.array([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]])
  labels = jnp.array([[0.3, 0.0, 0.7]] * 2)

  @variant
  def loss(student, labels):
    return losses.cross_entropy(student, mask=all_true(2), labels=labels)

  q = softmax(student)
  expected = -(0.3 * np.log(q[:, 0]) + 0.7 * np.log(q[:, 2])).sum()
  np.testing.assert_allclose(loss(student, labels).total, expected, rtol=1e-6)
  assert loss(student, labels).count == 2


@pytest.mark.parametrize('content', [jnp.nan, jnp.inf])
def test_probabilities_behind_the_mask_do_not_leak(variant, content):
  labels = jnp.array([[0.0, 1.0, 0.0], [content] * 3])

  @variant
  @jax.value_and_grad
  def loss(student):
    return losses.cross_entropy(
        student, mask=jnp.array([True, False]), labels=labels).total

  value, grad = loss(jnp.zeros((2, 3)))
  np.testing.assert_allclose(value, math.log(3.0), rtol=1e-6)
  np.testing.assert_allclose(
      grad, [[1 / 3, -2 / 3, 1 / 3], [0, 0, 0]], rtol=1e-5)


def test_probability_zero_of_a_class_ruled_out():
  student = jnp.array([[0.0, -jnp.inf, 0.0]])
  value, grad = jax.value_and_grad(lambda s: losses.cross_entropy(
      s, mask=all_true(1), labels=jnp.array([[1.0, 0.0, 0.0]])).total)(
          student)
  np.testing.assert_allclose(value, math.log(2.0), rtol=1e-6)
  np.testing.assert_allclose(grad, [[-0.5, 0.0, 0.5]], atol=1e-6)


def test_label_minus_100_masks_its_position(variant):
  student = jnp.array([[[0.0, 0.0], [jnp.nan, jnp.inf], [0.0, 0.0]]])
  labels = jnp.array([[0, -100, 1]])
  mask = jnp.array([[True, True, False]])

  @variant
  @jax.value_and_grad
  def loss(student):
    return losses.cross_entropy(student, mask=mask, labels=labels).total

  value, grad = loss(student)
  np.testing.assert_allclose(value, math.log(2.0), rtol=1e-6)
  np.testing.assert_allclose(grad, [[[-0.5, 0.5], [0, 0], [0, 0]]])
  assert losses.cross_entropy(student, mask=mask, labels=labels).count == 1


def test_labels_of_positions_with_a_mask_of_examples():
  result = losses.cross_entropy(
      jnp.zeros((2, 3, 5)),
      mask=jnp.array([True, False]),
      labels=jnp.array([[1, -100, 4], [0, 0, 0]]))
  np.testing.assert_allclose(result, [2 * math.log(5.0), 2], rtol=1e-6)


@pytest.mark.parametrize('label', [-1, 3, 10**6, -101])
def test_label_out_of_range_gives_nan_where_it_counts(variant, label):

  @variant
  def loss(mask):
    return losses.cross_entropy(
        jnp.zeros((2, 3)), mask=mask, labels=jnp.array([0, label]))

  assert np.isnan(loss(all_true(2)).total)
  hidden = loss(jnp.array([True, False]))
  np.testing.assert_allclose(hidden, [math.log(3.0), 1], rtol=1e-6)


def test_missing_labels_are_one_clear_error():
  with pytest.raises(ValueError, match='^labels must be given; got None'):
    losses.cross_entropy(jnp.zeros((2, 3)), mask=all_true(2))


@pytest.mark.parametrize('shape, dtype', [((2, 3), int), ((2,), float),
                                          ((3,), int), ((), int)])
def test_labels_of_another_shape_are_named(shape, dtype):
  with pytest.raises(ValueError, match=r'labels must have shape.*labels\.shape='
                     r'.*student\.shape=\(2, 3\)'):
    losses.cross_entropy(
        jnp.zeros((2, 3)), mask=all_true(2), labels=jnp.zeros(shape, dtype))


def test_mask_over_classes_is_refused_with_labels():
  with pytest.raises(ValueError, match='the leading axes of labels'):
    losses.cross_entropy(
        jnp.zeros((3, 3)), mask=all_true(3, 3), labels=jnp.zeros(3, int))


def test_boolean_labels_are_refused():
  with pytest.raises(TypeError, match='^labels must be integers.*bool'):
    losses.cross_entropy(
        jnp.zeros((2, 3)), mask=all_true(2), labels=jnp.zeros(2, bool))
