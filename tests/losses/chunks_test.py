"""Losses of logits that are never whole, against the same of whole ones.

The reference materialises everything and is differentiated by JAX; its losses
are written out here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.losses import chunks
from haikd.losses import cutting

B, N, V, D, E = 3, 50, 37, 8, 12  # Widths D of the student, E of the teacher.
T, WEIGHTS = 2.0, (0.9, 0.1)
# 16 positions to a chunk, which does not divide 150.
SIZES = cutting.ChunkSizes(chunk_bytes=16 * V * 4)


def make(seed=0, dtype=jnp.float32, bias=False, scale=None, soft_cap=None):
  rng = np.random.default_rng(seed)

  def side(width):
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return base.LinearLogits(
        array(B, N, width), array(width, V),
        array(V) if bias else None, scale, soft_cap)

  labels = jnp.asarray(rng.integers(0, V, (B, N)))
  return side(D), side(E), labels.at[0, 3].set(-100)


def mask_of(kind):
  lengths = dict(none=(N, N, N), right=(50, 20, 7), row=(50, 0, 9),
                 all=(0, 0, 0))
  if kind == 'left':
    return jnp.arange(N) >= N - jnp.array([50, 20, 7])[:, None]
  if kind == 'scattered':
    return jnp.asarray(np.random.default_rng(1).random((B, N)) < 0.4)
  return jnp.arange(N) < jnp.array(lengths[kind])[:, None]


def by_hand(student, teacher, mask, labels, temperature=T, weights=WEIGHTS):
  """Returns the weighted sum of two losses of whole logits."""
  clean = lambda x: jnp.where(mask[..., None], x, 0.0)

  def logits(side):
    x = clean(side.hidden.astype(jnp.float32)) @ side.kernel.astype(jnp.float32)
    x = x if side.bias is None else x + side.bias.astype(jnp.float32)
    x = x if side.scale is None else x * side.scale
    return x if side.soft_cap is None else side.soft_cap * jnp.tanh(
        x / side.soft_cap)

  s, t = logits(student), logits(teacher)
  log_p = jax.nn.log_softmax(t / temperature)
  log_q = jax.nn.log_softmax(s / temperature)
  kl = temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
  has_label = mask & (labels != -100)
  picked = jnp.take_along_axis(
      jax.nn.log_softmax(s), jnp.maximum(labels, 0)[..., None], -1)[..., 0]
  return (weights[0] * jnp.sum(jnp.where(mask, kl, 0.0)) -
          weights[1] * jnp.sum(jnp.where(has_label, picked, 0.0)))


def soft(student, teacher, *, mask, labels, temperature=T):
  del labels
  return haikd.losses.kl_divergence(
      student, teacher, mask=mask, temperature=temperature)


def hard(student, teacher, *, mask, labels):
  del teacher
  return haikd.losses.cross_entropy(student, mask=mask, labels=labels)


def in_chunks(student, teacher, mask, labels, sizes=SIZES, weights=WEIGHTS,
              losses=(soft, hard)):
  return chunks.weighted(
      losses, jnp.array(weights), student, teacher, mask=mask, labels=labels,
      sizes=sizes)[0]


def assert_close(got, wanted, rtol=1e-5):
  """To `rtol` of the largest number of each array."""
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    largest = float(jnp.max(jnp.abs(y)))
    np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * largest)


def check(kind, compiled=lambda function: function, **options):
  student, teacher, labels = make(**options)
  mask = mask_of(kind)
  got, wanted = (
      compiled(jax.value_and_grad(function, (0, 1)))(
          student, teacher, mask, labels) for function in (in_chunks, by_hand))
  assert_close(got, wanted)


@pytest.mark.parametrize('kind, compiled', [
    *((kind, jax.jit) for kind in (
        'none', 'right', 'left', 'scattered', 'row', 'all')),
    ('right', lambda function: function)])
def test_value_and_gradient_are_those_of_whole_logits(kind, compiled):
  check(kind, compiled)


@pytest.mark.parametrize('options', [
    dict(bias=True), dict(scale=0.3), dict(soft_cap=2.0),
    dict(bias=True, scale=1.5, soft_cap=3.0)])
def test_bias_scale_and_cap_of_logits_have_their_gradients(options):
  check('right', **options)


@pytest.mark.parametrize('rows', [1, 7, 150, 1000])
def test_any_size_of_chunks_gives_the_same(rows):
  student, teacher, labels = make()
  mask = mask_of('right')
  sizes = cutting.ChunkSizes(rows * V * 4)
  got = jax.value_and_grad(in_chunks)(student, teacher, mask, labels, sizes)
  assert_close(got, jax.value_and_grad(by_hand)(student, teacher, mask, labels))


def test_tied_table_has_the_sum_of_both_gradients():
  student, teacher, labels = make()
  tokens = jnp.asarray(np.random.default_rng(2).integers(0, V, (B, N)))
  mask = mask_of('right')

  def tied(function, table):
    own = base.LinearLogits(jnp.tanh(table[tokens]), table.T)
    return function(own, teacher, mask, labels)

  got, wanted = (
      jax.grad(functools.partial(tied, function))(student.kernel.T)
      for function in (in_chunks, by_hand))
  assert_close(got, wanted)


def test_bfloat16_is_summed_in_float32():
  student, teacher, labels = make(dtype=jnp.bfloat16)
  mask = mask_of('right')
  run = jax.value_and_grad(in_chunks)
  value, gradient = run(student, teacher, mask, labels)
  assert value.dtype == jnp.float32
  assert gradient.kernel.dtype == gradient.hidden.dtype == jnp.bfloat16
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), (student, teacher))
  wanted = jax.value_and_grad(by_hand)(*wide, mask, labels)
  assert_close(value, wanted[0])
  # bfloat16 has 8 bits: 2^-9 from rounding products, as much from the result.
  assert_close(gradient, wanted[1], rtol=2**-7)


def test_float16_gradients_of_a_mean_over_many_do_not_vanish():
  student, teacher, labels = make(dtype=jnp.float16)
  mask = mask_of('none')
  tiny = jnp.array(WEIGHTS) * 1e-7  # Below what float16 can tell from 0.

  def scaled(student):
    return 1e7 * in_chunks(student, teacher, mask, labels, weights=tiny)

  wide = jax.tree.map(lambda x: x.astype(jnp.float32), (student, teacher))
  wanted = jax.grad(by_hand)(*wide, mask, labels)
  assert_close(jax.grad(scaled)(student), wanted, rtol=5e-3)


@pytest.mark.parametrize('bad', [jnp.nan, jnp.inf])
def test_what_stands_behind_the_mask_changes_no_bit(bad):
  student, teacher, labels = make()
  mask = mask_of('right')
  spoil = lambda x: x._replace(
      hidden=jnp.where(mask[..., None], x.hidden, bad))
  run = jax.value_and_grad(in_chunks, (0, 1))
  clean = run(student, teacher, mask, labels)
  spoilt = run(spoil(student), spoil(teacher), mask,
               jnp.where(mask, labels, V + 5))
  for x, y in zip(jax.tree.leaves(clean), jax.tree.leaves(spoilt)):
    np.testing.assert_array_equal(x, y)


def test_temperature_may_change_from_step_to_step():
  student, teacher, labels = make()
  mask = mask_of('right')

  @jax.jit
  def run(step):
    warm = functools.partial(soft, temperature=1.0 + step)
    return jax.value_and_grad(in_chunks)(
        student, teacher, mask, labels, losses=(warm, hard))

  for step in (0.0, 3.0):
    assert_close(run(step), jax.value_and_grad(by_hand)(
        student, teacher, mask, labels, 1.0 + step))


def test_sums_are_those_of_each_loss():
  student, teacher, labels = make()
  mask = mask_of('right')
  _, sums = chunks.weighted((soft, hard), jnp.ones(2), student, teacher,
                            mask=mask, labels=labels, sizes=SIZES)
  for loss, found in zip(((1, 0), (0, 1)), sums):
    wanted = by_hand(student, teacher, mask, labels, weights=loss)
    np.testing.assert_allclose(found.total, wanted, rtol=1e-5)
  # 50 + 20 + 7 positions, of which one has no label.
  assert [float(x.count) for x in sums] == [77, 76]


def test_registered_losses_take_it_and_give_one_gradient_each():
  student, teacher, labels = make()
  mask = mask_of('right')

  def total(student):
    return haikd.losses.kl_divergence(
        student, teacher, mask=mask, temperature=T).total

  assert_close(
      jax.value_and_grad(total)(student),
      jax.value_and_grad(by_hand)(student, teacher, mask, labels,
                                  weights=(1, 0)))


def test_teacher_may_be_logits_or_missing():
  student, teacher, labels = make()
  mask = mask_of('right')
  whole = teacher.materialise()
  assert_close(
      jax.grad(in_chunks)(student, whole, mask, labels),
      jax.grad(by_hand)(student, teacher, mask, labels))
  got = jax.grad(lambda x: haikd.losses.cross_entropy(
      x, mask=mask, labels=labels).total)(student)
  assert_close(got, jax.grad(by_hand)(student, teacher, mask, labels,
                                      weights=(0, 1)))


def plugin(additive):

  @haikd.register_loss('squares', on='logits', additive=additive)
  def squares(student, teacher, *, mask):
    sizes.append(student.shape)
    return haikd.masked_mean(jnp.square(student - teacher), mask)

  sizes = []
  return squares, sizes


@pytest.mark.parametrize('additive', [True, False])
def test_plugin_sees_chunks_if_it_is_additive(additive):
  # 4096 positions of 4096 classes are 64 MiB, more than a chunk.
  student = base.LinearLogits(jnp.ones((2, 2048, 2)), jnp.ones((2, 4096)))
  teacher = student._replace(hidden=jnp.zeros((2, 2048, 2)))
  with registry.losses.temporary():
    loss, sizes = plugin(additive)
    total, count = jax.jit(loss)(
        student, teacher, mask=jnp.arange(2048) < jnp.array([[2048], [100]]))
  assert (total, count) == (4 * 2148 * 4096, 2148 * 4096)
  rows = {shape[0] * (shape[1] if len(shape) == 3 else 1) for shape in sizes}
  # A chunk is 512 positions, in groups of 64.
  assert rows == ({64} if additive else {4096})


def test_logits_are_never_whole_and_padding_is_never_visited():
  positions, classes = 2048, 8192
  student = base.LinearLogits(jnp.ones((8, 256, 16)), jnp.ones((16, classes)))
  teacher = base.LinearLogits(jnp.ones((8, 256, 32)), jnp.ones((32, classes)))
  labels, mask = jnp.zeros((8, 256), int), jnp.ones((8, 256), bool)
  default = cutting.ChunkSizes()
  step = jax.jit(jax.value_and_grad(functools.partial(
      in_chunks, sizes=default)))
  compiled = step.lower(student, teacher, mask, labels).compile()
  whole = 4 * positions * classes
  # 256 of 2048 positions are 1/8 of the logits of one side.
  assert default.rows(positions, classes) == 256
  assert compiled.memory_analysis().temp_size_in_bytes < whole
  cut = cutting.Cut(student, mask.at[3:].set(False), default)
  assert cut.loop(lambda _, visited: visited + 1, 0) == 3


def test_other_labels_and_masks_are_refused():
  student, teacher, labels = make()
  with pytest.raises(ValueError, match='labels must begin with the axes of'):
    in_chunks(student, teacher, mask_of('none'), labels[:, :-1])
  with pytest.raises(TypeError, match='mask must be boolean'):
    in_chunks(student, teacher, jnp.ones((B, N)), labels)
  with pytest.raises(checks.ConfigError, match='both additive and relational'):
    haikd.register_loss('both', on='logits', additive=True, relational=True)(
        lambda student, teacher, *, mask: None)


def test_float16_keeps_what_a_peaked_softmax_leaves_of_most_classes():
  # Of most classes q - p is 1e-6 or less, which float16 alone makes 0.
  student, teacher, labels = make(dtype=jnp.float16)
  mask, small = mask_of('none'), jnp.array(WEIGHTS) * 1e-4
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), (student, teacher))
  scaled = lambda *args: 1e4 * in_chunks(*args, mask, labels, weights=small)
  got = np.asarray(jax.grad(scaled)(student, teacher).kernel, np.float32)
  wanted = np.asarray(jax.grad(by_hand)(*wide, mask, labels).kernel)
  error = np.median(np.abs(got - wanted) / np.abs(wanted))
  assert error < 2e-3  # 2^-11 from rounding, in a few places.


def test_devices_that_agree_may_visit_chunks_beyond_the_last():
  student, teacher, labels = make()
  mask = mask_of('right')
  sizes = SIZES._replace(agree=lambda number: number + 3)
  cut = cutting.Cut(student, mask, sizes)
  # 77 positions that count are 5 chunks of 16; 150 are never more than 10.
  assert cut.loop(lambda _, visited: visited + 1, 0) == 8
  assert_close(
      jax.value_and_grad(in_chunks)(student, teacher, mask, labels, sizes),
      jax.value_and_grad(by_hand)(student, teacher, mask, labels))


def test_mask_of_examples_keeps_all_their_positions():
  student, teacher, labels = make()
  examples = jnp.array([True, False, True])
  mask = jnp.broadcast_to(examples[:, None], (B, N))
  assert_close(
      in_chunks(student, teacher, examples, labels),
      by_hand(student, teacher, mask, labels))


def test_whole_logits_of_a_teacher_have_their_gradient():
  student, teacher, labels = make()
  mask = mask_of('right')
  whole = teacher.materialise()
  got = jax.grad(in_chunks, 1)(student, whole, mask, labels)
  p, q = (jax.nn.softmax(x.materialise() / T) for x in (teacher, student))
  ratio = jnp.log(p / q)
  # T^2 dKL/dt = T p (log p/q - KL).
  wanted = WEIGHTS[0] * T * p * (
      ratio - jnp.sum(p * ratio, -1, keepdims=True))
  assert_close(got, jnp.where(mask[..., None], wanted, 0.0))


@pytest.mark.parametrize('options', [
    {}, dict(bias=True, scale=1.5, soft_cap=3.0)])
def test_groups_of_a_chunk_add_up(options, monkeypatch):
  monkeypatch.setattr(cutting, '_MAX_LOGITS_IN_GROUP', 4 * V)
  assert SIZES.groups(16, V) == 4
  check('right', **options)
