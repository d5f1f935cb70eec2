"""Losses on features, maps and heads against forms in NumPy, float64."""

import itertools
import math

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import losses
from haikd.core import checks
from haikd.losses import groups

STEP = 1e-5
MASK = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], bool)
QUERY_KEY = ('query', 'key')
QUERY_KEY_VALUE = (*QUERY_KEY, 'value')
FLOW = ('flow_start', 'flow_end')


def rows_of(features, mask):
  """One row for each example that counts, padding 0."""
  clean = np.where(mask[..., None], features, 0)
  return clean.reshape(len(mask), -1)[mask.any(1)]


def unit(x):
  length = np.linalg.norm(x, axis=-1, keepdims=True)
  return x / np.where(length > 0, length, 1)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def kl(p, q):
  return (p * np.log(p / q)).sum()


def huber(e):
  return e**2 / 2 if abs(e) <= 1 else abs(e) - 0.5


def similarity_preserving(student, teacher, mask):
  g = [unit(x @ x.T) for x in (rows_of(student, mask), rows_of(teacher, mask))]
  return ((g[0] - g[1])**2).sum(), len(g[0])**2


def relational_distance(student, teacher, mask):
  sides = []
  for x in (rows_of(student, mask), rows_of(teacher, mask)):
    pairs = list(itertools.permutations(x, 2))
    d = np.array([np.sqrt(((a - b)**2).sum()) for a, b in pairs])
    sides.append(d / d.mean())
  return sum(huber(s - t) for s, t in zip(*sides)), len(sides[0])


def relational_angle(student, teacher, mask):
  sides = []
  for x in (rows_of(student, mask), rows_of(teacher, mask)):
    sides.append([unit(a - b) @ unit(c - b)
                  for a, b, c in itertools.permutations(x, 3)])
  return sum(huber(s - t) for s, t in zip(*sides)), len(sides[0])


def probabilistic_transfer(student, teacher, mask):
  q, p = [], []
  for x, out in ((rows_of(student, mask), q), (rows_of(teacher, mask), p)):
    for i, row in enumerate(x):
      kernel = np.array([1 + unit(row) @ unit(y) for y in np.delete(x, i, 0)])
      out.append(kernel / kernel.sum())
  return sum(map(kl, p, q)), len(p)


def correlation(student, teacher, mask, gamma=0.4, order=2):
  kernels = []
  for x in (rows_of(student, mask), rows_of(teacher, mask)):
    kernels.append([[
        sum(math.exp(-2 * gamma) * (2 * gamma)**p / math.factorial(p) *
            (unit(a) @ unit(b))**p for p in range(order + 1))
        for b in x] for a in x])
  return (np.subtract(*kernels)**2).sum(), len(kernels[0])**2


def cka(student, teacher, mask):
  # Through the Gram matrices, which the loss does not form.
  grams = []
  for x in (student, teacher):
    x = x[mask]
    center = np.eye(len(x)) - 1 / len(x)
    grams.append(center @ x @ x.T @ center)
  inner = [[(a * b).sum() for a in grams] for b in grams]
  value = inner[0][1] / np.sqrt(inner[0][0] * inner[1][1])
  number = mask.sum()
  return number * (1 - value), number


def attention_kl(student, teacher, mask):
  total = 0.0
  for b, h, n in np.ndindex(student.shape[:3]):
    if mask[b, n]:
      q, p = (x[b, h, n][mask[b]] for x in (student, teacher))
      total += kl(p / p.sum(), q / q.sum())
  return total, mask.sum() * student.shape[1]


def heads_of(x, heads):
  return np.split(x, heads, axis=-1)


def attention_scores_mse(student, teacher, mask, heads):
  total, count = 0.0, 0
  for b, h in itertools.product(range(len(mask)), range(heads)):
    scores = []
    for side in (student, teacher):
      q, k = (heads_of(side[x][b], heads)[h][mask[b]] for x in QUERY_KEY)
      scores.append(q @ k.T / np.sqrt(q.shape[-1]))
    total += ((scores[0] - scores[1])**2).sum()
    count += scores[0].size
  return total, count


