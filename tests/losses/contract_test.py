"""The contract of every registered loss, haikd's and a plugin's."""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd.attention import blocks
from haikd.core import plugins
from haikd.core import registry

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
BATCH = 4
# Losses that are not 0 for equal networks.
NOT_DISTANCES = ('binary_cross_entropy', 'cross_entropy',
                 'mean_absolute_error', 'mean_squared_error')


def load_losses():
  """Returns the losses of haikd and the plugin; unregisters the plugin's."""
  path, modules = list(sys.path), set(sys.modules)
  sys.path.insert(0, str(CONFIGS))
  try:
    with registry.losses.temporary():
      plugins.load(('my_pkg.losses',))
      return {name: registry.losses[name] for name in haikd.loss_names()}
  finally:
    sys.path[:] = path
    for name in set(sys.modules) - modules:
      if name.startswith('my_pkg'):
        del sys.modules[name]


LOSSES = load_losses()
WITH_EXAMPLE = [name for name, entry in LOSSES.items() if entry.example]


@pytest.fixture(params=WITH_EXAMPLE)
def entry(request):
  return LOSSES[request.param]


@pytest.fixture(params=['eager', 'jit'])
def variant(request):
  return jax.jit if request.param == 'jit' else eager


def eager(function):
  return function


def shape_of(entry, name):
  return (BATCH, *entry.example.get(name, entry.example['student'])[1:])


def make_inputs(entry, seed=0):
  """Returns `student, teacher, labels` without padding."""
  rng = np.random.default_rng(seed)
  arrays = []
  for name in ('student', 'teacher'):
    array = rng.normal(size=shape_of(entry, name))
    if entry.on == 'attention':
      array = np.exp(array) / np.exp(array).sum(-1, keepdims=True)
    arrays.append(jnp.asarray(array, jnp.float32))
  labels = None
  if 'labels' in entry.example:
    shape = shape_of(entry, 'labels')
    if shape == arrays[0].shape:
      labels = jax.nn.softmax(jnp.asarray(rng.normal(size=shape), jnp.float32))
    else:
      labels = jnp.asarray(rng.integers(0, arrays[0].shape[-1], shape))
  return *arrays, labels


def make_masks(entry):
  """Returns masks with right, left and scattered padding, and empty rows."""
  shape = shape_of(entry, 'mask')
  if len(shape) == 1:
    rows = np.arange(BATCH)
    return [jnp.asarray(rows < 3), jnp.asarray(rows > 1),
            jnp.asarray(rows % 2 == 0)]
  places = np.broadcast_to(np.arange(shape[-1]), shape)
  lengths = np.resize([shape[-1], 1, 2, 0], shape[:-1])[..., None]
  scattered = np.random.default_rng(3).random(shape) < 0.5
  return [jnp.asarray(places < lengths),
          jnp.asarray(places >= shape[-1] - lengths), jnp.asarray(scattered)]


def is_padding(entry, mask, rank):
  """Returns where an array of a rank is padding."""
  if entry.on == 'attention' and mask.ndim == 2:
    return ~(mask[:, None, :, None] & mask[:, None, None, :])
  return ~mask.reshape(mask.shape + (1,) * (rank - mask.ndim))


def fill(entry, inputs, mask, content):
  """Replaces all padding with `content`, in labels too."""
  student, teacher, labels = inputs
  student, teacher = (
      jnp.where(is_padding(entry, mask, x.ndim), content, x)
      for x in (student, teacher))
  if labels is not None:
    behind = ~mask.reshape(mask.shape + (1,) * (labels.ndim - mask.ndim))
    if jnp.issubdtype(labels.dtype, jnp.integer):
      content = 10**6
    labels = jnp.where(behind, content, labels).astype(labels.dtype)
  return student, teacher, labels


