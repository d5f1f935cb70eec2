"""The order of examples: epochs, and mixtures in exact proportions."""

from collections import Counter

import numpy as np
import pytest

from haikd.core import checks
from haikd.core import schedules
from haikd.data import orders


def mixed(sizes, weights, *, batch_size=8, seed=0):
  return orders.Mixed(
      sizes, {name: schedules.build(name, weight)
              for name, weight in weights.items()},
      batch_size=batch_size, seed=seed)


def read_counts(order, sizes, batches):
  """Returns how often each data set was read before each batch."""
  ends = np.cumsum([*sizes.values()])
  counts = np.array([
      np.bincount(np.searchsorted(ends, order.batch(i).indices, side='right'),
                  minlength=len(sizes)) for i in range(batches)])
  return np.concatenate([np.zeros((1, len(sizes)), int), counts.cumsum(0)])


def test_even_weights_fall_due_in_turn():
  # With weights 3 and 1, a falls due when 4/3 t passes 1/2, 3/2, 5/2, … and b
  # when 4 t does: at t = 2/3, 2, 10/3, 14/3, … and t = 2, 6, …; at t = 2 both
  # do, and a goes first. So a a b a | a a b a | …
  order = mixed(dict(a=100, b=100), dict(a=3, b=1), batch_size=1)
  drawn = ''.join('ab'[int(order.batch(i).indices[0] >= 100)]
                  for i in range(12))
  assert drawn == 'aabaaabaaaba'


@pytest.mark.parametrize('batch_size', [1, 8, 13])
def test_proportions_are_exact_after_any_number_of_batches(batch_size):
  sizes = dict(a=50, b=7, c=9)
  weights = dict(a=0.7, b=0.2, c=0.1)
  order = mixed(sizes, weights, batch_size=batch_size)
  counts = read_counts(order, sizes, 400)
  share = np.array([0.7, 0.2, 0.1])
  expected = np.arange(401)[:, None] * batch_size * share
  # Half an example, and its share of half an example for each data set.
  assert (abs(counts - expected) <= 0.5 + share * 1.5 + 1e-9).all()


@pytest.mark.parametrize('kind, totals', [
    # b's share rises from 0 to 1 in 40 steps: it is i/40 in step i, in all
    # (0 + … + 39)/40 = 19.5 batches of the first 40, and then every batch. For
    # the cosine, too, by symmetry: 20 but for half of the last step's share.
    ('linear', (19.5, 59.5)), ('cosine', (19.5, 59.5)),
])
def test_weights_follow_their_schedules(kind, totals):
  sizes = dict(a=30, b=30)
  rising = dict(kind=kind, start=0.0, end=1.0, steps=40)
  falling = dict(kind=kind, start=1.0, end=0.0, steps=40)
  order = mixed(sizes, dict(a=falling, b=rising), batch_size=10)
  counts = read_counts(order, sizes, 80)
  assert abs(counts[40, 1] - 10 * totals[0]) <= 1.5
  assert abs(counts[80, 1] - 10 * totals[1]) <= 1.5
  assert counts[80, 0] == counts[41, 0]
  assert (np.diff(counts[:, 1])[:5] <= 2).all()


def test_data_set_of_weight_0_is_not_read_until_its_weight_rises():
  sizes = dict(a=30, b=30)
  late = dict(kind='linear', start=0.0, end=1.0, begin=20, steps=1)
  counts = read_counts(mixed(sizes, dict(a=1, b=late)), sizes, 40)
  assert counts[21, 1] == 0 and abs(counts[40, 1] - 19 * 4) <= 1.5


def test_each_data_set_is_read_in_epochs_of_its_own():
  order = mixed(dict(a=5, b=40), dict(a=1, b=1), batch_size=10)
  drawn = np.concatenate([order.batch(i).indices for i in range(16)])
  seen = {name: [int(i) for i in drawn if (i < 5) == (name == 'a')]
          for name in 'ab'}
  assert {*Counter(seen['a']).values()} == {16}  # 80 examples of 5.
  assert {*Counter(seen['b']).values()} == {2}
  one, two = seen['b'][:40], seen['b'][40:]
  assert sorted(one) == sorted(two) == [*range(5, 45)]


def test_batch_depends_on_its_number_and_the_seed_alone():
  sizes, weights = dict(a=20, b=30), dict(a=1, b=2)
  order = mixed(sizes, weights)
  batches = [order.batch(i).indices for i in range(30)]
  again = mixed(sizes, weights)
  for i in (29, 3, 17):
    np.testing.assert_array_equal(again.batch(i).indices, batches[i])
  other = mixed(sizes, weights, seed=1)
  assert any((other.batch(i).indices != batches[i]).any() for i in range(3))


def test_batch_far_ahead_is_found_at_once():
  order = mixed(dict(a=20, b=30), dict(a=1, b=2), batch_size=512)
  counts = order._count(10**7)
  assert counts.sum() == 512 * 10**7
  assert abs(counts[0] - 512 * 10**7 / 3) <= 1


@pytest.mark.parametrize('weights, text', [
    (dict(a=1, b=-1), r"got .'a': 1.0, 'b': -1.0. at step 0"),
    (dict(a=0, b=0), "at least one of them above 0"),
    (dict(a=dict(kind='linear', start=1, end=0, steps=5), b=0),
     "got .'a': 0.0, 'b': 0.0. at step 5"),
])
def test_weights_that_cannot_be_shares_are_refused(weights, text):
  with pytest.raises(checks.ConfigError, match=text):
    mixed(dict(a=3, b=3), weights)


def test_stratified_order_has_every_stretch_in_proportion():
  labels = np.repeat([0, 1, 2], [60, 30, 10])
  order = orders.stratified(labels)
  assert sorted(order) == list(range(100))
  for stretch in labels[order].reshape(5, 20):
    counts = np.bincount(stretch, minlength=3)
    assert np.abs(counts - [12, 6, 2]).max() <= 1


@pytest.mark.parametrize('labels', (
    [], [5], [2, 0, 2, 2, -100, 0, 7], [3] * 9, range(50, 0, -1)))
def test_stratified_order_stays_what_it_was(labels):
  """Runs can go on only if a split keeps its order: class by class."""
  labels = np.array(labels, np.int32)
  random, place = np.random.RandomState(0), np.empty(len(labels))
  for label in sorted({*labels.tolist()}):
    members = random.permutation([
        i for i in range(len(labels)) if labels[i] == label])
    place[members] = [(i + 0.5) / len(members) for i in range(len(members))]
  np.testing.assert_array_equal(
      orders.stratified(labels), np.argsort(place, kind='stable'))


def test_stratified_order_of_many_classes_takes_one_pass():
  """Labels are never compared with one class: there may be 500,000."""
  compared = []

  class Counting(np.ndarray):

    def __eq__(self, other):
      compared.append(other)
      return np.asarray(self) == other

  labels = np.random.RandomState(1).permutation(2000).view(Counting)
  assert sorted(orders.stratified(labels)) == list(range(2000))
  assert not compared