def minilm_relations(student, teacher, mask, relation_heads,
                     weights=(1, 1, 1)):
  total = 0.0
  for kind, weight in zip(QUERY_KEY_VALUE, weights):
    for b, h in itertools.product(range(len(mask)), range(relation_heads)):
      if not mask[b].any():
        continue
      q, p = (
          softmax(a @ a.T / np.sqrt(a.shape[-1]))
          for a in (heads_of(x[kind][b], relation_heads)[h][mask[b]]
                    for x in (student, teacher)))
      total += weight * kl(p, q)
  return total, mask.sum() * relation_heads


def activation_attention(student, teacher, mask, power=2):
  total = 0.0
  for i, real in enumerate(mask):
    if real.any():
      s, t = (unit((np.abs(x[i][real])**power).sum(-1))
              for x in (student, teacher))
      total += np.linalg.norm(s - t)
  return total, mask.any(1).sum()


def neuron_selectivity(student, teacher, mask):
  total = 0.0
  for i, real in enumerate(mask):
    if real.any():
      # Rows are channels; means over all pairs of kernels, as in the paper.
      s, t = (unit(x[i][real].T) for x in (student, teacher))
      k = lambda x, y: ((x @ y.T)**2).mean()
      total += k(t, t) + k(s, s) - 2 * k(s, t)
  return total, mask.any(1).sum()


def flow_of_procedure(student, teacher, mask):
  total = 0.0
  for i, real in enumerate(mask):
    if real.any():
      s, t = (np.mean([np.outer(x['flow_start'][i, n], x['flow_end'][i, n])
                       for n in np.flatnonzero(real)], axis=0)
              for x in (student, teacher))
      total += ((s - t)**2).sum()
  return total, mask.any(1).sum()


def contrastive(student, teacher, mask, params, data_size, size,
                temperature=0.07):
  del size
  keep = mask.any(1)
  s, t = (
      unit(np.stack([x[i][mask[i]].mean(0) for i in np.flatnonzero(keep)]) @
           params[name]['w'] + params[name]['b'])
      for name, x in (('student', student), ('teacher', teacher)))
  total, others = 0.0, len(s) - 1
  for i, j in np.ndindex(len(s), len(s)):
    e = np.exp(s[i] @ t[j] / temperature)
    h = e / (e + others / data_size)
    total -= np.log(h) if i == j else np.log(1 - h)
  return total, len(s)


def variational_information(student, teacher, mask, params, smallest=1e-5):
  mean = student[mask] @ params['mean']['w'] + params['mean']['b']
  variance = np.log1p(np.exp(params['~']['variance'])) + smallest
  values = np.log(variance) / 2 + (teacher[mask] - mean)**2 / (2 * variance)
  return values.sum(), values.size


def case(form, taps=(), width=4, teacher_width=6, **options):
  options_name = '-'.join(map(str, options.values()))
  return pytest.param(form, taps, width, teacher_width, options,
                      id=f'{form.__name__}{options_name and "-"}{options_name}')


CASES = (
    case(similarity_preserving), case(relational_distance),
    case(relational_angle), case(probabilistic_transfer), case(correlation),
    case(correlation, gamma=1.0, order=3), case(cka),
    case(attention_kl, teacher_width=4),
    case(attention_scores_mse, QUERY_KEY, heads=2),
    case(minilm_relations, QUERY_KEY_VALUE, relation_heads=2),
    case(minilm_relations, QUERY_KEY_VALUE, relation_heads=1,
         weights=(1, 0.5, 0)),
    case(activation_attention), case(activation_attention, power=3),
    case(neuron_selectivity), case(flow_of_procedure, FLOW, teacher_width=4),
    case(contrastive, data_size=20, size=3, temperature=0.5),
    case(variational_information),
)


