"""What the report measures, against NumPy, SciPy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from scipy import stats
from sklearn import metrics as sklearn_metrics

import haikd
from haikd.core import base
from haikd.core import tasks
from haikd.losses import cutting
from haikd.report import measures

RNG = np.random.default_rng(0)
LOGITS, TARGET = RNG.normal(size=(2, 40, 5)).astype(np.float32) * 2
LABELS = np.where(RNG.random(40) < 0.1, -100, RNG.integers(0, 5, 40))
MASK = RNG.random(40) < 0.8


def measure(output, target=None, *, mask=MASK, labels=LABELS, weight=None,
            task=tasks.CLASSIFICATION, chunk_bytes=None):
  sizes = cutting.ChunkSizes(chunk_bytes)
  run = jax.jit(lambda output, target: measures.measure(
      output, target, mask=jnp.asarray(mask), labels=labels,
      weight=weight, task=task, sizes=sizes))
  return jax.device_get(run(output, target))


def test_classes():
  sums, columns = measure(LOGITS, TARGET)
  chances = special.softmax(LOGITS, axis=-1)
  counts = MASK & (LABELS >= 0)
  predicted = LOGITS.argmax(-1)
  np.testing.assert_array_equal(
      sums['confusion'], sklearn_metrics.confusion_matrix(
          LABELS[counts], predicted[counts], labels=range(5)))
  np.testing.assert_array_equal(columns['predicted'], predicted)
  np.testing.assert_allclose(columns['confidence'], chances.max(-1), rtol=1e-5)
  kl = stats.entropy(special.softmax(TARGET, axis=-1), chances, axis=-1)
  np.testing.assert_allclose(columns['divergence'][MASK], kl[MASK], rtol=1e-4)
  # A bin at a time, as in the definition.
  confidence, hits = chances.max(-1)[counts], (predicted == LABELS)[counts]
  for i in range(measures.BINS):
    inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
    np.testing.assert_allclose(
        sums['bins'][i],
        [inside.sum(), confidence[inside].sum(), hits[inside].sum()], rtol=1e-5)


def test_classes_of_places_count_each_place():
  logits = RNG.normal(size=(4, 3, 2, 5)).astype(np.float32)
  labels = RNG.integers(0, 5, (4, 3, 2))
  mask = np.array([True, True, False, True])
  sums, columns = measure(logits, logits, mask=mask, labels=labels,
                          task=tasks.DENSE)
  np.testing.assert_array_equal(
      sums['confusion'], sklearn_metrics.confusion_matrix(
          labels[mask].ravel(), logits.argmax(-1)[mask].ravel(),
          labels=range(5)))
  assert set(columns) == {'divergence'}
  np.testing.assert_allclose(columns['divergence'], 0, atol=1e-6)


def test_labels_have_the_f1_of_scikit_learn():
  true = (RNG.random((40, 5)) < 0.4).astype(np.float32)
  sums, columns = measure(LOGITS, TARGET, labels=true, task=tasks.MULTILABEL)
  hits, predicted, truth = sums['labels']
  np.testing.assert_allclose(
      2 * hits / (predicted + truth),
      sklearn_metrics.f1_score(true[MASK], (LOGITS > 0)[MASK], average=None))
  assert sums['bins'][:, 0].sum() == 5 * MASK.sum()
  np.testing.assert_allclose(
      sums['bins'][:, 1].sum(), special.expit(LOGITS[MASK]).sum(), rtol=1e-5)
  np.testing.assert_array_equal(columns['chosen'], LOGITS > 0)


def test_a_class_that_both_rule_out_adds_nothing_to_the_divergence():
  logits, target = np.copy(LOGITS), np.copy(TARGET)
  logits[:, 2] = target[:, 2] = -np.inf
  _, columns = measure(logits, target)
  kl = stats.entropy(*(special.softmax(x, axis=-1) for x in (target, logits)),
                     axis=-1)
  np.testing.assert_allclose(columns['divergence'][MASK], kl[MASK], rtol=1e-4)


def test_calibration_of_many_places_is_that_in_float64():
  logits = RNG.normal(size=(1, 2**21, 2)).astype(np.float32)
  labels = RNG.integers(0, 2, logits.shape[:-1])
  sums, _ = measure(logits, mask=np.array([True]), labels=labels,
                    task=tasks.DENSE)
  confidence = special.expit(np.abs(np.diff(np.float64(logits[0])))[:, 0])
  hits = logits[0].argmax(-1) == labels[0]
  # Confidence begins at 0.5, with bin 7 of 15.
  number = np.ceil(confidence * 15).astype(int) - 1
  for column, values in enumerate((np.ones_like(confidence), confidence, hits)):
    np.testing.assert_allclose(
        sums['bins'][:, column], np.bincount(number, values, 15), rtol=1e-5,
        atol=0.5)


def test_counts_go_beyond_the_integers_of_float32():
  count = 2**24 + 3  # 2^24 + 1 is no float32.
  places = np.broadcast_to(np.int8(1), count)
  np.testing.assert_array_equal(
      jax.jit(measures._confusion, static_argnums=0)(
          2, places - 1, places, places == 1), [[0, 0], [count, 0]])


@pytest.mark.parametrize('task, shape', (
    (tasks.CLASSIFICATION, (40,)), (tasks.DENSE, (40, 3, 2)),
    (tasks.MULTILABEL, (40, 5)), (tasks.CLASSIFICATION, (40, 3))))
def test_weight_2_is_as_two_examples_and_0_as_none(task, shape):
  weight = RNG.integers(0, 3, 40)
  size = shape if task == tasks.MULTILABEL else (*shape, 5)
  logits = RNG.normal(size=size).astype(np.float32)
  labels = RNG.integers(0, 5, shape)
  if task == tasks.MULTILABEL:
    labels = (labels > 2).astype(np.float32)
  found, columns = measure(
      logits, logits, mask=weight > 0, labels=labels, task=task,
      weight=weight.astype(np.float32))
  repeated, _ = measure(
      *[np.repeat(logits, weight, axis=0)] * 2,
      mask=np.ones(weight.sum(), bool),
      labels=np.repeat(labels, weight, axis=0), task=task)
  assert found.keys() == repeated.keys()
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5),
               found, repeated)
  if 'confusion' in found:
    places = lambda x: np.broadcast_to(
        x.reshape(-1, *[1] * (len(shape) - 1)), shape).ravel()
    np.testing.assert_array_equal(
        found['confusion'], sklearn_metrics.confusion_matrix(
            labels.ravel(), logits.argmax(-1).ravel(), labels=range(5),
            sample_weight=places(weight)))
  assert len(columns['divergence']) == 40


@pytest.mark.parametrize('lazy', (False, True))
def test_tokens_are_measured_position_by_position(lazy):
  hidden, target_hidden = RNG.normal(size=(2, 3, 7, 4)).astype(np.float32)
  kernel = RNG.normal(size=(4, 11)).astype(np.float32)
  logits, target = hidden @ kernel, target_hidden @ kernel
  mask = RNG.random((3, 7)) < 0.7
  labels = np.where(mask, RNG.integers(0, 11, (3, 7)), -100)
  outputs = logits, target
  if lazy:
    outputs = (haikd.LinearLogits(hidden, kernel),
               haikd.LinearLogits(target_hidden, kernel))
  sums, columns = measure(*outputs, mask=mask, labels=labels,
                          chunk_bytes=4 * 11 * 4)  # Four positions a chunk.
  chances = special.softmax(logits, axis=-1)
  kl = stats.entropy(special.softmax(target, axis=-1), chances, axis=-1)
  np.testing.assert_allclose(columns['kl'][mask], kl[mask], rtol=1e-3)
  np.testing.assert_array_equal(
      columns['predicted'][mask], logits.argmax(-1)[mask])
  assert sums['bins'][:, 0].sum() == mask.sum()
  assert sums['bins'][:, 2].sum() == (logits.argmax(-1) == labels)[mask].sum()
  np.testing.assert_allclose(
      columns['divergence'], [row[keep].mean() for row, keep in zip(kl, mask)],
      rtol=1e-3)


def test_numbers_are_kept_beside_their_labels():
  sums, columns = measure(LOGITS, TARGET, labels=TARGET, task=tasks.REGRESSION)
  assert not sums
  np.testing.assert_array_equal(columns['prediction'], LOGITS)
  np.testing.assert_array_equal(columns['label'], TARGET)
  np.testing.assert_allclose(
      columns['divergence'][MASK],
      np.square(LOGITS - TARGET).mean(-1)[MASK], rtol=1e-5)


def test_vectors_of_pairs():
  first = RNG.normal(size=(6, 2, 4)).astype(np.float32)
  second = RNG.normal(size=(6, 2, 4)).astype(np.float32)
  _, columns = measure(base.Embedding(first), base.Embedding(second),
                       mask=np.ones((6, 2), bool),
                       labels=np.arange(6, dtype=np.float32))
  cosine = lambda x, y: (x * y).sum(-1) / np.sqrt(
      (x * x).sum(-1) * (y * y).sum(-1))
  np.testing.assert_allclose(
      columns['similarity'], cosine(first[:, 0], first[:, 1]), rtol=1e-4)
  np.testing.assert_allclose(
      columns['cosine'], cosine(first, second).mean(-1), rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(columns['score'], np.arange(6))
