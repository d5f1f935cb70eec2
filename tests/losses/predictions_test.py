"""Losses on predictions, against NumPy forms of their papers and by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import losses

# (B, N, V), a mask with padding, and labels.
SHAPE, TEMPERATURE = (2, 3, 7), 2.5
MASK = np.array([[True, True, True], [True, False, False]])
LABELS = np.array([[3, 0, 6], [2, 5, 5]])


def softmax(logits):
  exps = np.exp(logits)
  return exps / exps.sum(-1, keepdims=True)


def kl(p, q):
  return np.sum(p * np.log(p / q), axis=-1)


# Each form takes probabilities [R, V] of teacher and student, and labels [R],
# and returns the sum over rows. The first four are the papers' formulas.
def jensen_shannon(p, q, labels, beta=0.5):
  del labels
  m = beta * p + (1 - beta) * q
  return np.sum(beta * kl(p, m) + (1 - beta) * kl(q, m))


def skewed(p, q, labels, skew=0.1, reverse=False):
  del labels
  one, other = (q, p) if reverse else (p, q)
  return np.sum(kl(one, skew * one + (1 - skew) * other))


def decoupled(p, q, labels, alpha=1.0, beta=8.0):
  total = 0.0
  for p_row, q_row, label in zip(p, q, labels):
    others = np.arange(p.shape[-1]) != label
    pair = [np.array([x[label], x[others].sum()]) for x in (p_row, q_row)]
    rest = [x[others] / x[others].sum() for x in (p_row, q_row)]
    total += alpha * kl(*pair) + beta * kl(*rest)
  return total


def dist(p, q, labels, beta=1.0, gamma=1.0):
  del labels
  mean = lambda p, q: np.mean([1 - np.corrcoef(*x)[0, 1] for x in zip(p, q)])
  return len(p) * (beta * mean(p, q) + gamma * mean(p.T, q.T))


def top_k(p, q, labels, k=3, rest='bucket'):
  del labels
  total = 0.0
  for p_row, q_row in zip(p, q):
    order = np.argsort(-p_row)
    if rest == 'bucket':
      pair = [np.append(x[order[:k]], x[order[k:]].sum() + (k == len(x)))
              for x in (p_row, q_row)]
    else:
      pair = [x[order[:k]] / x[order[:k]].sum() for x in (p_row, q_row)]
    total += kl(*pair)
  return total


def universal(p, q, labels):
  del labels
  size = max(p.shape[-1], q.shape[-1])
  p, q = (np.pad(-np.sort(-x), ((0, 0), (0, size - x.shape[-1])))
          for x in (p, q))
  return np.abs(p - q).sum()


def smoothed(p, q, labels, label_smoothing):
  del p
  size = q.shape[-1]
  target = ((1 - label_smoothing) * np.eye(size)[labels] +
            label_smoothing / size)
  return -np.sum(target * np.log(q))


# (loss, form, options, classes of the teacher).
CASES = [
    ('reverse_kl', lambda p, q, _: kl(q, p).sum(), {}, 7),
    ('jensen_shannon', lambda p, q, _, beta: kl(p, q).sum(), dict(beta=0), 7),
    ('jensen_shannon', lambda p, q, _, beta: kl(q, p).sum(), dict(beta=1.0), 7),
    *(('jensen_shannon', jensen_shannon, dict(beta=x), 7)
      for x in (0.1, 0.5, 0.9)),
    ('skewed_kl', skewed, {}, 7),
    ('skewed_kl', skewed, dict(skew=0.3, reverse=True), 7),
    ('total_variation', lambda p, q, _: np.abs(p - q).sum() / 2, {}, 7),
    *(('top_k_kl', top_k, dict(k=k), 7) for k in (1, 3, 7)),
    ('top_k_kl', top_k, dict(k=4, rest='renormalise'), 7),
    ('decoupled_kd', decoupled, {}, 7),
    ('decoupled_kd', decoupled, dict(alpha=0.5, beta=2.0), 7),
    ('dist', dist, dict(beta=1.5, gamma=0.5), 7),
    ('universal_logit', universal, {}, 9),
    ('universal_logit', universal, {}, 4),
    ('cross_entropy', smoothed, dict(label_smoothing=0.2), None),
]
LABELLED = ('decoupled_kd', 'cross_entropy')


def finite_differences(function, array, step=1e-6):
  gradient = np.zeros_like(array)
  for index in np.ndindex(*array.shape):
    ends = []
    for sign in (1, -1):
      moved = array.copy()
      moved[index] += sign * step
      ends.append(function(moved))
    gradient[index] = (ends[0] - ends[1]) / (2 * step)
  return gradient


@pytest.mark.parametrize('loss, form, options, classes', CASES, ids=[
    '-'.join([x[0], *map(str, x[2].values()), str(x[3])]) for x in CASES])
def test_value_and_gradient_are_those_of_the_paper(loss, form, options,
                                                   classes):
  rng = np.random.default_rng(0)
  student = 2 * rng.normal(size=SHAPE)
  temperature = TEMPERATURE if classes else 1.0
  teacher = 2 * rng.normal(size=(*SHAPE[:2], classes or 1))

  def expected(student):
    p, q = (softmax(x[MASK] / temperature) for x in (teacher, student))
    return temperature**2 * form(p, q, LABELS[MASK], **options)

  @jax.jit
  @jax.value_and_grad
  def got(student):
    keywords = dict(options, mask=jnp.asarray(MASK))
    target = jnp.asarray(teacher, jnp.float32) if classes else None
    if loss in LABELLED:
      keywords['labels'] = jnp.asarray(LABELS)
    if classes:
      keywords['temperature'] = temperature
    return losses.get_loss(loss)(student, target, **keywords).total

  value, gradient = got(jnp.asarray(student, jnp.float32))
  np.testing.assert_allclose(value, expected(student), rtol=1e-5)
  by_differences = finite_differences(expected, student)
  np.testing.assert_allclose(gradient, by_differences, rtol=1e-5,
                             atol=1e-5 * np.abs(by_differences).max())


def call(name, student, teacher, **options):
  """Returns the total of rows of logits."""
  student, teacher = (
      None if x is None else jnp.asarray(x, jnp.float32)
      for x in (student, teacher))
  mask = jnp.ones(len(student), bool)
  return losses.get_loss(name)(student, teacher, mask=mask, **options).total


# p = (3/4, 1/4) and q = (1/2, 1/2), m = (5/8, 3/8). KL(p || q) = 3/4 log(3/2)
# + 1/4 log(1/2) = 0.1308122, and KL(q || p) = 1/2 log(2/3) + 1/2 log 2.
@pytest.mark.parametrize('name, options, expected', (
    ('reverse_kl', {}, 0.1438410),
    # 1/2 (3/4 log(6/5) + 1/4 log(2/3) + 1/2 log(4/5) + 1/2 log(4/3)).
    ('jensen_shannon', {}, 0.0338221),
    # 3/4 log(0.75/0.525) + 1/4 log(0.25/0.475).
    ('skewed_kl', {}, 0.1070427),
    # 1/2 log(0.5/0.725) + 1/2 log(0.5/0.275).
    ('skewed_kl', dict(reverse=True), 0.1131367),
    ('total_variation', {}, 0.25),
    ('universal_logit', {}, 0.5),
    # Two classes are a class and the rest, and a label and no label.
    ('top_k_kl', dict(k=1), 0.1308122),
    ('decoupled_kd', dict(labels=jnp.array([1]), temperature=1.0), 0.1308122),
    # Rows are (1/4, -1/4) and (0, 0) off their mean: nothing to correlate.
    ('dist', {}, 0.0)))
def test_two_classes_by_hand(name, options, expected):
  got = call(name, [[0.0, 0.0]], [[math.log(3.0), 0.0]], **options)
  np.testing.assert_allclose(got, expected, rtol=2e-6)


def test_smoothed_label_by_hand():
  # q = (1/4, 3/4), the target (0.9, 0.1): 0.9 log 4 + 0.1 log(4/3).
  student = [[0.0, math.log(3.0)]]
  for labels in (jnp.array([0]), jnp.array([[1.0, 0.0]])):
    got = call('cross_entropy', student, None, labels=labels,
               label_smoothing=0.2)
    np.testing.assert_allclose(got, 1.2764331, rtol=1e-6)


def test_correlation_of_a_row_by_hand():
  # Off their means p = (5, -1, -4)/30 and q = (-4, -1, 5)/30: r = -39/42. One
  # row has no correlation by class.
  got = call('dist', np.log([[0.2, 0.3, 0.5]]), np.log([[0.5, 0.3, 0.2]]))
  np.testing.assert_allclose(got, 1 + 39 / 42, rtol=1e-6)


@pytest.mark.parametrize('options', (dict(beta=0.0), dict(gamma=0.0)))
def test_what_is_constant_but_for_rounding_has_no_correlation(options):
  # Three equal rows are constant in each class; 7 equal classes in each row.
  teacher = np.log(np.tile([0.31, 0.17, 0.13, 0.11, 0.1, 0.09, 0.09], (3, 1)))
  if 'gamma' in options:
    teacher = np.zeros((3, 7))
  student = np.random.default_rng(1).normal(size=(3, 7))
  assert call('dist', student, teacher, **options) == 0.0


# As T grows, q - p becomes small and T^2 KL tends to the 1/9 + 4/225 of
# divergences_test.py: a mixture's share of the difference enters squared.
@pytest.mark.parametrize('name, options, factor', (
    ('reverse_kl', {}, 1.0),
    ('jensen_shannon', dict(beta=0.3), 0.3 * 0.7),
    ('skewed_kl', dict(skew=0.1), 0.9**2),
    ('skewed_kl', dict(skew=0.1, reverse=True), 0.9**2)))
def test_rounding_does_not_show_at_high_temperatures(name, options, factor):
  got = call(name, [[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]],
             [[1.5, 0.0, -0.5], [0.2, -0.1, 0.0]], temperature=1e4,
             **options)
  np.testing.assert_allclose(got, factor * (1 / 9 + 4 / 225), rtol=5e-3)


def test_a_scheduled_beta_has_the_kls_at_its_ends():
  student, teacher = [[2.0, 0.5, -1.0]], [[1.5, 0.0, -0.5]]
  scheduled = jax.jit(jax.grad(
      lambda student, beta: call('jensen_shannon', student, teacher, beta=beta)
  ))
  for beta in (0.0, 0.4, 1.0):
    expected = jax.grad(lambda student, beta=beta: call(
        'jensen_shannon', student, teacher, beta=beta))(jnp.array(student))
    np.testing.assert_allclose(
        scheduled(jnp.array(student), beta), expected, rtol=1e-5)


@pytest.mark.parametrize('name, options', (
    ('jensen_shannon', dict(beta=1.1)), ('skewed_kl', dict(skew=0.0)),
    ('cross_entropy', dict(label_smoothing=-0.1))))
def test_a_schedule_that_leaves_the_range_gives_nan(name, options):
  labels = dict(labels=jnp.array([1])) if name in LABELLED else {}
  got = jax.jit(lambda options: call(
      name, [[0.0, 1.0]], [[1.0, 0.0]], **options, **labels))(options)
  assert np.isnan(got)


@pytest.mark.parametrize('name', (
    'jensen_shannon', 'skewed_kl', 'total_variation', 'universal_logit'))
def test_a_class_that_either_side_rules_out_is_finite(name):
  # q = (1, 0, 1, 0)/2 and p = (1, 1, 0, 0)/2.
  student = jnp.array([[0.0, -jnp.inf, 0.0, -jnp.inf]])
  teacher = [[0.0, 0.0, -np.inf, -np.inf]]
  value, gradient = jax.value_and_grad(
      lambda student: call(name, student, teacher))(student)
  # JS: 1/2 log 2. SKL: 1/2 log(1/2 / (1/2)) + 1/2 log(1 / 0.1).
  expected = dict(jensen_shannon=0.3465736, skewed_kl=1.1512925,
                  total_variation=0.5, universal_logit=0.0)[name]
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert np.isfinite(gradient).all()


def test_a_class_that_the_student_rules_out_adds_nothing_to_the_reverse_kl():
  # q = (1, 0, 1)/2, p = (1, 2, 1)/4: log 2, and q (log(q/p) - KL) is 0.
  value, gradient = jax.value_and_grad(
      lambda student: call('reverse_kl', student, [[0.0, math.log(2.0), 0.0]]))(
          jnp.array([[0.0, -jnp.inf, 0.0]]))
  np.testing.assert_allclose(value, math.log(2.0), rtol=1e-6)
  np.testing.assert_allclose(gradient, np.zeros((1, 3)), atol=1e-6)


def test_coarse_divergence_grows_with_k_up_to_the_full_one():
  rng = np.random.default_rng(2)
  student, teacher = (3 * rng.normal(size=(5, 9)) for _ in range(2))
  values = [call('top_k_kl', student, teacher, k=k) for k in (1, 3, 5, 9)]
  assert values[0] > 0 and np.all(np.diff(values) > 0)
  np.testing.assert_allclose(
      values[-1], call('kl_divergence', student, teacher), rtol=1e-6)


def test_a_tiny_rest_keeps_its_gradient():
  # Probabilities of the rest are P = 2 e^-30 and Q = e^-28 + e^-31, and the
  # divergence P log(P/Q) + Q - P; 1 less the first would be 0 in float32.
  rest, other = 2 * math.exp(-30), math.exp(-28) + math.exp(-31)
  value, gradient = jax.value_and_grad(
      lambda student: call('top_k_kl', student, [[0.0, -30.0, -30.0]], k=1))(
          jnp.array([[0.0, -28.0, -31.0]]))
  np.testing.assert_allclose(
      value, rest * math.log(rest / other) + other - rest, rtol=1e-4)
  shares = np.exp([-28.0, -31.0]) / other
  np.testing.assert_allclose(
      gradient[0, 1:], (other - rest) * shares, rtol=1e-4)


@pytest.mark.parametrize('label, total, count', (
    (-100, 0.0, 0), (7, np.nan, 1), (-1, np.nan, 1)))
def test_labels_of_decoupled_kd_are_those_of_cross_entropy(label, total, count):
  result = losses.decoupled_kd(
      jnp.zeros((1, 3)), jnp.ones((1, 3)), mask=jnp.ones(1, bool),
      labels=jnp.array([label]))
  np.testing.assert_equal(tuple(map(float, result)), (total, count))


@pytest.mark.parametrize('name, options, error, match', (
    ('jensen_shannon', dict(beta=1.5), ValueError,
     '^beta must lie between 0 and 1; got 1.5'),
    ('skewed_kl', dict(skew=0), ValueError,
     '^skew must be above 0 and below 1; got 0. For 0 use kl_divergence'),
    ('skewed_kl', dict(skew=1.0), ValueError, '^skew must be above 0'),
    ('top_k_kl', dict(k=4), ValueError,
     '^k must lie between 1 and V, the number of classes; got k=4, V=3'),
    ('top_k_kl', dict(k=1, rest='renormalise'), ValueError,
     '^k must lie between 2 and V'),
    ('top_k_kl', dict(k=2.0), TypeError, '^k must be an integer; got 2.0'),
    ('top_k_kl', dict(rest='drop'), ValueError,
     "^rest must be one of bucket, renormalise; got 'drop'"),
    ('decoupled_kd', dict(labels=jnp.array([0]), beta=-1.0), ValueError,
     '^beta must be 0 or more; got -1.0'),
    ('decoupled_kd', dict(labels=jnp.ones((1, 3))), TypeError,
     '^labels must be integers.*float32'),
    ('decoupled_kd', {}, ValueError, '^labels must be given; got None'),
    ('dist', dict(gamma=-1), ValueError, '^gamma must be 0 or more; got -1'),
    ('cross_entropy', dict(labels=jnp.array([0]), label_smoothing=1.0),
     ValueError, '^label_smoothing must be 0 or more, and below 1; got 1.0'),
    ('total_variation', dict(temperature=0), ValueError,
     '^temperature must be positive; got 0')))
def test_what_cannot_be_right_is_refused(name, options, error, match):
  with pytest.raises(error, match=match):
    call(name, np.zeros((1, 3)), np.zeros((1, 3)), **options)
