"""Tests of the metrics of classifiers, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import metrics
from haikd.metrics import counts

# Most likely: 0, 1, 2, 2.
LOGITS = jnp.log(
    jnp.array([[0.7, 0.2, 0.1], [0.3, 0.5, 0.2], [0.1, 0.1, 0.8],
               [0.25, 0.25, 0.5]]))
# Most likely: 0, 2, 2, 0.
TEACHER = jnp.log(
    jnp.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.2, 0.2, 0.6],
               [0.5, 0.25, 0.25]]))
MASK = jnp.array([True, True, True, False])
WITH_TEACHER = {'kl', 'reverse_kl', 'acceptance', 'agreement'}


def measure(*args, **options):
  sums, columns = metrics.measure(*args, **options)
  assert columns == dict(classes={})
  return sums['classes']


def test_metrics_by_hand():
  labels = jnp.array([0, 2, -100, 0])
  sums = measure(LOGITS, TEACHER, mask=MASK, labels=labels)
  assert set(sums) == {'accuracy', 'cross_entropy', 'f1', *WITH_TEACHER}
  # Labelled and real: rows 0 (right) and 1 (wrong).
  np.testing.assert_allclose(sums['accuracy'], (1, 2))
  np.testing.assert_allclose(
      sums['cross_entropy'], (-np.log(0.7) - np.log(0.2), 2), rtol=1e-6)
  np.testing.assert_allclose(sums['agreement'], (2, 3))
  kl = (0.6 * np.log(0.6 / 0.7) + 0.3 * np.log(0.3 / 0.2) +
        0.2 * np.log(0.2 / 0.3) + 0.2 * np.log(0.2 / 0.5) +
        0.6 * np.log(0.6 / 0.2) + 0.4 * np.log(0.2 / 0.1) +
        0.6 * np.log(0.6 / 0.8))
  np.testing.assert_allclose(sums['kl'], (kl, 3), rtol=1e-5)
  reverse = (0.7 * np.log(0.7 / 0.6) + 0.2 * np.log(0.2 / 0.3) +
             0.3 * np.log(0.3 / 0.2) + 0.5 * np.log(0.5 / 0.2) +
             0.2 * np.log(0.2 / 0.6) + 0.2 * np.log(0.1 / 0.2) +
             0.8 * np.log(0.8 / 0.6))
  np.testing.assert_allclose(sums['reverse_kl'], (reverse, 3), rtol=1e-5)
  # The smaller probabilities add up to 0.9, 0.6 and 0.8.
  np.testing.assert_allclose(sums['acceptance'], (2.3, 3), rtol=1e-6)
  np.testing.assert_array_equal(sums['f1'].hits, (1, 0, 0))
  np.testing.assert_array_equal(sums['f1'].predicted, (1, 1, 0))
  np.testing.assert_array_equal(sums['f1'].true, (1, 0, 1))


# 3 rows of 3 classes would show a wrong broadcast.
@pytest.mark.parametrize('rows', (3, 4))
def test_labels_may_be_probabilities(rows):
  labels = jnp.array([[0.9, 0.1, 0], [0, 0.4, 0.6], [0, 0, 1], [1, 0, 0]])
  sums = measure(LOGITS[:rows], None, mask=MASK[:rows], labels=labels[:rows])
  # Most likely 0, 2, 2 against 0, 1, 2.
  np.testing.assert_allclose(sums['accuracy'], (2, 3))
  entropy = -(0.9 * np.log(0.7) + 0.1 * np.log(0.2) + 0.4 * np.log(0.5) +
              0.6 * np.log(0.2) + np.log(0.8))
  np.testing.assert_allclose(sums['cross_entropy'], (entropy, 3), rtol=1e-5)
  np.testing.assert_array_equal(sums['f1'].true, (1, 0, 2))


def test_without_teacher_or_labels_there_is_less():
  assert measure(LOGITS, None, mask=MASK) == {}
  assert set(measure(LOGITS, TEACHER, mask=MASK)) == WITH_TEACHER


def test_a_mask_of_examples_holds_for_all_their_positions():
  """By hand; B = N shows a mask that is broadcast along the wrong axis."""
  labels = jnp.array([[0, 1], [1, 1]])
  logits = jax.nn.one_hot(jnp.array([[0, 0], [1, 1]]), 2)[..., None, :]
  mask = jnp.array([True, False])
  sums = measure(logits, None, mask=mask, labels=labels[..., None])
  np.testing.assert_allclose(sums['accuracy'], (1, 2))
  np.testing.assert_array_equal(sums['f1'].true, (1, 1))


def test_iou_is_the_mean_over_classes_that_are_true_or_predicted():
  # Class 0: 2 of 3 places in the union; 1: 1 of 3; 2: 0 of 1; 3: none.
  true, predicted = [[0, 0, 1], [1, 1, -100]], [[0, 0, 1], [0, 2, 3]]
  sums = measure(
      jax.nn.one_hot(jnp.array(predicted), 4)[None], None,
      mask=jnp.ones(1, bool), labels=jnp.array(true)[None])
  values = metrics.finish(dict(classes=sums), dict(classes={}))
  np.testing.assert_allclose(
      values['miou'], (2 / 3 + 1 / 3 + 0) / 3, rtol=1e-6)


def test_a_teacher_of_other_classes_is_not_compared():
  sums = measure(LOGITS, TEACHER[:, :2], mask=MASK)
  assert sums == {}


def test_f1_is_the_mean_over_classes_that_are_true_or_predicted():
  # Class 0: precision 2/3 and recall 1; 1: 1 and 1/3; 2: never right; 3:
  # neither true nor predicted. 2 p r / (p + r) is 4/5, 1/2 and 0.
  true = [0, 0, 1, 1, 1]
  predicted = [0, 0, 1, 0, 2]
  sums = measure(
      jax.nn.one_hot(jnp.array(predicted), 4), None,
      mask=jnp.ones(5, bool), labels=jnp.array(true))
  values = metrics.finish(dict(classes=sums), dict(classes={}))
  np.testing.assert_allclose(values['f1'], (4 / 5 + 1 / 2 + 0) / 3, rtol=1e-6)
  assert list(values)[:2] == ['accuracy', 'cross_entropy']
  np.testing.assert_allclose(values['accuracy'], 3 / 5)


def test_nothing_labelled_has_no_f1():
  sums = measure(LOGITS, None, mask=MASK, labels=jnp.full(4, -100))
  values = metrics.finish(dict(classes=sums), dict(classes={}))
  assert np.isnan([values['f1'], values['accuracy']]).all()


@pytest.mark.parametrize('size, there', ((1000, True), (1001, False)))
def test_f1_is_left_out_of_many_classes(size, there):
  sums = measure(
      jnp.zeros((1, size)), None, mask=jnp.ones(1, bool), labels=jnp.zeros(
          1, jnp.int32))
  assert ('f1' in sums) == there == (size <= counts.MAX_CLASSES)