@functools.cache  # A loss is compiled once for each shape.
def gradient(loss, variant):

  def total(student, teacher, labels, mask):
    options = {} if labels is None else dict(labels=labels)
    result = loss(student, teacher, mask=mask, **options)
    return result.total, result

  return variant(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def evaluate(entry, variant, inputs, mask):
  """Returns total, count, and the gradients of total on both sides."""
  (_, result), grads = gradient(entry.function, variant)(*inputs, mask)
  return result.total, result.count, grads


def assert_same(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


def assert_close(left, right, rtol=1e-5, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), left,
               right)


def test_every_loss_of_haikd_has_an_example():
  names = {name for name, e in LOSSES.items() if e.module.startswith('haikd.')}
  assert names and names <= set(WITH_EXAMPLE)


def test_the_plugin_is_swept_and_leaves_no_trace():
  assert 'huber_features' in WITH_EXAMPLE
  assert LOSSES['huber_features'].module == 'my_pkg.losses'
  assert 'huber_features' not in haikd.loss_names()


@pytest.mark.parametrize('content', [1e4, np.nan, np.inf, -np.inf])
def test_padding_content_changes_no_bit(entry, variant, content):
  for mask in make_masks(entry):
    inputs = make_inputs(entry)
    expected = evaluate(entry, variant, fill(entry, inputs, mask, 0.0), mask)
    got = evaluate(entry, variant, fill(entry, inputs, mask, content), mask)
    assert np.isfinite(got[0])
    assert_same(got, expected)


def test_gradient_is_zero_in_padding_and_not_everywhere(
    entry, variant):
  for mask in make_masks(entry):
    *_, grads = evaluate(entry, variant, make_inputs(entry), mask)
    behind = is_padding(entry, mask, grads[0].ndim)
    for grad in grads:
      assert not np.any(jnp.where(behind, grad, 0.0))
    assert np.any(grads[0])


@pytest.mark.parametrize('content', [1.0, np.nan])
def test_empty_mask_gives_nothing(entry, variant, content):
  mask = jnp.zeros(shape_of(entry, 'mask'), bool)
  inputs = fill(entry, make_inputs(entry), mask, content)
  total, count, grads = evaluate(entry, variant, inputs, mask)
  assert total == 0 and count == 0
  for grad in grads:
    np.testing.assert_array_equal(grad, jnp.zeros_like(grad))


def test_empty_row_changes_nothing(entry, variant):
  keep = np.array([0, 1, 3])
  inputs = make_inputs(entry)
  mask = jnp.ones(shape_of(entry, 'mask'), bool).at[2].set(False)
  without = jax.tree.map(lambda x: x[keep], inputs)
  total, count, grads = evaluate(entry, variant, inputs, mask)
  expected = evaluate(entry, variant, without, mask[keep])
  assert_close((total, count, tuple(g[keep] for g in grads)), expected)


def test_bfloat16_in_float32_out(entry, variant):
  student, teacher, labels = make_inputs(entry)
  halves = student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16)
  mask = make_masks(entry)[0]
  total, count, grads = evaluate(entry, variant, (*halves, labels), mask)
  assert total.dtype == count.dtype == jnp.float32
  assert grads[0].dtype == grads[1].dtype == jnp.bfloat16
  exact = evaluate(entry, variant,
                   (*(x.astype(jnp.float32) for x in halves), labels), mask)
  assert_close((total, count), exact[:2])


def test_large_counts_are_exact(entry):
  # 257 is the first count that bfloat16 cannot hold.
  if entry.relational:
    pytest.skip('copies of an example add relations')
  student, teacher, labels = jax.tree.map(
      lambda x: jnp.concatenate([x] * 257), make_inputs(entry))
  mask = jnp.ones(shape_of(entry, 'mask'), bool)
  one = evaluate(entry, jax.jit, make_inputs(entry), mask)
  student, teacher = (x.astype(jnp.bfloat16) for x in (student, teacher))
  many = evaluate(entry, jax.jit, (student, teacher, labels),
                  jnp.concatenate([mask] * 257))
  assert many[1] == 257 * one[1]


def test_halves_of_a_batch_add_up(entry, variant):
  if entry.relational:
    pytest.skip('relates examples to one another')
  for mask in make_masks(entry):
    inputs = make_inputs(entry)
    batch = evaluate(entry, variant, inputs, mask)
    first, second = (
        evaluate(entry, variant, jax.tree.map(lambda x: x[part], inputs),
                 mask[part]) for part in (slice(0, 1), slice(1, None)))
    assert_close(first[0] + second[0], batch[0])
    assert first[1] + second[1] == batch[1]
    assert_close(
        jax.tree.map(lambda x, y: jnp.concatenate([x, y]), first[2], second[2]),
        batch[2])


def test_other_masks_compile_nothing_anew(entry):
  traces = []

  @jax.jit
  def loss(student, teacher, labels, mask):
    traces.append(mask)
    options = {} if labels is None else dict(labels=labels)
    return entry.function(student, teacher, mask=mask, **options)

  for mask in make_masks(entry):
    loss(*make_inputs(entry), mask)
  assert len(traces) == 1


