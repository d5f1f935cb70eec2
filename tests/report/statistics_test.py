"""Statistics of the report against scikit-learn."""

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
