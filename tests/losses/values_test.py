"""Losses of regression, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import losses

STUDENT = jnp.array([[1.0, 2.0], [0.0, -1.0], [5.0, 5.0]])
LABELS = jnp.array([[0.0, 4.0], [0.0, -4.0], [np.nan, 5.0]])
MASK = jnp.array([True, True, False])


def test_errors_by_hand():
  # Errors 1, -2, 0 and 3; the last row does not count.
  squared = losses.mean_squared_error(STUDENT, mask=MASK, labels=LABELS)
  absolute = losses.mean_absolute_error(STUDENT, mask=MASK, labels=LABELS)
  np.testing.assert_allclose(squared, (14, 4))
  np.testing.assert_allclose(absolute, (6, 4))


def test_the_teacher_by_hand():
  teacher = jnp.array([[0.0, 0.0], [1.0, -1.0], [0.0, 0.0]])
  np.testing.assert_allclose(
      losses.logit_mse(STUDENT, teacher, mask=MASK), (1 + 4 + 1 + 0, 4))


def test_gradients_by_hand():

  def gradient(student, loss):
    return jax.grad(lambda x: loss(x, mask=MASK, labels=LABELS).total)(student)

  np.testing.assert_allclose(gradient(STUDENT, losses.mean_squared_error),
                             [[2, -4], [0, 6], [0, 0]])
  np.testing.assert_allclose(gradient(STUDENT, losses.mean_absolute_error),
                             [[1, -1], [0, 1], [0, 0]])


def test_one_number_an_example_needs_no_axis_in_labels():
  total, count = losses.mean_squared_error(
      STUDENT[:, :1], mask=MASK, labels=jnp.array([0.0, 2.0, 9.0]))
  np.testing.assert_allclose((total, count), (1 + 4, 2))


@pytest.mark.parametrize('labels, error, match', (
    (None, ValueError, 'labels must be given'),
    (jnp.zeros(3), ValueError, 'must have the shape of the outputs'),
    (jnp.zeros((3, 1)), ValueError, 'must have the shape of the outputs'),
    (jnp.zeros((3, 2), int), TypeError, 'For classes use cross_entropy'),
))
def test_labels_that_do_not_fit_are_refused(labels, error, match):
  for loss in (losses.mean_squared_error, losses.mean_absolute_error):
    with pytest.raises(error, match=match):
      loss(STUDENT, mask=MASK, labels=labels)
