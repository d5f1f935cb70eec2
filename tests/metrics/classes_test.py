"""What evaluation reports, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from haikd import metrics

# Most likely: 0, 1, 2, 2.
LOGITS = jnp.log(
    jnp.array([[0.7, 0.2, 0.1], [0.3, 0.5, 0.2], [0.1, 0.1, 0.8],
               [0.25, 0.25, 0.5]]))
# Most likely: 0, 2, 2, 0.
TEACHER = jnp.log(
    jnp.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.2, 0.2, 0.6],
               [0.5, 0.25, 0.25]]))
MASK = jnp.array([True, True, True, False])


def test_metrics_by_hand():
  labels = jnp.array([0, 2, -100, 0])
  sums = metrics.classification(LOGITS, TEACHER, mask=MASK, labels=labels)
  assert tuple(sums) == metrics.NAMES
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


@pytest.mark.parametrize('rows', (3, 4))  # 3 rows, 3 classes: no broadcasting.
def test_labels_may_be_probabilities(rows):
  labels = jnp.array([[0.9, 0.1, 0], [0, 0.4, 0.6], [0, 0, 1], [1, 0, 0]])
  sums = metrics.classification(
      LOGITS[:rows], None, mask=MASK[:rows], labels=labels[:rows])
  # Most likely 0, 2, 2 against 0, 1, 2.
  np.testing.assert_allclose(sums['accuracy'], (2, 3))
  entropy = -(0.9 * np.log(0.7) + 0.1 * np.log(0.2) + 0.4 * np.log(0.5) +
              0.6 * np.log(0.2) + np.log(0.8))
  np.testing.assert_allclose(sums['cross_entropy'], (entropy, 3), rtol=1e-5)


def test_without_teacher_or_labels_there_is_less():
  assert set(metrics.classification(LOGITS, None, mask=MASK)) == set()
  assert set(metrics.classification(LOGITS, TEACHER, mask=MASK)) == {
      'kl', 'agreement'
  }