def draw(form, taps, width, teacher_width):
  """Returns both sides in float64, exact in float32."""
  rng = np.random.default_rng(0)

  def side(width):
    if form is attention_kl:
      maps = softmax(rng.normal(size=(5, 2, 3, 3)))
      return np.float64(np.float32(maps))
    value = lambda: np.float64(np.float32(rng.normal(size=(5, 3, width))))
    return {kind: value() for kind in taps} if taps else value()

  return side(width), side(teacher_width)


def differences(function, tree):
  """Returns central differences of a function of a tree of NumPy arrays."""
  leaves, structure = jax.tree.flatten(tree)
  slopes = []
  for number, leaf in enumerate(leaves):
    slope = np.zeros(leaf.shape)
    for place in np.ndindex(leaf.shape):
      ends = []
      for sign in (1, -1):
        moved = leaf.copy()
        moved[place] += sign * STEP
        ends.append(function(structure.unflatten(
            [*leaves[:number], moved, *leaves[number + 1:]])))
      slope[place] = (ends[0] - ends[1]) / (2 * STEP)
    slopes.append(slope)
  return structure.unflatten(slopes)


@pytest.mark.parametrize('form, taps, width, teacher_width, options', CASES)
def test_value_and_gradient_are_those_of_numpy(
    form, taps, width, teacher_width, options):
  student, teacher = draw(form, taps, width, teacher_width)
  loss = hk.transform(lambda student, teacher: haikd.get_loss(form.__name__)(
      student, teacher, mask=jnp.asarray(MASK), **options))
  single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32),
                        (student, teacher))
  params = loss.init(jax.random.key(0), *single)

  def total(params, student, teacher):
    result = loss.apply(params, None, student, teacher)
    return result.total, result

  (_, got), gradients = jax.jit(jax.value_and_grad(
      total, (0, 1), has_aux=True))(params, *single)
  exact = jax.tree.map(np.float64, dict(params))
  learned = dict(params=exact) if params else {}
  expected = form(student, teacher, MASK, **learned, **options)
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  slopes = (
      differences(lambda x: form(student, teacher, MASK, **dict(
          learned, params=x), **options)[0], exact) if params else {},
      differences(lambda x: form(x, teacher, MASK, **learned, **options)[0],
                  student))
  largest = max(np.abs(x).max() for x in jax.tree.leaves(slopes))
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5,
                                              atol=1e-5 * largest),
      gradients, slopes)


@pytest.mark.parametrize('name, options', (
    ('relational_distance', {}), ('relational_angle', {}),
    ('minilm_relations', dict(relation_heads=2)),
    ('attention_scores_mse', dict(heads=2))))
def test_large_batches_go_piece_by_piece(monkeypatch, name, options):
  taps = dict(minilm_relations=QUERY_KEY_VALUE, attention_scores_mse=QUERY_KEY)
  student, teacher = jax.tree.map(
      lambda x: jnp.asarray(x, jnp.float32), draw(None, taps.get(name, ()), 4,
                                                  6))

  def measure(student):
    return jax.jit(jax.value_and_grad(lambda x: haikd.get_loss(name)(
        x, teacher, mask=jnp.asarray(MASK), **options).total))(student)

  at_once = measure(student)
  monkeypatch.setattr(groups, 'MOST_AT_ONCE', 0)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5,
                                                       atol=1e-6),
               measure(student), at_once)
  assert 'scan' in str(jax.make_jaxpr(measure)(student))


def on_line(*places):
  return jnp.array([[float(x)] for x in places])


