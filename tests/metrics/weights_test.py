"""Metrics of examples with weights, against scikit-learn and by hand."""

import jax
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from haikd import metrics
from haikd.core import base

SIZE, CLASSES = 12, 4
WEIGHT = np.random.RandomState(2).uniform(0, 3, SIZE).astype(np.float32)
LOGITS, TARGET = np.random.RandomState(0).randn(2, SIZE, CLASSES).astype(
    np.float32)
CHOICE = np.random.RandomState(1).randint(0, CLASSES, SIZE).astype(np.int32)


def measured(output, target, task='classification', **options):
  sums, columns = metrics.measure(
      output, target, mask=np.ones(SIZE, bool), weight=WEIGHT, task=task,
      **options)
  return metrics.finish(*jax.device_get((sums, columns)))


@pytest.mark.parametrize('lazy', (False, True))
def test_classes(lazy):
  output = LOGITS
  if lazy:
    output = base.LinearLogits(LOGITS, np.eye(CLASSES, dtype=np.float32))
  scores = measured(output, TARGET, labels=CHOICE)
  predicted = LOGITS.argmax(-1)
  log_q = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
  p = np.exp(TARGET) / np.exp(TARGET).sum(-1, keepdims=True)
  expected = dict(
      accuracy=sklearn_metrics.accuracy_score(
          CHOICE, predicted, sample_weight=WEIGHT),
      f1=sklearn_metrics.f1_score(
          CHOICE, predicted, average='macro', sample_weight=WEIGHT),
      agreement=np.average(predicted == TARGET.argmax(-1), weights=WEIGHT),
      cross_entropy=np.average(-log_q[np.arange(SIZE), CHOICE],
                               weights=WEIGHT),
      kl=np.average((p * (np.log(p) - log_q)).sum(-1), weights=WEIGHT))
  for name, value in expected.items():
    assert scores[name] == pytest.approx(value, abs=1e-6), name


def test_numbers():
  labels = TARGET + np.float32(0.5)
  scores = measured(LOGITS, None, 'regression', labels=labels)
  for name, function in (('mse', sklearn_metrics.mean_squared_error),
                         ('mae', sklearn_metrics.mean_absolute_error),
                         ('r2', sklearn_metrics.r2_score)):
    assert scores[name] == pytest.approx(
        function(labels, LOGITS, sample_weight=WEIGHT), abs=1e-6), name


def test_labels_of_which_several_may_be_true():
  labels = (TARGET > 0).astype(np.float32)
  scores = measured(LOGITS, TARGET, 'multilabel', labels=labels)
  assert scores['label_f1'] == pytest.approx(sklearn_metrics.f1_score(
      labels, LOGITS > 0, average='macro', sample_weight=WEIGHT), abs=1e-6)
  assert scores['accuracy'] == pytest.approx(np.average(
      ((LOGITS > 0) == (labels > 0)).mean(-1), weights=WEIGHT), abs=1e-6)


def test_vectors():
  scores = measured(base.Embedding(LOGITS), base.Embedding(TARGET))
  norm = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  cosine = (norm(LOGITS) * norm(TARGET)).sum(-1)
  assert scores['cosine'] == pytest.approx(
      np.average(cosine, weights=WEIGHT), abs=1e-6)
