"""Statistics of the report against scikit-learn, and against definitions."""

import itertools

import numpy as np
from sklearn import metrics as sklearn_metrics

from haikd.report import statistics


def test_accuracy_of_a_class_is_its_recall():
  rng = np.random.default_rng(0)
  true, predicted = rng.integers(0, 5, (2, 200))
  confusion = sklearn_metrics.confusion_matrix(true, predicted)
  np.testing.assert_allclose(
      statistics.class_accuracy(confusion),
      sklearn_metrics.recall_score(true, predicted, average=None))


def test_a_class_without_examples_has_no_accuracy():
  accuracy = statistics.class_accuracy(np.array([[3, 1], [0, 0]]))
  np.testing.assert_array_equal(accuracy, [0.75, np.nan])


def test_confusions_are_sorted_by_their_largest_difference():
  first = np.array([[9, 1, 0], [2, 5, 3], [0, 4, 4]])
  second = np.array([[8, 2, 0], [2, 8, 0], [4, 2, 2]])
  found = statistics.differing_confusions(dict(a=first, b=second), 3)
  # Differences off the diagonal: 2 for 0: 4; 1 for 2: 3; 2 for 1: 2; 0 for 1: 1
  # (and 1 for 0: none).
  assert found == [(2, 0, dict(a=0, b=4)), (1, 2, dict(a=3, b=0)),
                   (2, 1, dict(a=4, b=2))]
  assert len(statistics.differing_confusions(dict(a=first, b=second), 9)) == 4


def test_calibration_error_is_the_mean_distance_of_bins():
  # 4 values of confidence 0.6 in all, 3 of them right; 1 of 0.9, wrong.
  # (4 |0.6 - 0.75| + 1 |0.9 - 0|) / 5 = (0.6 + 0.9) / 5 = 0.3.
  found = statistics.calibration(
      np.array([[0, 0, 0], [4, 2.4, 3], [1, 0.9, 0]]))
  np.testing.assert_allclose(found.error, 0.3)
  np.testing.assert_allclose(found.confidence, [np.nan, 0.6, 0.9])
  np.testing.assert_allclose(found.accuracy, [np.nan, 0.75, 0])
  np.testing.assert_allclose(found.share, [0, 0.8, 0.2])


def hsic(first, second):
  """The unbiased HSIC by its definition, over all tuples of four examples."""
  n = len(first)
  terms = [
      first[i, j] * (second[i, j] + second[q, r] - 2 * second[i, q])
      for i, j, q, r in itertools.permutations(range(n), 4)]
  return np.mean(terms)


def test_cka_is_that_of_its_definition():
  rng = np.random.default_rng(1)
  states = [rng.normal(size=(7, size)) + 3 for size in (2, 5, 9)]
  grams = [x @ x.T for x in states]
  found = statistics.cka(grams[:1], grams[1:])
  expected = [
      hsic(grams[0], x) / np.sqrt(hsic(grams[0], grams[0]) * hsic(x, x))
      for x in grams[1:]]
  np.testing.assert_allclose(found, [expected], rtol=1e-9)


def test_cka_sees_through_rotation_and_scale_only():
  rng = np.random.default_rng(2)
  states = rng.normal(size=(50, 6))
  rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
  turned = 3 * states @ rotation + 1
  unrelated = rng.normal(size=(50, 400))  # Plain CKA is 0.9 with these.
  (same, other), = statistics.cka(
      [states @ states.T], [x @ x.T for x in (turned, unrelated)])
  np.testing.assert_allclose(same, 1)
  assert abs(other) < 0.2


def test_cka_of_three_examples_is_unknown():
  gram = np.eye(3)
  assert np.isnan(statistics.cka([gram], [gram])).all()
