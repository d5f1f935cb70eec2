"""Tests of losses on chunks of logits, against materialised logits.

The reference materialises everything and is differentiated by JAX. Its losses
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
from haikd.core import transposed
from haikd.losses import chunks
from haikd.losses import cutting

B, N, V, D, E = 3, 50, 37, 8, 12  # Widths D of the student, E of the teacher.
T, WEIGHTS = 2.0, (0.9, 0.1)
# A chunk has 16 positions, which does not divide 150.
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
  """Returns the weighted sum of two losses on materialised logits."""
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


def assert_close(got, expected, rtol=1e-5):
  """Compares to within `rtol` of the largest value of each array."""
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    largest = float(jnp.max(jnp.abs(y)))
    np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * largest)


def check(kind, compiled=lambda function: function, **options):
  student, teacher, labels = make(**options)
  mask = mask_of(kind)
  got, expected = (
      compiled(jax.value_and_grad(function, (0, 1)))(
          student, teacher, mask, labels) for function in (in_chunks, by_hand))
  assert_close(got, expected)


@pytest.mark.parametrize('kind, compiled', [
    *((kind, jax.jit) for kind in (
        'none', 'right', 'left', 'scattered', 'row', 'all')),
    ('right', lambda function: function)])
def test_value_and_gradient_are_those_of_materialised_logits(kind, compiled):
  check(kind, compiled)


@pytest.mark.parametrize('options', [
    dict(bias=True), dict(scale=0.3), dict(soft_cap=2.0),
    dict(bias=True, scale=1.5, soft_cap=3.0)])
def test_bias_scale_and_cap_of_logits_have_their_gradients(options):
  check('right', **options)


@pytest.mark.parametrize('rows', [1, 7, 150, 1000])
def test_result_does_not_depend_on_the_size_of_chunks(rows):
  student, teacher, labels = make()
  mask = mask_of('right')
  sizes = cutting.ChunkSizes(rows * V * 4)
  got = jax.value_and_grad(in_chunks)(student, teacher, mask, labels, sizes)
  assert_close(got, jax.value_and_grad(by_hand)(student, teacher, mask, labels))


@pytest.mark.parametrize('transpose', [jnp.transpose, transposed.Transposed])
def test_tied_table_has_the_sum_of_both_gradients(transpose):
  student, teacher, labels = make()
  tokens = jnp.asarray(np.random.default_rng(2).integers(0, V, (B, N)))
  mask = mask_of('right')

  def tied(function, table):
    student = base.LinearLogits(jnp.tanh(table[tokens]), transpose(table))
    return function(student, teacher, mask, labels)

  got, expected = (
      jax.grad(functools.partial(tied, function))(student.kernel.T)
      for function in (in_chunks, by_hand))
  assert_close(got, expected)


def test_loop_over_chunks_does_not_copy_tables():
  width, classes = 64, 32768
  hidden, mask = jnp.ones((1024, width)), jnp.ones(1024, bool)
  sizes = cutting.ChunkSizes(chunk_bytes=64 * classes * 4)

  def temporaries(kernel_of, *shape):
    def total(hidden, *arrays):
      student, teacher = (
          base.LinearLogits(hidden, kernel_of(x)) for x in arrays)
      return in_chunks(student, teacher, mask, None, sizes, (1.0,), (soft,))

    compiled = jax.jit(jax.grad(total, (0, 1))).lower(
        hidden, *[jnp.ones(shape)] * 2).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  tied = temporaries(transposed.Transposed, classes, width)
  untied = temporaries(lambda x: x, width, classes)
  assert tied < untied + 4 * width * classes / 2


def test_bfloat16_is_summed_in_float32():
  student, teacher, labels = make(dtype=jnp.bfloat16)
  mask = mask_of('right')
  run = jax.value_and_grad(in_chunks)
  value, gradient = run(student, teacher, mask, labels)
  assert value.dtype == jnp.float32
  assert gradient.kernel.dtype == gradient.hidden.dtype == jnp.bfloat16
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), (student, teacher))
  expected = jax.value_and_grad(by_hand)(*wide, mask, labels)
  assert_close(value, expected[0])
  # bfloat16 has 8 bits: rounding products gives 2^-9, rounding results as much.
  assert_close(gradient, expected[1], rtol=2**-7)


def test_float16_gradients_of_a_large_mean_do_not_vanish():
  student, teacher, labels = make(dtype=jnp.float16)
  mask = mask_of('none')
  tiny = jnp.array(WEIGHTS) * 1e-7  # Gradients would round to 0 in float16.

  def scaled(student):
    return 1e7 * in_chunks(student, teacher, mask, labels, weights=tiny)

  wide = jax.tree.map(lambda x: x.astype(jnp.float32), (student, teacher))
  expected = jax.grad(by_hand)(*wide, mask, labels)
  assert_close(jax.grad(scaled)(student), expected, rtol=5e-3)


@pytest.mark.parametrize('bad', [jnp.nan, jnp.inf])
def test_values_behind_the_mask_change_no_bit(bad):
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
  for weights, loss_sum in zip(((1, 0), (0, 1)), sums):
    expected = by_hand(student, teacher, mask, labels, weights=weights)
    np.testing.assert_allclose(loss_sum.total, expected, rtol=1e-5)
  # 50 + 20 + 7 positions; one has no label.
  assert [float(x.count) for x in sums] == [77, 76]


def test_registered_loss_takes_lazy_logits():
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
  logits = teacher.materialise()
  assert_close(
      jax.grad(in_chunks)(student, logits, mask, labels),
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
def test_plugin_gets_chunks_if_it_is_additive(additive):
  # Logits of 4096 positions and 4096 classes take 64 MiB, more than a chunk.
  student = base.LinearLogits(jnp.ones((2, 2048, 2)), jnp.ones((2, 4096)))
  teacher = student._replace(hidden=jnp.zeros((2, 2048, 2)))
  with registry.losses.temporary():
    loss, sizes = plugin(additive)
    total, count = jax.jit(loss)(
        student, teacher, mask=jnp.arange(2048) < jnp.array([[2048], [100]]))
  assert (total, count) == (4 * 2148 * 4096, 2148 * 4096)
  rows = {shape[0] * (shape[1] if len(shape) == 3 else 1) for shape in sizes}
  # A chunk has 512 positions, in groups of 64.
  assert rows == ({64} if additive else {4096})


def test_logits_are_not_materialised_and_padding_is_not_visited():
  positions, classes = 2048, 8192
  student = base.LinearLogits(jnp.ones((8, 256, 16)), jnp.ones((16, classes)))
  teacher = base.LinearLogits(jnp.ones((8, 256, 32)), jnp.ones((32, classes)))
  labels, mask = jnp.zeros((8, 256), int), jnp.ones((8, 256), bool)
  default = cutting.ChunkSizes()
  step = jax.jit(jax.value_and_grad(functools.partial(
      in_chunks, sizes=default)))
  compiled = step.lower(student, teacher, mask, labels).compile()
  bytes_of_logits = 4 * positions * classes
  # 256 of 2048 positions: a chunk is 1/8 of one network's logits.
  assert default.rows(positions, classes) == 256
  assert compiled.memory_analysis().temp_size_in_bytes < bytes_of_logits
  cut = cutting.Cut(student, mask.at[3:].set(False), default)
  assert cut.loop(lambda _, visited: visited + 1, 0) == 3


def test_labels_and_masks_that_do_not_fit_are_refused():
  student, teacher, labels = make()
  with pytest.raises(ValueError, match='labels must begin with the axes of'):
    in_chunks(student, teacher, mask_of('none'), labels[:, :-1])
  with pytest.raises(TypeError, match='mask must be boolean'):
    in_chunks(student, teacher, jnp.ones((B, N)), labels)
  with pytest.raises(checks.ConfigError, match='both additive and relational'):
    haikd.register_loss('both', on='logits', additive=True, relational=True)(
        lambda student, teacher, *, mask: None)


@pytest.mark.parametrize('is_tied', [False, True])
def test_float16_keeps_small_gradients_of_a_peaked_softmax(is_tied):
  # For most classes q - p is 1e-6 or less, which float16 alone rounds to 0.
  student, teacher, labels = make(dtype=jnp.float16)
  if is_tied:
    student, teacher = (
        x._replace(kernel=transposed.Transposed(jnp.transpose(x.kernel)))
        for x in (student, teacher))
  mask, small = mask_of('none'), jnp.array(WEIGHTS) * 1e-4
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), (student, teacher))
  scaled = lambda *args: 1e4 * in_chunks(*args, mask, labels, weights=small)
  got = np.asarray(jax.grad(scaled)(student, teacher).kernel, np.float32)
  expected = np.asarray(jax.grad(by_hand)(*wide, mask, labels).kernel)
  error = np.median(np.abs(got - expected) / np.abs(expected))
  assert error < 2e-3  # A few roundings of 2^-11 each.


def test_chunks_past_the_last_change_nothing():
  student, teacher, labels = make()
  mask = mask_of('right')
  sizes = SIZES._replace(agree=lambda number: number + 3)
  cut = cutting.Cut(student, mask, sizes)
  # 150 positions are 10 chunks of 15. 77 of them count: 6 chunks, plus 3.
  assert cut.loop(lambda _, visited: visited + 1, 0) == 9
  assert_close(
      jax.value_and_grad(in_chunks)(student, teacher, mask, labels, sizes),
      jax.value_and_grad(by_hand)(student, teacher, mask, labels))


def test_a_sum_of_metrics_sees_groups_that_stay_in_the_cache():
  positions, classes = 256, 8192  # A chunk has 256 positions, groups 32.
  logits = base.LinearLogits(jnp.ones((positions, 4)), jnp.ones((4, classes)))
  seen = []

  def count(student, teacher, *, mask, labels):
    del teacher, labels
    seen.append(student.shape)
    return jnp.sum(mask)

  mask = jnp.arange(positions) < 200
  assert chunks.add_up(count, logits, None, mask=mask) == 200
  assert set(seen) == {(32, classes)}


def test_mask_of_examples_keeps_all_their_positions():
  student, teacher, labels = make()
  examples = jnp.array([True, False, True])
  mask = jnp.broadcast_to(examples[:, None], (B, N))
  assert_close(
      in_chunks(student, teacher, examples, labels),
      by_hand(student, teacher, mask, labels))


def test_materialised_logits_of_a_teacher_have_a_gradient():
  student, teacher, labels = make()
  mask = mask_of('right')
  logits = teacher.materialise()
  got = jax.grad(in_chunks, 1)(student, logits, mask, labels)
  p, q = (jax.nn.softmax(x.materialise() / T) for x in (teacher, student))
  ratio = jnp.log(p / q)
  # T^2 dKL/dt = T p (log p/q - KL).
  expected = WEIGHTS[0] * T * p * (
      ratio - jnp.sum(p * ratio, -1, keepdims=True))
  assert_close(got, jnp.where(mask[..., None], expected, 0.0))


@pytest.mark.parametrize('options', [
    {}, dict(bias=True, scale=1.5, soft_cap=3.0)])
def test_groups_of_a_chunk_add_up(options, monkeypatch):
  monkeypatch.setattr(cutting, '_MAX_LOGITS_IN_GROUP', 4 * V)
  assert SIZES.groups(16, V) == 4
  check('right', **options)
