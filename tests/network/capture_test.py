"""Tests of capture on networks that do not know about it."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haikd
from haikd.core import checks

TAPS = dict(features='block_*', attention='block_*/attn')
HEADS, SIZE, WIDTH, LAYERS = 2, 4, 8, 3


class Block(hk.Module):
  """Stock attention and a linear layer."""

  def __call__(self, x, mask=None):
    attend = hk.MultiHeadAttention(
        HEADS,
        SIZE,
        model_size=WIDTH,
        w_init=hk.initializers.VarianceScaling(),
        name='attn')
    x = x + attend(x, x, x, mask)
    return x + hk.Linear(WIDTH)(x)


def plain(x):
  for i in range(LAYERS):
    x = Block(name=f'block_{i}')(x)
  return x.sum(axis=1)


def remat(x):
  for i in range(LAYERS):
    x = hk.remat(Block(name=f'block_{i}'))(x)
  return x.sum(axis=1)


def stack(x):
  layer = lambda x: Block(name='block_')(x)
  return hk.layer_stack(LAYERS)(layer)(x).sum(axis=1)


def stack_remat(x):
  layer = lambda x: hk.remat(Block(name='block_'))(x)
  return hk.layer_stack(LAYERS)(layer)(x).sum(axis=1)


NETWORKS = (plain, remat, stack, stack_remat)


def inputs():
  return jax.random.normal(jax.random.key(0), (2, 5, WIDTH))


def apply(forward, taps, x, params=None):
  """Returns output, taps and state after a captured run."""
  network = hk.transform_with_state(haikd.capture(forward, taps))
  initial, state = network.init(jax.random.key(1), x)
  params = initial if params is None else params
  (output, values), state = network.apply(params, state, None, x)
  return output, values, state


def by_hand(params, x):
  """Computes hidden states and maps of `plain` in NumPy."""
  linear = lambda name, x: x @ params[name]['w'] + params[name]['b']
  features, maps = [], []
  for i in range(LAYERS):
    heads = lambda x: x.reshape(2, 5, HEADS, SIZE).transpose(0, 2, 1, 3)
    query, key, value = (
        heads(linear(f'block_{i}/attn/{name}', x))
        for name in ('query', 'key', 'value'))
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(SIZE)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = (weights @ value).transpose(0, 2, 1, 3).reshape(2, 5, -1)
    x = x + linear(f'block_{i}/attn/linear', mixed)
    x = x + linear(f'block_{i}/linear', x)
    features.append(x)
    maps.append(weights)
  return features, maps


def stacked(params, prefix):
  """Turns parameters of `plain` into those of a layer_stack."""
  names = sorted({name.split('/', 1)[1] for name in params})
  return {
      f'{prefix}/block_/{name}': jax.tree.map(
          lambda *x: jnp.stack(x),
          *(params[f'block_{i}/{name}'] for i in range(LAYERS)))
      for name in names
  }


@pytest.mark.parametrize('jit', (False, True))
@pytest.mark.parametrize('forward', NETWORKS)
def test_values_are_those_of_the_network(forward, jit):
  x = inputs()
  params, _ = hk.transform_with_state(plain).init(jax.random.key(1), x)
  features, maps = by_hand(jax.device_get(params), np.asarray(x))
  if forward in (stack, stack_remat):
    params = stacked(params, '__layer_stack_no_per_layer')
  run = lambda params: apply(forward, TAPS, x, params)
  output, taps, state = (jax.jit(run) if jit else run)(params)
  assert state == {}
  assert len(taps['features']) == len(taps['attention']) == LAYERS
  for i in range(LAYERS):
    np.testing.assert_allclose(taps['features'][i], features[i], atol=1e-5)
    np.testing.assert_allclose(
        taps['attention'][i].materialise(), maps[i], atol=1e-6)
  np.testing.assert_allclose(output, features[-1].sum(axis=1), atol=1e-5)


@pytest.mark.parametrize('forward', NETWORKS)
def test_gradient_flows_through_taps(forward):
  x = inputs()
  network = hk.transform_with_state(haikd.capture(forward, TAPS))
  params, state = network.init(jax.random.key(1), x)

  def loss(params):
    (_, taps), _ = network.apply(params, state, None, x)
    return (jnp.sum(taps['features'][1]**2) +
            jnp.sum(taps['attention'][2].materialise()**2))

  direction = jax.tree.map(
      lambda p: jax.random.normal(jax.random.key(2), p.shape), params)
  grads = jax.jit(jax.grad(loss))(params)
  slope = sum(
      jnp.vdot(a, b)
      for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(direction)))
  move = lambda t: jax.tree.map(lambda p, d: p + t * d, params, direction)
  numeric = (loss(move(1e-3)) - loss(move(-1e-3))) / 2e-3
  np.testing.assert_allclose(slope, numeric, rtol=2e-2)
  assert abs(float(slope)) > 1


def test_mask_of_attention_is_captured():
  mask = jnp.arange(5) < jnp.array([5, 3])[:, None]

  def forward(x):
    return Block(name='block_0')(x, mask[:, None, None, :])

  _, taps, _ = apply(forward, TAPS, inputs())
  maps = taps['attention'][0].materialise()
  np.testing.assert_array_equal(maps[1, :, :, 3:], 0)
  np.testing.assert_allclose(maps.sum(axis=-1), 1, rtol=1e-6)


def test_initialisation_is_that_of_the_network_alone():
  x = inputs()
  for forward in NETWORKS:
    alone = hk.transform_with_state(forward).init(jax.random.key(3), x)
    captured = hk.transform_with_state(haikd.capture(forward, TAPS)).init(
        jax.random.key(3), x)
    jax.tree.map(np.testing.assert_array_equal, alone, captured)


def test_state_of_the_network_is_kept():

  def forward(x):
    x = hk.BatchNorm(True, True, 0.9, name='block_0')(x, is_training=True)
    return x + hk.get_state('offset', (), init=jnp.ones)

  x = inputs()
  network = hk.transform_with_state(
      haikd.capture(forward, dict(features='block_0')))
  alone = hk.transform_with_state(forward)
  params, state = alone.init(jax.random.key(0), x)
  (_, taps), after = network.apply(params, state, None, x)
  _, expected = alone.apply(params, state, None, x)
  jax.tree.map(np.testing.assert_array_equal, after, expected)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  assert taps['features'][0].shape == x.shape


def test_two_kinds_in_one_stack_keep_the_order_of_calls():

  def layer(x):
    x = hk.Linear(WIDTH, name='block_a')(x)
    return hk.Linear(WIDTH, name='block_b')(jnp.tanh(x))

  x = inputs()
  forward = lambda x: hk.layer_stack(2)(layer)(x)
  _, taps, _ = apply(forward, dict(features='block_*'), x)
  params, _ = hk.transform_with_state(forward).init(jax.random.key(1), x)
  params = {name.split('/')[-1]: p for name, p in params.items()}
  expected = []
  for i in range(2):
    x = x @ params['block_a']['w'][i] + params['block_a']['b'][i]
    expected.append(x)
    x = jnp.tanh(x) @ params['block_b']['w'][i] + params['block_b']['b'][i]
    expected.append(x)
  assert len(taps['features']) == 4
  for value, right in zip(taps['features'], expected):
    np.testing.assert_allclose(value, right, atol=1e-5)


def test_nested_stacks_are_flattened_in_the_order_of_calls():
  inner = lambda x: hk.layer_stack(2, name='inner')(
      lambda x: hk.Linear(WIDTH, name='block_0')(x))(x)
  forward = lambda x: hk.layer_stack(3, name='outer')(inner)(x)
  x = inputs()
  output, taps, _ = apply(forward, dict(features='block_0'), x)
  params, _ = hk.transform_with_state(forward).init(jax.random.key(1), x)
  (weights,) = params.values()
  for value, w, b in zip(
      taps['features'], weights['w'].reshape(6, WIDTH, WIDTH),
      weights['b'].reshape(6, WIDTH)):
    x = x @ w + b
    np.testing.assert_allclose(value, x, atol=1e-5)
  assert len(taps['features']) == 6


def test_a_glob_matches_the_path_of_an_offered_value():

  def forward(x):
    with hk.experimental.name_scope('block_0'):
      x = haikd.tap('hidden', 2 * x)
    return x + 1

  _, taps, _ = apply(forward, dict(any_kind='block_0/hidden'), inputs())
  np.testing.assert_allclose(taps['any_kind'][0], 2 * inputs())


def test_one_kind_takes_several_globs():
  _, taps, _ = apply(plain, dict(features=('block_2', 'block_0/linear')),
                     inputs())
  assert len(taps['features']) == 2


def test_dropout_uses_the_given_key():

  def forward(x):
    return hk.dropout(hk.next_rng_key(), 0.5, hk.Linear(9, name='block_0')(x))

  network = hk.transform_with_state(
      haikd.capture(forward, dict(features='block_0')))
  params, state = network.init(jax.random.key(0), inputs())
  run = lambda seed: network.apply(params, state, jax.random.key(seed),
                                   inputs())[0][0]
  np.testing.assert_array_equal(run(1), run(1))
  assert not np.array_equal(run(1), run(2))


@pytest.mark.parametrize('forward', NETWORKS)
def test_unused_taps_cost_nothing(forward):
  x = inputs()
  params, state = hk.transform_with_state(forward).init(jax.random.key(1), x)

  def cost(forward):
    network = hk.transform_with_state(forward)

    def loss(params):
      output, _ = network.apply(params, state, None, x)
      return jnp.sum(output[0] if isinstance(output, tuple) else output)

    compiled = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    return (compiled.cost_analysis()['flops'],
            compiled.memory_analysis().temp_size_in_bytes)

  assert cost(haikd.capture(forward, TAPS)) == cost(forward)


def scanned(x):
  block = Block(name='block_0')
  return hk.scan(lambda x, _: (block(x), None), x, jnp.arange(3))[0]


def conditional(x):
  block = Block(name='block_0')
  if hk.running_init():
    block(x)
  return hk.cond(x.sum() > 0, block, lambda x: x, x)


def mapped(x):
  block = hk.Linear(WIDTH, name='block_0')
  if hk.running_init():
    return block(x)
  return hk.vmap(block, split_rng=False)(x)


def shared(x):
  layer = hk.Linear(WIDTH, name='block_0')
  return layer(layer(x))


def silent(x):
  return (Nothing(name='block_0')(x), x)[1]


class Nothing(hk.Module):
  """Returns no array."""

  def __call__(self, x):
    return None


class ChildlessAttention(hk.MultiHeadAttention):
  """Does not create the children of its base class."""

  def __call__(self, query, key, value, mask=None):
    return query


def childless(x):
  return ChildlessAttention(
      2, 4, w_init=hk.initializers.VarianceScaling(), name='block_0')(x, x, x)


CARRIED = ('^a captured module must not be called inside hk.scan, hk.vmap or '
           r"another transformation .*; got \['block_0'\]")


@pytest.mark.parametrize('forward, taps, match', (
    (plain, dict(features='blok_*'),
     r"^taps.features must match a module that is called; got 'blok_\*'. Did"),
    (plain, dict(features='attn/block_*'), '^taps.features must match a module '
     r"that is called; got 'attn/block_\*'"),
    (scanned, dict(features='block_0'), CARRIED),
    (conditional, dict(features='block_0'), CARRIED),
    (mapped, dict(features='block_0'), CARRIED),
    (plain, dict(features=('block_0', 'blok_1')),
     "^taps.features must match a module that is called; got 'blok_1'"),
    (shared, dict(features='block_0'), '^taps.features must match modules that '
     "are called once; got a second call of 'block_0'"),
    (silent, dict(features='block_0'), '^taps.features must match modules that '
     "return an array; got NoneType from 'block_0'"),
    (childless, dict(attention='block_0'), '^taps.attention must match '
     "attention modules with children named query and key; got neither in "
     "'block_0'"),
))
def test_what_cannot_be_captured_is_refused(forward, taps, match):
  with pytest.raises(checks.ConfigError, match=match):
    apply(forward, taps, inputs())


def test_errors_of_the_network_itself_are_not_changed():

  def forward(x):
    hk.Linear(3, name='block_0')(x)
    raise TypeError('mine')

  network = hk.transform_with_state(
      haikd.capture(forward, dict(features='block_0')))
  with pytest.raises(TypeError, match='^mine$'):
    network.apply({'block_0': dict(w=jnp.ones((WIDTH, 3)), b=jnp.ones(3))}, {},
                  None, inputs())