def test_relations_by_hand():
  mask = jnp.ones(3, bool)
  # Distances 1, 2, 3 and 1, 1, 2; their means are 2 and 4/3. Potentials 1/2, 1,
  # 3/2 and 3/4, 3/4, 3/2: errors 1/4, 1/4, 0, each in both orders.
  got = losses.relational_distance(on_line(0, 1, 3), on_line(0, 1, 2),
                                   mask=mask)
  np.testing.assert_allclose(got, (4 * 0.25**2 / 2, 6), rtol=1e-6)
  # On a line, the middle has the cosine -1 and the ends 1. Once b is in the
  # middle and once c: two corners with errors of 2, at Huber 3/2, two orders.
  got = losses.relational_angle(on_line(0, 1, 3), on_line(0, 2, 1), mask=mask)
  np.testing.assert_allclose(got, (2 * 2 * 1.5, 6), rtol=1e-6)
  # G is [[1, 0], [0, 1]] for (1, 0), (0, 1), and all 1/√2 for equal rows.
  x = jnp.eye(2)
  got = losses.similarity_preserving(x, jnp.ones((2, 1)), mask=jnp.ones(2,
                                                                        bool))
  np.testing.assert_allclose(
      got, (2 * (1 - 0.5**0.5)**2 + 2 * 0.5, 4), rtol=1e-6)


def test_attention_kl_by_hand():
  # 1 ln(1 / (1/2)) for the first query; the second is equal.
  student = jnp.array([[[[0.5, 0.5], [0.2, 0.8]]]])
  teacher = jnp.array([[[[1.0, 0.0], [0.2, 0.8]]]])
  got = losses.attention_kl(student, teacher, mask=jnp.ones(1, bool))
  np.testing.assert_allclose(got, (np.log(2), 2), rtol=1e-6)


def test_attention_that_has_underflowed_gives_finite_numbers():
  student = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]])
  teacher = jnp.array([[[[0.5, 0.5], [0.0, 0.0]]]])
  value, grad = jax.value_and_grad(lambda x: losses.attention_kl(
      x, teacher, mask=jnp.ones(1, bool)).total)(student)
  np.testing.assert_allclose(value, -np.log(2) - np.log(1e-37) / 2, rtol=1e-6)
  assert np.isfinite(grad).all() and not grad[0, 0, 1].any()


@pytest.mark.parametrize('name', (
    'similarity_preserving', 'relational_distance', 'relational_angle',
    'probabilistic_transfer', 'correlation', 'cka'))
def test_examples_that_coincide_give_finite_gradients(name):
  student, teacher = jnp.ones((4, 3)), jnp.arange(12.0).reshape(4, 3)
  for sides in ((student, teacher), (teacher, student)):
    value, grad = jax.jit(jax.value_and_grad(lambda x, y: haikd.get_loss(name)(
        x, y, mask=jnp.ones(4, bool)).total))(*sides)
    assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize('name, options, message', (
    ('activation_attention', dict(power=0.5), 'power must be at least 1; got'),
    ('activation_attention', {}, 'must have places.*got student.shape'),
    ('neuron_selectivity', {}, 'must have places.*got student.shape'),
    ('correlation', dict(gamma=0), 'gamma must be positive; got 0'),
    ('correlation', dict(order=0), 'order must be an integer of at least 1'),
    ('contrastive', dict(data_size=0), 'data_size must be positive; got 0'),
    ('variational_information', dict(smallest=0), 'smallest must be positive'),
))
def test_what_cannot_be_right_is_refused(name, options, message):
  x = jnp.ones((3, 4))
  with pytest.raises(ValueError, match=message):
    haikd.get_loss(name)(x, x, mask=jnp.ones(3, bool), **options)


@pytest.mark.parametrize('name, taps, options, message', (
    ('attention_scores_mse', QUERY_KEY, dict(heads=3),
     'heads must be a positive integer that divides'),
    ('minilm_relations', QUERY_KEY_VALUE, dict(relation_heads=0),
     'relation_heads must be a positive integer that divides'),
    ('minilm_relations', QUERY_KEY_VALUE,
     dict(relation_heads=2, weights=(1, -1, 1)), 'weights must be three')))
def test_heads_that_do_not_fit_are_refused(name, taps, options, message):
  side = {kind: jnp.ones((2, 3, 4)) for kind in taps}
  with pytest.raises(checks.ConfigError, match=message):
    haikd.get_loss(name)(side, side, mask=jnp.ones(2, bool), **options)