def test_equal_networks_are_at_distance_zero(entry, variant):
  name = entry.function.__name__
  if name in NOT_DISTANCES:
    pytest.skip('not a distance')
  student, _, labels = make_inputs(entry)
  for dtype in (jnp.float32, jnp.bfloat16):
    value = student.astype(dtype)
    for mask in make_masks(entry):
      total, count, _ = evaluate(entry, variant, (value, value, labels), mask)
      assert 0 <= total < 1e-6 * count


def test_different_networks_are_at_some_distance(entry):
  total, *_ = evaluate(entry, jax.jit, make_inputs(entry), make_masks(entry)[0])
  assert total > 1e-3


def test_shapes_that_differ_are_both_named(entry):
  student, teacher, labels = make_inputs(entry)
  wrong = teacher[:, :1]
  mask = jnp.ones(shape_of(entry, 'mask')[:1], bool)
  with pytest.raises(ValueError) as error:
    evaluate(entry, jax.jit, (student, wrong, labels), mask)
  assert f'student.shape={student.shape}' in str(error.value)
  assert f'teacher.shape={wrong.shape}' in str(error.value)


def test_mask_that_does_not_fit_is_named_with_the_array(entry):
  inputs = make_inputs(entry)
  with pytest.raises(ValueError) as error:
    evaluate(entry, jax.jit, inputs, jnp.ones(BATCH + 1, bool))
  assert f'mask.shape={(BATCH + 1,)}' in str(error.value)
  assert f'student.shape={inputs[0].shape}' in str(error.value)


def test_mask_of_numbers_is_refused(entry):
  with pytest.raises(TypeError, match='mask must be boolean.*float32'):
    evaluate(entry, jax.jit, make_inputs(entry),
             jnp.ones(shape_of(entry, 'mask')))


def test_integers_are_refused(entry):
  student, teacher, labels = make_inputs(entry)
  options = {} if labels is None else dict(labels=labels)
  with pytest.raises(TypeError, match='student must be floating.*int32'):
    entry.function(
        student.astype(jnp.int32),
        teacher,
        mask=jnp.ones(shape_of(entry, 'mask'), bool),
        **options)


ADDITIVE = [name for name in WITH_EXAMPLE if LOSSES[name].additive]


@pytest.mark.parametrize(
    'name', [x for x in ADDITIVE if LOSSES[x].on != 'attention'])
def test_additive_loss_is_the_sum_over_single_positions(name):
  entry = LOSSES[name]
  inputs = make_inputs(entry)
  for mask in make_masks(entry):
    together = evaluate(entry, eager, inputs, mask)[:2]
    rows = [x if x is None else x.reshape(mask.size, 1, *x.shape[mask.ndim:])
            for x in inputs]
    alone = [
        evaluate(entry, eager, [x if x is None else x[i] for x in rows],
                 mask.reshape(-1, 1)[i])[:2] for i in range(mask.size)]
    assert_close(together, tuple(map(sum, zip(*alone))))


@pytest.mark.parametrize(
    'name', [x for x in ADDITIVE if LOSSES[x].on == 'attention'])
def test_additive_loss_on_maps_is_the_same_block_by_block(name, monkeypatch):
  # Blocks of 4 rows lack the keys that none of their queries attends to.
  monkeypatch.setattr(blocks, '_MIN_ROWS', 4)
  monkeypatch.setattr(blocks, '_CAUSAL_BYTES', dict(cpu=1))
  monkeypatch.setattr(blocks, '_MAX_BYTES', dict(cpu=1))
  length, rng = 22, np.random.default_rng(0)
  causal = haikd.AttentionMask(None, None, causal=True)
  draw = lambda: jnp.asarray(rng.normal(size=(2, length, 4, 3)), jnp.float32)
  student, teacher = (haikd.QueryKey(draw(), draw(), causal) for _ in range(2))
  mask = jnp.arange(length) < jnp.array([[length], [5]])
  loss = LOSSES[name].function

  def total(student, materialise):
    sides = (x.materialise() if materialise else x for x in (student, teacher))
    result = loss(*sides, mask=mask)
    return result.total, result.count

  blockwise, materialised = (
      jax.value_and_grad(total, has_aux=True, allow_int=True)(student, x)
      for x in (False, True))
  assert_close(blockwise[0], materialised[0])
  assert_close(blockwise[1][:2], materialised[1][:2])
