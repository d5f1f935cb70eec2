"""Losses of labels of which several may be true, by hand and by SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from haikd import losses

STUDENT = np.array([[0.0, 2.0, -1.0], [3.0, -0.5, 0.2], [9.0, 9.0, 9.0]])
TEACHER = np.array([[1.0, 0.5, -3.0], [-2.0, 0.0, 4.0], [1.0, 1.0, 1.0]])
LABELS = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.3], [np.nan, 0.0, 1.0]])
KEPT = 2
MASK = jnp.arange(3) < KEPT


def test_cross_entropy_is_that_of_each_sigmoid():
  q = special.expit(STUDENT)
  rows = -(LABELS * np.log(q) + (1 - LABELS) * np.log(1 - q))[:KEPT]
  loss = lambda x: losses.binary_cross_entropy(
      x, mask=MASK, labels=jnp.asarray(LABELS, jnp.float32))
  np.testing.assert_allclose(
      loss(jnp.asarray(STUDENT)), (rows.sum(), 6), rtol=1e-6)
  gradient = jax.grad(lambda x: loss(x).total)(
      jnp.asarray(STUDENT, jnp.float32))
  np.testing.assert_allclose(gradient[:KEPT], (q - LABELS)[:KEPT], rtol=1e-5)
  assert not gradient[KEPT:].any()


@pytest.mark.parametrize('temperature', (1.0, 3.0))
def test_divergence_is_that_of_two_outcomes_a_label(temperature):
  p, q = (special.expit(x / temperature) for x in (TEACHER, STUDENT))
  rows = temperature**2 * (special.rel_entr(p, q) +
                           special.rel_entr(1 - p, 1 - q))[:KEPT]
  loss = lambda x: losses.binary_kl(
      x, jnp.asarray(TEACHER, jnp.float32), mask=MASK, temperature=temperature)
  np.testing.assert_allclose(
      loss(jnp.asarray(STUDENT)), (rows.sum(), 6), rtol=1e-5)
  gradient = jax.grad(lambda x: loss(x).total)(
      jnp.asarray(STUDENT, jnp.float32))
  np.testing.assert_allclose(
      gradient[:KEPT], temperature * (q - p)[:KEPT], rtol=1e-5)


def test_certain_labels_stay_finite():
  certain = jnp.array([[1000.0, -1000.0]])
  mask, labels = jnp.ones(1, bool), jnp.array([[1.0, 0.0]])
  assert losses.binary_cross_entropy(
      certain, mask=mask, labels=labels).total == 0
  assert losses.binary_kl(certain, certain, mask=mask).total == 0
  assert losses.binary_kl(-certain, certain, mask=mask).total == 2000


@pytest.mark.parametrize('labels, error, match', (
    (None, ValueError, 'labels must be given'),
    (jnp.zeros((3, 2)), ValueError, 'must have the shape of the outputs'),
    (jnp.zeros((3, 3), int), TypeError, 'For classes use cross_entropy'),
))
def test_labels_that_do_not_fit_are_refused(labels, error, match):
  with pytest.raises(error, match=match):
    losses.binary_cross_entropy(
        jnp.asarray(STUDENT), mask=MASK, labels=labels)


def test_temperature_must_be_positive():
  with pytest.raises(ValueError, match='temperature must be positive'):
    losses.binary_kl(jnp.asarray(STUDENT), jnp.asarray(TEACHER), mask=MASK,
                     temperature=0.0)
