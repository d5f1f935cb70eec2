"""Tests of the decorator that registers a loss."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd.core import base
from haikd.core import checks
from haikd.core import registry


@pytest.fixture(autouse=True)
def temporary_registry():
  with registry.losses.temporary():
    yield


def difference(student, teacher, *, mask):
  """Absolute difference."""
  return haikd.masked_mean(jnp.abs(student - teacher), mask)


def test_registered_under_its_own_name():
  loss = haikd.register_loss(on='features')(difference)
  assert haikd.get_loss('difference') is loss
  assert 'difference' in haikd.loss_names()
  assert loss.__doc__ == 'Absolute difference.'
  assert list(inspect.signature(loss).parameters) == [
      'student', 'teacher', 'mask'
  ]


def test_registered_under_a_given_name():
  haikd.register_loss(
      'vendor/difference',
      on='block_3',
      example=dict(student=(2, 5), mask=(2,)),
      relational=True)(difference)
  entry = registry.losses['vendor/difference']
  assert entry[1:] == ('block_3', dict(student=(2, 5), mask=(2,)), True, False,
                       False, False, (), difference.__module__)


def test_taken_name_is_refused_with_both_modules():
  with pytest.raises(
      checks.ConfigError,
      match="name of a loss must be new; got 'kl_divergence' from .*, but "
      'haikd.losses.divergences has registered that name.*replace=True'):
    haikd.register_loss('kl_divergence', on='logits')(difference)


def test_taken_name_can_be_replaced():
  loss = haikd.register_loss(
      'kl_divergence', on='logits', replace=True)(difference)
  assert haikd.get_loss('kl_divergence') is loss


def test_unknown_name_is_refused_with_the_closest():
  with pytest.raises(
      checks.ConfigError,
      match="Did you mean 'kl_divergence'.*Known: .*plugin"):
    haikd.get_loss('kl_divergense')


def test_arrays_come_in_float32_with_zeros_behind_the_mask():
  seen = []

  @haikd.register_loss(on='features')
  def record(student, teacher, *, mask):
    seen.extend([student, teacher])
    return haikd.masked_mean(student, mask)

  record(
      jnp.array([[1.0, 2.0], [3.0, jnp.nan]], jnp.bfloat16),
      np.array([[5.0, 6.0], [7.0, np.inf]]),
      mask=jnp.array([True, False]))
  assert all(x.dtype == jnp.float32 for x in seen)
  np.testing.assert_array_equal(seen[0], [[1, 2], [0, 0]])
  np.testing.assert_array_equal(seen[1], [[5, 6], [0, 0]])


def test_maps_come_in_with_padded_keys_zeroed():
  seen = []

  @haikd.register_loss(on='attention')
  def record(student, teacher, *, mask):
    seen.append(student)
    return haikd.masked_mean(jnp.swapaxes(student, 1, 2), mask)

  record(
      jnp.ones((1, 2, 3, 3)),
      jnp.ones((1, 2, 3, 3)),
      mask=jnp.array([[True, False, True]]))
  row = [1, 0, 1]
  np.testing.assert_array_equal(seen[0], [[[row, [0, 0, 0], row]] * 2])


def test_labels_reach_only_a_loss_that_takes_them():
  haikd.register_loss(on='logits')(difference)

  @haikd.register_loss(on='logits')
  def labelled(student, teacher, *, mask, labels):
    return haikd.masked_mean(labels, mask)

  arguments = jnp.ones((2, 3)), jnp.ones((2, 3))
  options = dict(mask=jnp.ones(2, bool), labels=jnp.array([4, 5]))
  haikd.get_loss('difference')(*arguments, **options)
  assert labelled(*arguments, **options).total == 9


def test_missing_teacher_is_one_clear_error():
  loss = haikd.register_loss(on='features')(difference)
  with pytest.raises(TypeError, match='^teacher must be given, since'):
    loss(jnp.ones((2, 3)), mask=jnp.ones(2, bool))


def test_loss_without_a_teacher():

  @haikd.register_loss(on='features')
  def size(student, teacher=None, *, mask):
    assert teacher is None
    return haikd.masked_mean(jnp.abs(student), mask)

  assert size(jnp.ones((2, 3)), mask=jnp.ones(2, bool)).total == 6


def test_result_must_be_a_sum():

  @haikd.register_loss(on='features')
  def mean(student, teacher, *, mask):
    return jnp.mean(student)

  with pytest.raises(TypeError, match='^a loss must return a haikd.'
                     'LossSum; got .*masked_mean'):
    mean(jnp.ones((2, 3)), jnp.ones((2, 3)), mask=jnp.ones(2, bool))


def test_result_is_float32():

  @haikd.register_loss(on='features')
  def half(student, teacher, *, mask):
    return base.LossSum(jnp.sum(student).astype(jnp.bfloat16), 3)

  result = half(jnp.ones((2, 3)), jnp.ones((2, 3)), mask=jnp.ones(2, bool))
  assert result.total.dtype == result.count.dtype == jnp.float32


def linear_logits(rng, batch=2, positions=3, features=4, classes=5):
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return base.LinearLogits(
      draw(batch, positions, features), draw(features, classes), draw(classes))


def test_lazy_logits_are_logits():
  rng = np.random.default_rng(0)
  student, teacher = linear_logits(rng), linear_logits(rng, features=7)
  mask = jnp.array([[True, True, False], [False, True, True]])
  got = haikd.losses.kl_divergence(student, teacher, mask=mask)
  plain = (x.hidden @ x.kernel + x.bias for x in (student, teacher))
  expected = haikd.losses.kl_divergence(*plain, mask=mask)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize('content', [np.nan, np.inf, 1e4])
def test_padded_hidden_states_do_not_reach_the_kernel(content):
  rng = np.random.default_rng(0)
  student, teacher = linear_logits(rng), linear_logits(rng)
  mask = jnp.array([[True, True, False], [False, True, True]])

  def fill(logits, content):
    hidden = jnp.where(mask[..., None], logits.hidden, content)
    return logits._replace(hidden=hidden)

  grad = jax.value_and_grad(lambda s, t: haikd.losses.kl_divergence(
      s, t, mask=mask).total)
  got = grad(fill(student, content), fill(teacher, content))
  expected = grad(fill(student, 0.0), fill(teacher, 0.0))
  jax.tree.map(np.testing.assert_array_equal, got, expected)
  assert np.isfinite(got[0]) and got[1].kernel.any()


@pytest.mark.parametrize('content', [np.nan, np.inf, 1e4])
@pytest.mark.parametrize('masked', [True, False])
def test_padded_queries_and_keys_do_not_reach_the_others(content, masked):
  rng = np.random.default_rng(0)
  mask = jnp.array([[True, True, False], [False, True, True]])
  allowed = mask[:, None, None, :] if masked else None

  def draw():
    query, key = (
        jnp.asarray(rng.normal(size=(2, 3, heads, 4)), jnp.float32)
        for heads in (4, 2))
    return base.QueryKey(query, key)

  def fill(pair, content):
    query, key = (
        jnp.where(mask[..., None, None], x, content) for x in pair[:2])
    return base.QueryKey(query, key)

  def loss(student, teacher):
    student, teacher = (x._replace(mask=allowed) for x in (student, teacher))
    return haikd.losses.attention_transfer(student, teacher, mask=mask).total

  student, teacher = draw(), draw()
  grad = jax.value_and_grad(loss)
  got = grad(fill(student, content), fill(teacher, content))
  expected = grad(fill(student, 0.0), fill(teacher, 0.0))
  jax.tree.map(np.testing.assert_array_equal, got, expected)
  assert np.isfinite(got[0]) and got[1].query.any()


def test_hidden_states_must_fit_the_mask():
  rng = np.random.default_rng(0)
  with pytest.raises(ValueError, match=r'student\.hidden\.shape=\(2, 3, 4\)'):
    haikd.losses.kl_divergence(
        linear_logits(rng), linear_logits(rng), mask=jnp.ones((2, 4), bool))
