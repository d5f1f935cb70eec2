"""Layers that resemble one another are found, by CKA and by assignment."""

import itertools

import numpy as np
import pytest

from haikd.align import similarity


def brute_force(values, monotone):
  """Returns the largest sum of all legal assignments, by trying each."""
  depth, others = values.shape
  candidates = itertools.product(range(others), repeat=depth)
  legal = (
      x for x in candidates
      if (depth > others or len(set(x)) == depth) and
      (not monotone or list(x) == sorted(x)))
  return max(sum(values[i, j] for i, j in enumerate(x)) for x in legal)


@pytest.mark.parametrize('monotone', (True, False))
@pytest.mark.parametrize('shape', ((1, 1), (2, 5), (4, 4), (3, 6), (5, 3)))
def test_no_assignment_has_a_larger_sum(shape, monotone):
  for seed in range(20):
    values = np.random.default_rng(seed).random(shape)
    pairs = similarity.assign(values, monotone)
    assert [i for i, _ in pairs] == list(range(shape[0]))
    chosen = [j for _, (j,) in pairs]
    if monotone:
      assert chosen == sorted(chosen)
    if shape[0] <= shape[1]:
      assert len(set(chosen)) == shape[0]
    np.testing.assert_allclose(
        sum(values[i, j] for i, j in enumerate(chosen)),
        brute_force(values, monotone))


def test_what_cannot_be_told_counts_as_unrelated():
  values = np.array([[np.nan, 0.5, 0.1], [np.nan, 0.2, 0.4]])
  assert similarity.assign(values) == ((0, (1,)), (1, (2,)))


@pytest.mark.parametrize('seed', range(20))
def test_a_planted_correspondence_is_found(seed):
  """Layers of the student are turned, noisy parts of layers of the teacher."""
  rng = np.random.default_rng(seed)
  depth, teacher_depth = 3, 8
  teacher = rng.normal(size=(teacher_depth, 200, 24))
  planted = np.sort(rng.choice(teacher_depth, depth, replace=False))
  student = [teacher[j] @ rng.normal(size=(24, 16)) +
             2 * rng.normal(size=(200, 16)) for j in planted]
  values = similarity.cka(*([similarity.gram(x) for x in side]
                            for side in (student, teacher)))
  assert similarity.assign(values) == tuple(
      (i, (j,)) for i, j in enumerate(planted))


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
  found = similarity.cka(grams[:1], grams[1:])
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
  (same, other), = similarity.cka(
      [states @ states.T], [x @ x.T for x in (turned, unrelated)])
  np.testing.assert_allclose(same, 1)
  assert abs(other) < 0.2


def test_cka_of_three_examples_is_unknown():
  gram = np.eye(3)
  assert np.isnan(similarity.cka([gram], [gram])).all()
