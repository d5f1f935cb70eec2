"""Losses on scores of candidates against forms in NumPy, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import losses
from haikd.core import checks
from haikd.core import registry
from haikd.losses import groups

STEP = 1e-5
B, S, N, D, E = 5, 4, 3, 5, 7
# With a negative missing, without a query, whole, without a positive, and with
# one candidate.
REAL = np.array([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1], [1, 0, 1, 1],
                 [1, 1, 0, 0]], bool)
TOKENS = REAL[..., None] & (np.arange(N) < np.array(
    [[3, 2, 1, 1], [1, 2, 3, 1], [2, 3, 1, 2], [1, 1, 2, 3],
     [2, 1, 1, 1]])[..., None])


def product(query, text):
  """The score of a text: with a row for each token, MaxSim."""
  if query.ndim == 1:
    return query @ text
  return sum(max(q @ t for t in text) for q in query)


def candidates(vectors, mask, b):
  """Scores of the real candidates of a query, by number; {} without it."""
  tokens = (lambda s: vectors[b, s]) if vectors.ndim == 3 else (
      lambda s: vectors[b, s][mask[b, s]])
  real = mask if mask.ndim == 2 else mask.any(-1)
  if not real[b, 0]:
    return {}
  return {s: product(tokens(0), tokens(s)) for s in range(1, S) if real[b, s]}


def targets(teacher, labels, mask, b):
  if labels is None:
    return candidates(teacher, mask, b)
  return {s: labels[b, s - 1] for s in range(1, S)}


def margin_mse(student, teacher, mask, labels, scale=1.0):
  errors = []
  for b in range(B):
    s, t = candidates(student, mask, b), targets(teacher, labels, mask, b)
    errors += [(scale * (s[1] - s[i]) - (t[1] - t[i]))**2
               for i in s if i > 1 and 1 in s]
  return sum(errors), len(errors)


def log_softmax(x):
  return x - np.log(np.exp(x).sum())


def score_kl(student, teacher, mask, labels, temperature=1.0,
             teacher_temperature=None):
  values = []
  for b in range(B):
    s, t = candidates(student, mask, b), targets(teacher, labels, mask, b)
    if len(s) > 1:
      q = log_softmax(np.array([s[i] for i in s]) / temperature)
      p = log_softmax(np.array([t[i] for i in s]) / (
          teacher_temperature or temperature))
      values.append(temperature**2 * (np.exp(p) * (p - q)).sum())
  return sum(values), len(values)


maxsim_kl = score_kl


def info_nce(student, teacher, mask, labels, temperature=0.05):
  del teacher, labels
  texts = [student[place] for place in zip(*np.nonzero(mask)) if place[1]]
  values = []
  for b in range(B):
    if mask[b, 0] and mask[b, 1]:
      scores = np.array([product(student[b, 0], x) for x in texts])
      right = product(student[b, 0], student[b, 1])
      values.append(np.log(np.exp(scores / temperature).sum()) -
                    right / temperature)
  return sum(values), len(values)


def case(form, name='', labels=False, **options):
  name = name or form.__name__
  title = '-'.join((name, 'labels' if labels else 'teacher',
                    *map(str, options.values())))
  return pytest.param(form, name, labels, options, id=title)


CASES = (
    case(margin_mse), case(margin_mse, labels=True, scale=3.0),
    case(score_kl, temperature=0.5), case(score_kl, labels=True),
    case(score_kl, labels=True, temperature=0.5, teacher_temperature=2.0),
    case(maxsim_kl, 'maxsim_kl', temperature=2.0),
    case(maxsim_kl, 'maxsim_kl', labels=True, teacher_temperature=2.0),
    case(info_nce, temperature=0.7))


def draw(name):
  """Returns both sides, scores and a mask; exact in float32."""
  rng = np.random.default_rng(0)
  tokens = (N,) if name == 'maxsim_kl' else ()
  value = lambda *shape: np.float64(np.float32(rng.normal(size=shape)))
  width = D if name == 'info_nce' else E
  return (value(B, S, *tokens, D), value(B, S, *tokens, width),
          value(B, S - 1), TOKENS if tokens else REAL)


def call(name, student, teacher, mask, labels, options):
  return haikd.get_loss(name)(
      *(x if x is None else jnp.asarray(x, jnp.float32)
        for x in (student, teacher)), mask=jnp.asarray(mask),
      **({} if labels is None else dict(labels=jnp.asarray(labels))),
      **options)


def differences(function, array):
  slope = np.zeros(array.shape)
  for place in np.ndindex(array.shape):
    ends = []
    for sign in (1, -1):
      moved = array.copy()
      moved[place] += sign * STEP
      ends.append(function(moved))
    slope[place] = (ends[0] - ends[1]) / (2 * STEP)
  return slope


@pytest.mark.parametrize('form, name, has_labels, options', CASES)
def test_value_and_gradient_are_those_of_numpy(form, name, has_labels,
                                               options):
  student, teacher, labels, mask = draw(name)
  real = mask if mask.ndim == 2 else mask.any(-1)
  # What stands for a text that is missing must not matter.
  filled = np.where(real[:, 1:], labels, np.nan) if has_labels else None
  teacher = None if has_labels else teacher

  def total(student):
    result = call(name, student, teacher, mask, filled, options)
    return result.total, result

  (_, got), gradient = jax.jit(
      jax.value_and_grad(total, has_aux=True))(jnp.float32(student))
  labels = labels if has_labels else None
  expected = form(student, teacher, mask, labels, **options)
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  slope = differences(
      lambda x: form(x, teacher, mask, labels, **options)[0], student)
  np.testing.assert_allclose(gradient, slope, rtol=1e-5,
                             atol=1e-5 * np.abs(slope).max())


def test_margins_by_hand():
  # Scores 3, 1 and 0: margins 2 and 3. The teacher's are 1 and 5, and errors 1
  # and 4; at scale 2 margins 4 and 6, errors 9 and 1.
  texts = jnp.array([[[1.0, 0], [3, 1], [1, 0], [0, 9]]])
  labels = jnp.array([[2.0, 1, -3]])
  for scale, expected in ((1, 1 + 4), (2, 9 + 1)):
    got = losses.margin_mse(texts, mask=jnp.ones(1, bool), labels=labels,
                            scale=scale)
    np.testing.assert_allclose(got, (expected, 2), rtol=1e-6)


def test_maxsim_by_hand():
  # Two tokens a text; those of the query find 2 and 1, then 0 and 3. The
  # softmax of (3, 3) is even, against 1/4 and 3/4 of the teacher.
  texts = jnp.array([[[[1.0, 0], [0, 1]], [[2, 0], [1, 1]], [[0, 3], [0, 1]]]])
  got = losses.maxsim_kl(texts, mask=jnp.ones(1, bool),
                         labels=jnp.array([[0.0, np.log(3)]]))
  expected = np.log(2) + np.log(1 / 4) / 4 + 3 / 4 * np.log(3 / 4)
  np.testing.assert_allclose(got, (expected, 1), rtol=1e-5)


def test_margins_are_scores_up_to_a_shift():
  """So data that has margins alone, 0 less each, gives the same losses."""
  student, _, labels, mask = draw('score_kl')
  for name in ('margin_mse', 'score_kl'):
    results = [call(name, student, None, mask, x, {})
               for x in (labels, labels - labels[:, :1])]
    np.testing.assert_allclose(*results, rtol=1e-5)


def test_large_maxsim_goes_text_by_text(monkeypatch):
  student, teacher, _, mask = draw('maxsim_kl')

  def measure(student):
    return jax.jit(jax.value_and_grad(lambda x: call(
        'maxsim_kl', x, teacher, mask, None, {}).total))(student)

  at_once = measure(jnp.float32(student))
  monkeypatch.setattr(groups, 'MOST_AT_ONCE', 0)
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
      measure(jnp.float32(student)), at_once)
  assert 'scan' in str(jax.make_jaxpr(measure)(jnp.float32(student)))


@pytest.mark.parametrize('name, shape, given, match', (
    ('margin_mse', (2, 2, 5), {}, 'a query, its positive and at least one neg'),
    ('score_kl', (2, 3), {}, r'must be \[B, S, D\] with a query, its positive'),
    ('maxsim_kl', (2, 3, 5), {}, r'must be \[B, S, N, D\]'),
    ('info_nce', (2, 1, 5), {}, 'must be .* with a query and its positive'),
    ('score_kl', (2, 3, 5), dict(labels=jnp.zeros(2)),
     r'labels must be the scores of each candidate, .* labels.shape=\(2,\)'),
    ('margin_mse', (2, 3, 5), dict(scale=0), 'scale must be positive; got 0'),
    ('score_kl', (2, 3, 5), dict(temperature=0), 'temperature must be positi'),
    ('score_kl', (2, 3, 5), dict(teacher_temperature=-1),
     'temperature must be positive; got -1'),
    ('info_nce', (2, 3, 5), dict(temperature=0), 'temperature must be positi'),
))
def test_what_cannot_be_right_is_refused(name, shape, given, match):
  x = jnp.ones(shape)
  with pytest.raises(ValueError, match=match):
    haikd.get_loss(name)(x, x, mask=jnp.ones(2, bool), **given)


def test_scores_come_from_labels_or_a_teacher():
  with pytest.raises(TypeError, match='labels or teacher must be given; got'):
    losses.score_kl(jnp.ones((2, 3, 5)), mask=jnp.ones(2, bool))


def test_loss_on_scores_takes_both():
  with registry.losses.temporary(), pytest.raises(
      checks.ConfigError, match='scores=True must come with teacher=None and'):

    @haikd.register_loss(on='embedding', scores=True)
    def wrong(student, teacher, *, mask, labels=None):
      del student, teacher, mask, labels
