"""The contract of every registered loss, haikd's and a plugin's."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd import testing
from haikd.core import plugins
from haikd.core import registry
from haikd.testing import cases

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
# Losses that are not 0 for equal networks.
NOT_DISTANCES = ('binary_cross_entropy', 'contrastive', 'cross_entropy',
                 'info_nce', 'mean_absolute_error', 'mean_squared_error',
                 'variational_information')
# Of those without a default, or with one for vectors of length 1.
OPTIONS = dict(
    attention_scores_mse=dict(heads=2), contrastive=dict(data_size=20, size=3),
    info_nce=dict(temperature=1.0), minilm_relations=dict(relation_heads=2))


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
# What the guard does is the same for all losses: one of each kind of input.
GUARDED = ('attention_transfer', 'cross_entropy', 'feature_matching',
           'similarity_distribution')


@pytest.fixture(params=WITH_EXAMPLE)
def case(request):
  name = request.param
  return cases.Case(name, LOSSES[name], OPTIONS.get(name, {}))


@pytest.fixture(params=GUARDED, scope='module')
def guarded(request):
  return cases.Case(request.param, LOSSES[request.param], {})


def test_every_loss_of_haikd_has_an_example():
  names = {name for name, e in LOSSES.items() if e.module.startswith('haikd.')}
  assert names and names <= set(WITH_EXAMPLE)


def test_the_plugin_is_swept_and_leaves_no_trace():
  assert 'huber_features' in WITH_EXAMPLE
  assert LOSSES['huber_features'].module == 'my_pkg.losses'
  assert 'huber_features' not in haikd.loss_names()


@pytest.mark.parametrize('name', WITH_EXAMPLE)
def test_loss_keeps_its_contract(name):
  with registry.losses.temporary():
    registry.losses.add(name, LOSSES[name], replace=True)
    testing.check_loss(name, **OPTIONS.get(name, {}))


def test_equal_networks_are_at_distance_zero(case):
  if case.name in NOT_DISTANCES:
    pytest.skip('not a distance')
  inputs = case.inputs()
  for dtype in (jnp.float32, jnp.bfloat16):
    value = jax.tree.map(lambda x: x.astype(dtype), inputs.student)
    for mask in case.masks():
      got = case.measure(inputs._replace(student=value, teacher=value), mask)
      assert 0 <= got.total < 1e-6 * got.count


def test_different_networks_are_at_some_distance(case):
  assert case.measure(case.inputs(), case.masks()[0]).total > 1e-3


@pytest.mark.parametrize('jit', (False, True), ids=('eager', 'jit'))
@pytest.mark.parametrize('content', [1e4, np.nan, np.inf, -np.inf])
def test_padding_content_changes_no_bit(guarded, jit, content):
  for mask in guarded.masks():
    expected, got = (
        guarded.measure(guarded.filled(guarded.inputs(), mask, x), mask,
                        jit=jit) for x in (0.0, content))
    assert np.isfinite(got.total)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_gradient_is_zero_in_padding(guarded):
  for mask in guarded.masks():
    for gradient in guarded.measure(guarded.inputs(), mask).gradients:
      behind = guarded.is_padding(mask, gradient.ndim)
      assert not np.any(jnp.where(behind, gradient, 0.0))


def test_bfloat16_in_float32_out(guarded):
  inputs, mask = guarded.inputs(), guarded.masks()[0]
  halves = inputs._replace(student=inputs.student.astype(jnp.bfloat16),
                           teacher=inputs.teacher.astype(jnp.bfloat16))
  got = guarded.measure(halves, mask)
  assert got.total.dtype == got.count.dtype == jnp.float32
  assert {x.dtype for x in got.gradients} == {jnp.dtype(jnp.bfloat16)}
  exact = guarded.measure(
      halves._replace(student=halves.student.astype(jnp.float32),
                      teacher=halves.teacher.astype(jnp.float32)), mask)
  np.testing.assert_allclose(got[:2], exact[:2], 1e-5, 1e-6)


def test_shapes_that_differ_are_both_named(guarded):
  inputs = guarded.inputs()
  wrong = inputs.teacher[:, :1]
  mask = jnp.ones(guarded.shape('mask')[:1], bool)
  with pytest.raises(ValueError) as error:
    guarded.measure(inputs._replace(teacher=wrong), mask)
  assert f'student.shape={inputs.student.shape}' in str(error.value)
  assert f'teacher.shape={wrong.shape}' in str(error.value)


def test_mask_that_does_not_fit_is_named_with_the_array(guarded):
  inputs = guarded.inputs()
  with pytest.raises(ValueError) as error:
    guarded.measure(inputs, jnp.ones(cases.BATCH + 1, bool))
  assert f'mask.shape={(cases.BATCH + 1,)}' in str(error.value)
  assert f'student.shape={inputs.student.shape}' in str(error.value)


def test_mask_of_numbers_is_refused(guarded):
  with pytest.raises(TypeError, match='mask must be boolean.*float32'):
    guarded.measure(guarded.inputs(), jnp.ones(guarded.shape('mask')))


def test_integers_are_refused(guarded):
  inputs = guarded.inputs()
  wrong = inputs._replace(student=inputs.student.astype(jnp.int32))
  with pytest.raises(TypeError, match='student must be floating.*int32'):
    guarded.call(wrong, guarded.full_mask())
