"""Metrics of regression and of several true labels, against scikit-learn."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as published

from haikd import metrics
from haikd.core import tasks

ROWS = 40
KEPT = np.arange(ROWS) % 5 > 0


def draw(width):
  rng = np.random.default_rng(width)
  return (rng.normal(size=(ROWS, width)).astype(np.float32),
          rng.normal(size=(ROWS, width)).astype(np.float32))


def evaluate(output, target=None, labels=None, *, task):
  """Returns the metrics of a split that comes in two batches."""
  halves = []
  for half in (slice(0, 16), slice(16, None)):
    halves.append(metrics.measure(
        jnp.asarray(output[half]),
        None if target is None else jnp.asarray(target[half]),
        mask=jnp.asarray(KEPT[half]),
        labels=None if labels is None else jnp.asarray(labels[half]),
        task=task))
  (sums, columns), (more_sums, more_columns) = halves
  name, = sums
  added = {key: type(value)(*map(np.add, value, more_sums[name][key]))
           for key, value in sums[name].items()}
  joined = {key: np.concatenate([value, more_columns[name][key]])
            for key, value in columns[name].items()}
  return metrics.finish({name: added}, {name: joined})


@pytest.mark.parametrize('width', (1, 3))
def test_regression(width):
  output, labels = draw(width)
  labels += 100  # A mean far from 0 must cost no digits.
  output += 100
  values = evaluate(output, output + 0.5, labels, task=tasks.REGRESSION)
  expected = dict(
      mse=published.mean_squared_error(labels[KEPT], output[KEPT]),
      mae=published.mean_absolute_error(labels[KEPT], output[KEPT]),
      r2=published.r2_score(labels[KEPT], output[KEPT]),
      teacher_mse=0.25)
  assert values == pytest.approx(expected, rel=1e-6)


def test_regression_on_labels_without_an_axis():
  output, labels = draw(1)
  values = evaluate(output, labels=labels[:, 0], task=tasks.REGRESSION)
  assert values['r2'] == pytest.approx(
      published.r2_score(labels[KEPT], output[KEPT]), rel=1e-6)


def test_r2_of_equal_labels_is_not_a_number():
  output, labels = draw(1)
  values = evaluate(output, labels=np.ones_like(labels), task=tasks.REGRESSION)
  assert np.isnan(values['r2']) and np.isfinite(values['mse'])


def test_several_labels():
  output, draws = draw(4)
  target, labels = draws, (draws > 0.3).astype(np.float32)
  values = evaluate(output, target, labels, task=tasks.MULTILABEL)
  true, predicted = labels[KEPT] > 0, output[KEPT] > 0
  q = 1 / (1 + np.exp(-output[KEPT].astype(np.float64)))
  p = 1 / (1 + np.exp(-target[KEPT].astype(np.float64)))
  assert values == pytest.approx(dict(
      accuracy=1 - published.hamming_loss(true, predicted),
      binary_cross_entropy=np.mean([
          published.log_loss(x, y) for x, y in zip(true.T, q.T)]),
      label_f1=published.f1_score(true, predicted, average='macro'),
      agreement=np.mean(predicted == (target[KEPT] > 0)),
      binary_kl=np.mean(p * np.log(p / q) +
                        (1 - p) * np.log((1 - p) / (1 - q)))), rel=1e-6)


def test_places():
  rng = np.random.default_rng(0)
  labels, predicted = rng.integers(0, 3, (2, ROWS, 4, 4))
  values = evaluate(np.eye(3, dtype=np.float32)[predicted],
                    labels=labels.astype(np.int32), task=tasks.DENSE)
  true, guess = labels[KEPT].ravel(), predicted[KEPT].ravel()
  assert values['miou'] == pytest.approx(
      published.jaccard_score(true, guess, average='macro'), rel=1e-6)
  assert values['f1'] == pytest.approx(
      published.f1_score(true, guess, average='macro'), rel=1e-6)
  assert values['accuracy'] == pytest.approx(np.mean(true == guess), rel=1e-6)


def test_tags_have_no_perplexity():
  logits = np.random.default_rng(0).normal(size=(ROWS, 6, 3))
  labels = np.zeros((ROWS, 6), np.int32)
  values = evaluate(logits.astype(np.float32), labels=labels,
                    task=tasks.TAGGING)
  assert 'f1' in values and 'perplexity' not in values
