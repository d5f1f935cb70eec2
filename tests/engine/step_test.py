"""The loss and its gradient do not depend on how the batch is split."""

import functools
import itertools
import warnings

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.engine import collectives
from haikd.engine import counting
from haikd.engine import guarding
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.engine import step as step_lib
from haikd.objective import compare as compare_lib

BATCH, LENGTH, CLASSES = 32, 8, 11


class Block(hk.Module):
  """Attention and a linear layer."""

  def __init__(self, width, heads, name):
    super().__init__(name=name)
    self._width, self._heads = width, heads

  def __call__(self, x, mask):
    attend = hk.MultiHeadAttention(
        self._heads,
        4,
        model_size=self._width,
        w_init=hk.initializers.VarianceScaling(),
        name='attn')
    x = x + attend(x, x, x, mask=mask)
    return x + jnp.tanh(hk.Linear(self._width)(x))


def encoder(tokens, *, is_training, mask, num_classes, width, depth, heads):
  """A small encoder that attends to no padding."""
  del is_training
  x = hk.Embed(16, width)(tokens)
  pairs = mask[:, None, None, :] & mask[:, None, :, None]
  for i in range(depth):
    x = Block(width, heads, name=f'block_{i}')(x, pairs)
  return hk.Linear(num_classes)(x)


def batch_normed(image, *, is_training, num_classes, width):
  """A network whose BatchNorm names no mesh axes."""
  x = hk.Linear(width)(image)
  x = hk.BatchNorm(True, True, 0.9)(x, is_training)
  return hk.Linear(num_classes)(jax.nn.relu(x))


def dropping(image, *, is_training, num_classes):
  """A network with dropout."""
  x = hk.Linear(8)(image)
  if is_training:
    x = hk.dropout(hk.next_rng_key(), 0.5, x)
  return hk.Linear(num_classes)(x)


@pytest.fixture(autouse=True)
def models():
  with registry.models.temporary():
    registry.register_model(
        taps=dict(features='block_*', attention='block_*/attn'))(encoder)
    registry.register_model()(batch_normed)
    registry.register_model()(dropping)
    yield


def ragged_batch(seed=0):
  """Lengths 0 to 8, with an empty shard on 4 and on 8 devices."""
  rng = np.random.RandomState(seed)
  lengths = rng.randint(0, LENGTH + 1, size=BATCH)
  lengths[:4] = [8, 1, 4, 4]
  lengths[8:16] = 0
  mask = np.arange(LENGTH) < lengths[:, None]
  mask[20] = mask[20][::-1]  # Left padding as well.
  return base.Batch(
      inputs=rng.randint(0, 16, (BATCH, LENGTH)).astype(np.int32),
      mask=mask,
      labels=rng.randint(0, CLASSES, (BATCH, LENGTH)).astype(np.int32))


def ragged_config(depths=(2, 3), **distillation):
  config = config_lib.base()
  config.batch_size = BATCH
  config.student.model = config.teacher.model = 'encoder'
  config.student.options = dict(width=8, depth=depths[0], heads=2)
  config.teacher.options = dict(width=16, depth=depths[1], heads=4)
  config.distillation.update(
      dict(
          use_attention_transfer=True,
          attention_loss_weight=1.0,
          use_feature_matching=True,
          feature_loss_weight=1.0,
          **distillation))
  return config


def image_batch():
  rng = np.random.RandomState(0)
  return base.Batch(
      inputs=rng.randn(BATCH, 6).astype(np.float32), mask=np.ones(BATCH, bool),
      labels=rng.randint(0, CLASSES, BATCH).astype(np.int32))


def image_config(model, options=None, **fields):
  config = config_lib.base()
  config.batch_size = BATCH
  config.student.model = config.teacher.model = model
  config.student.options = config.teacher.options = options or {}
  config.update_from_flattened_dict(fields)
  return config


def build_program(config, batch, devices):
  return program_lib.build_program(
      config,
      spec=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                        batch),
      num_classes=CLASSES,
      mesh=mesh_lib.build_mesh(config.mesh, jax.devices()[:devices]),
      has_teacher=True)


def build(config, batch, devices):
  """Returns the program and its teacher."""
  program = build_program(config, batch, devices)
  init = jax.jit(program.objective.teacher.init)
  return program, program.freeze(
      base.Variables(*init(jax.random.key(7), batch)))


def build_gradient(config, batch, devices):
  """Returns a function of batch and step: gradient, loss and new state."""
  program, frozen = build(config, batch, devices)
  state = program.init(jax.random.key(0))
  shardings = mesh_lib.shardings_of(
      (program.abstract_state.params, program.abstract_frozen))
  function = jax.jit(step_lib.build_gradient(
      program.objective, program.mesh, *shardings,
      microbatches=config.microbatches, seed=config.seed))

  def run(batch, step=0):
    grads, net_state, sums = function(
        state.params, state.net_state, frozen, state.loss_scale,
        jnp.int32(step), collectives.shard_batch(program.mesh, batch))
    loss, _ = program.objective.combine(sums, step)
    grads = state.loss_scale.unscale(grads)
    return jax.device_get((grads, loss, net_state))

  return run


def gradient(config, batch, devices):
  return build_gradient(config, batch, devices)(batch)


def reference(batch):
  """The objective of `ragged_config` in plain JAX, on the global batch."""
  config = ragged_config()
  program, frozen = build(config, batch, 1)
  params = program.init(jax.random.key(0)).params.student
  mask = jnp.asarray(batch.mask)
  pairs = mask[:, None, None, :] & mask[:, None, :, None]

  def run(params, width, depth, heads):
    """Returns logits, hidden states and attention maps, without capture."""
    features, maps = [], []

    def forward():
      x = hk.Embed(16, width)(jnp.asarray(batch.inputs))
      for i in range(depth):
        before = x
        x = Block(width, heads, name=f'block_{i}')(x, pairs)
        features.append(x)
        weights = hk.get_params()[f'block_{i}/attn/query'], hk.get_params(
        )[f'block_{i}/attn/key']
        query, key = ((before @ w['w'] + w['b']).reshape(
            BATCH, LENGTH, heads, 4) for w in weights)
        scores = jnp.einsum('bnhk,bmhk->bhnm', query, key) / 2  # sqrt(4).
        maps.append(jax.nn.softmax(jnp.where(pairs, scores, -1e30), axis=-1))
      return hk.Linear(CLASSES)(x)

    logits = hk.without_apply_rng(hk.transform(forward)).apply(params)
    return logits, features, maps

  def loss(params):
    logits, features, maps = run(params, 8, 2, 2)
    target, hidden, target_maps = run(frozen.params, 16, 3, 4)
    valid = mask.sum()
    log_p = jax.nn.log_softmax(target / 2.0)
    log_q = jax.nn.log_softmax(logits / 2.0)
    kl = 4.0 * (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
    chosen = jnp.take_along_axis(
        jax.nn.log_softmax(logits), batch.labels[..., None], axis=-1)[..., 0]
    total = (0.9 * kl * mask - 0.1 * chosen * mask).sum() / valid
    for i, j in ((0, 1), (1, 2)):  # Uniform: round((i + 1) 3 / 2) - 1.
      pooled = hidden[j].reshape(BATCH, LENGTH, 8, 2).mean(-1)
      error = ((features[i] - pooled)**2 * mask[..., None]).sum()
      total += error / (valid * 8) / 2
      a = jnp.where(pairs, maps[i], 0.0)
      b = target_maps[j].reshape(BATCH, 2, 2, LENGTH, LENGTH).mean(2)
      b = jnp.where(pairs, b, 0.0)
      norm = lambda x: jnp.sqrt(jnp.maximum((x**2).sum(-1), 1e-30))
      cosine = (a * b).sum(-1) / (norm(a) * norm(b))
      error = ((1 - cosine) * mask[:, None, :]).sum()
      total += error / (valid * 2) / 2
    return total

  return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))


@pytest.fixture(scope='module')
def expected():
  with registry.models.temporary():
    registry.register_model(
        taps=dict(features='block_*', attention='block_*/attn'))(encoder)
    return reference(ragged_batch())


SPLITS = ((1, 1), (8, 4))


@pytest.mark.parametrize('devices, microbatches', [
    pytest.param(*split, marks=() if split in SPLITS else pytest.mark.slow)
    for split in itertools.product((1, 2, 4, 8), (1, 2, 4))])
def test_gradient_is_that_of_the_global_batch(devices, microbatches, expected):
  config = ragged_config()
  config.microbatches = microbatches
  grads, loss, _ = gradient(config, ragged_batch(), devices)
  np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
      grads.student, expected[1])


def test_content_of_padding_changes_nothing():
  batch = ragged_batch()
  noise = np.random.RandomState(1).randint(0, 16, batch.inputs.shape)
  other = batch._replace(
      inputs=np.where(batch.mask, batch.inputs, noise).astype(np.int32),
      labels=np.where(batch.mask, batch.labels, -100).astype(np.int32))
  run = build_gradient(ragged_config(), batch, devices=4)
  one, two = (run(b)[0] for b in (batch, other))
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_batch_norm_is_synchronised():
  config = image_config('batch_normed', dict(width=5))
  one, many = (gradient(config, image_batch(), n) for n in (1, 8))
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), one,
      many)


def test_relational_loss_gets_the_global_batch():
  with registry.losses.temporary():

    @registry_loss
    def distances(student, teacher, *, mask):
      """Mean squared difference of all pairwise products (a Gram matrix)."""
      both = mask[:, None] & mask[None, :]
      error = (student @ student.T - teacher @ teacher.T)**2
      return base.LossSum(
          jnp.sum(jnp.where(both, error, 0)), jnp.sum(both, dtype=jnp.float32))

    batch = image_batch()._replace(mask=np.arange(BATCH) < 19)
    config = image_config('batch_normed', dict(width=5))
    config.losses.gram = dict(loss='distances', weight=0.01)
    (one, loss, _), (many, same, _) = (
        gradient(config, batch, n) for n in (1, 8))
  np.testing.assert_allclose(loss, same, rtol=1e-5)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one,
      many)


def registry_loss(function):
  from haikd.losses import register  # Late: inside the temporary registry.
  return register.register_loss(on='logits', relational=True)(function)


def test_no_gradient_reaches_the_teacher():
  batch = ragged_batch()
  config = ragged_config(alpha=1.0)
  program, frozen = build(config, batch, 1)
  state = program.init(jax.random.key(0))

  def loss(frozen):
    sums, _ = program.objective.sums(state.params, state.net_state, frozen,
                                     batch, jax.random.key(0))
    return program.objective.combine(sums, 0)[0]

  grads = jax.jit(jax.grad(loss))(frozen)
  assert all(np.all(g == 0) for g in jax.tree.leaves(jax.device_get(grads)))


def test_step_learns_and_compiles_once():
  config = ragged_config(depths=(1, 1))
  config.optimizer.learning_rate = 1e-2
  config.optimizer.schedule = 'constant'
  config.optimizer.ema_decay = 0.9
  program, frozen = build(config, ragged_batch(), 4)
  state = program.init(jax.random.key(0))
  losses = []
  for seed in range(30):
    batch = collectives.shard_batch(program.mesh, ragged_batch(seed % 3))
    state, metrics = program.train_step(state, frozen, batch)
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.8 * losses[0]
  assert program.train_step._function._cache_size() == 1
  assert int(state.step) == 30
  moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), state.ema,
                       state.params.student)
  assert 0 < max(jax.tree.leaves(moved)) < 0.2


@pytest.mark.parametrize('scan', (False, True))
@pytest.mark.parametrize('fields', (
    {}, {'student.remat': 'full', 'microbatches': 2}))
def test_the_pass_that_counts_costs_nothing(scan, fields):
  """A step has no more matrix products than a gradient of known counts."""
  config = ragged_config()
  config.student.model = config.teacher.model = 'llama'
  config.student.options = dict(width=8, depth=2, heads=2, scan=scan)
  config.teacher.options = dict(width=16, depth=2, heads=4, scan=scan)
  config.update_from_flattened_dict(fields)
  batch = ragged_batch()
  program = build_program(config, batch, 1)
  state, frozen = program.abstract_state, program.abstract_frozen

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def alone(params, frozen):
    objective = program.objective
    coefficients = {
        term.name: [1.0] * len(objective.layers.get(term.name, [None]))
        for term in objective.terms}
    return objective.loss(params, {}, frozen, batch, jax.random.key(0),
                          coefficients, compare_lib.Context())

  flops = lambda traced: counting.count(traced.jaxpr, 1).flops
  assert flops(program.train_step.trace(state, frozen, batch)) == flops(
      alone.trace(state.params, frozen))


def test_schedules_and_running_mean_are_those_of_the_step():
  config = image_config('mlp', dict(hidden=(5,)))
  config.optimizer.update(dict(
      name='sgd', learning_rate=0.4, warmup_steps=3, schedule='constant',
      ema_decay=0.9))
  # Two equal terms, the second one with the weights 0, 1 and 2.
  config.distillation.alpha = 1.0
  config.losses.more = dict(
      loss='kl_divergence', options=dict(temperature=2.0),
      weight=dict(kind='linear', start=0.0, end=3.0, steps=3))
  batch = image_batch()
  program, frozen = build(config, batch, 1)
  first = program.init(jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, first.ema, first.params.student)
  placed = collectives.shard_batch(program.mesh, batch)
  norms = []
  for number, kept in enumerate((1 / 10, 2 / 11, 3 / 12)):
    state = jax.device_put(
        first._replace(step=jnp.int32(number)),
        mesh_lib.shardings_of(program.abstract_state))
    state, metrics = program.train_step(state, frozen, placed)
    assert 'weight/kl_divergence' not in metrics
    np.testing.assert_allclose(metrics['weight/more'], number, rtol=1e-6)
    np.testing.assert_allclose(
        metrics['learning_rate'], 0.1 * (number + 1), rtol=1e-6)
    np.testing.assert_allclose(
        metrics['loss'], (1 + number) * metrics['loss/more'], rtol=1e-6)
    norms.append(float(metrics['grad_norm']))
    # The mean starts as the parameters and moves to those after the step.
    expected = jax.tree.map(
        lambda old, new: kept * old + (1 - kept) * new,  # noqa: B023
        first.ema, state.params.student)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        state.ema, expected)
  np.testing.assert_allclose(norms, norms[0] * np.array([1, 2, 3]), rtol=1e-5)


def test_dropout_differs_between_shards_microbatches_and_steps():
  half = jax.tree.map(lambda x: x[:16], image_batch())
  twice = jax.tree.map(lambda x: np.concatenate([x, x]), half)

  def build_run(batch, devices, **fields):
    run = build_gradient(
        image_config('dropping', **fields), batch, devices)
    return lambda *step: run(batch, *step)[0].student['linear']['w']

  # With the same dropout in both halves, the doubled batch would have the
  # gradient of the half.
  run = build_run(half, 1)
  one = run()
  shards = build_run(twice, 2)()
  microbatches = build_run(twice, 1, microbatches=2)()
  assert np.array_equal(one, build_run(half, 1)())
  assert not np.allclose(one, run(1), atol=1e-4)
  assert not np.allclose(one, build_run(half, 1, seed=1)(), atol=1e-4)
  assert not np.allclose(one, shards, atol=1e-4)
  assert not np.allclose(one, microbatches, atol=1e-4)
  assert not np.allclose(shards, microbatches, atol=1e-4)


def test_state_of_the_student_may_hold_keys_and_counters():

  def keyed(image, *, is_training, num_classes):
    key = hk.get_state('key', (), jax.random.key(3).dtype,
                       init=lambda *_: jax.random.key(3))
    hk.set_state('key', jax.random.fold_in(key, 1))
    hk.set_state('calls', hk.get_state('calls', (), jnp.int32, jnp.zeros) + 1)
    return hk.Linear(num_classes)(image)

  with registry.models.temporary():
    registry.register_model()(keyed)
    config, batch = image_config('keyed', microbatches=2), image_batch()
    program, frozen = build(config, batch, 2)
    state = program.init(jax.random.key(0))
    state, _ = program.train_step(state, frozen,
                                  collectives.shard_batch(program.mesh, batch))
  # Haiku starts with the values of init=...; two microbatches update them.
  assert int(state.net_state['~']['calls']) == 2
  expected = jax.random.key(3)
  for _ in range(2):
    expected = jax.random.fold_in(expected, 1)
  np.testing.assert_array_equal(
      jax.random.key_data(state.net_state['~']['key']),
      jax.random.key_data(expected))


@functools.cache
def gradient_in(precision):
  # Every row has a key: in float16, Haiku's attention gives NaN without one.
  batch = ragged_batch()._replace(mask=np.ones((BATCH, LENGTH), bool))
  config = ragged_config(depths=(1, 2))
  config.student.precision = config.teacher.precision = precision
  return gradient(config, batch, 2)[0]


@pytest.mark.parametrize('precision', ('bfloat16', 'float16'))
def test_low_precision_follows_float32(precision):
  exact, grads = gradient_in('float32'), gradient_in(precision)
  dots = jax.tree.map(lambda a, b: np.vdot(a, b), grads.student, exact.student)
  norm = lambda g: np.sqrt(
      sum(np.vdot(x, x) for x in jax.tree.leaves(g.student)))
  cosine = sum(jax.tree.leaves(dots)) / (norm(grads) * norm(exact))
  assert cosine > 0.999
  assert {x.dtype for x in jax.tree.leaves(grads)} == {np.dtype('float32')}


def test_scaled_loss_gives_the_update_of_an_unscaled_one():
  batch = image_batch()
  results = {}
  for precision in ('float32', 'float16'):
    config = image_config('batch_normed', dict(width=5), **{
        'student.precision': precision, 'teacher.precision': precision,
        'optimizer.name': 'sgd'})
    program, frozen = build(config, batch, 2)
    state = program.init(jax.random.key(0))
    before = jax.device_get(state.params)
    state, metrics = program.train_step(
        state, frozen, collectives.shard_batch(program.mesh, batch))
    change = jax.tree.map(lambda a, b: a - b, jax.device_get(state.params),
                          before)
    results[precision] = (float(metrics['grad_norm']), float(metrics['loss']),
                          float(optax.tree.norm(change)))
  np.testing.assert_allclose(results['float16'], results['float32'], rtol=2e-2)


def test_overflow_skips_the_update_and_halves_the_scale():
  batch = image_batch()
  config = image_config('batch_normed', dict(width=5), **{
      'student.precision': 'float16', 'optimizer.ema_decay': 0.9})
  program, frozen = build(config, batch, 2)
  state = program.init(jax.random.key(0))
  placed = collectives.shard_batch(program.mesh, batch)
  usual = state.loss_scale
  # At this scale any gradient exceeds float16's largest number, 65504.
  immense = jax.tree.map(
      lambda x: jnp.full_like(x, 1e30) if x.dtype == jnp.float32 else x, usual)
  for scale, kept in ((immense, True), (usual, False)):
    before = jax.device_get(state)
    state, metrics = program.train_step(
        state._replace(loss_scale=scale), frozen, placed)
    # Also the running means of the parameters, and those of BatchNorm.
    for field in ('params', 'opt_state', 'ema', 'net_state'):
      same = jax.tree.map(
          lambda x, y: np.array_equal(x, y), getattr(before, field),
          jax.device_get(getattr(state, field)))
      assert all(jax.tree.leaves(same)) == kept
    assert int(state.step) == before.step + 1
    if kept:
      np.testing.assert_allclose(metrics['loss_scale'], 0.5e30, rtol=1e-6)


@pytest.mark.parametrize('fields', (
    {'optimizer.ema_decay': 0.9, 'microbatches': 2},
    {'student.precision': 'float16', 'mesh.replica': 2, 'mesh.fsdp': 4}))
def test_only_a_large_state_is_written_over_the_old_one(monkeypatch, fields):
  config, batch = image_config(
      'batch_normed', dict(width=16), **fields), image_batch()
  results = []
  for limit in (0, 2**24):
    monkeypatch.setattr(program_lib, '_DONATED_ON_CPU', limit)
    program, frozen = build(config, batch, 8)
    state = program.init(jax.random.key(0))
    args = state, frozen, collectives.shard_batch(program.mesh, batch)
    with warnings.catch_warnings():
      warnings.simplefilter('error')  # JAX warns of buffers it cannot reuse.
      compiled = program.train_step.lower(*args).compile()
    reused = compiled.memory_analysis().alias_size_in_bytes
    # BatchNorm's running means are no argument where the step does not read
    # them.
    parts = sum(
        x.addressable_data(0).nbytes for x in jax.tree.leaves(
            (state.params, state.opt_state, state.ema, state.step)))
    assert reused == 0 if limit else reused >= parts
    results.append(jax.device_get(compiled(*args)))
    assert state.params.student['linear']['w'].is_deleted() == (limit == 0)
  jax.tree.map(np.testing.assert_array_equal, *results)


def test_a_branch_updates_a_donated_state_in_less_room(monkeypatch):
  """As a selection does but for rounding; a skipped one leaves no trace."""
  config, batch = image_config('mlp', dict(hidden=(128,) * 3), **{
      'optimizer.ema_decay': 0.9, 'guard.nonfinite': guarding.SKIP
  }), image_batch()
  wrong = batch._replace(inputs=batch.inputs * np.nan)
  monkeypatch.setattr(program_lib, '_DONATED_ON_CPU', 0)
  update_if, results, sizes = guarding.update_if, [], []
  for branches in (True, False):
    monkeypatch.setattr(
        guarding, 'update_if',
        lambda *args, branches, now=branches: update_if(*args, branches=now))
    program, frozen = build(config, batch, 1)
    state = program.init(jax.random.key(0))
    step = program.train_step.lower(state, frozen, batch).compile()
    sizes.append(step.memory_analysis().temp_size_in_bytes)
    state, _ = step(state, frozen, batch)
    before = jax.device_get(state)
    state, _ = step(state, frozen, wrong)
    skipped = jax.device_get(state)
    assert skipped.step == 2 and skipped.seen.number == 1
    jax.tree.map(np.testing.assert_array_equal, before, skipped._replace(
        step=before.step, seen=before.seen))
    state, _ = step(state, frozen, batch)
    results.append(jax.device_get(state))
  jax.tree.map(functools.partial(
      np.testing.assert_allclose, rtol=1e-5, atol=1e-8), *results)
  # A selection has one more array for each of the parameters.
  assert sizes[1] - sizes[0] > 0.9 * sum(
      x.nbytes for x in jax.tree.leaves(results[0].params))


@pytest.mark.parametrize('limit, devices, expected', (
    (0, 1, True), (0, 2, False), (2**24, 1, False)))
def test_what_is_donated_to_one_cpu_is_updated_in_a_branch(
    monkeypatch, limit, devices, expected):
  update_if, found = guarding.update_if, []

  def record(*args, branches):
    found.append(branches)
    return update_if(*args, branches=branches)

  monkeypatch.setattr(guarding, 'update_if', record)
  monkeypatch.setattr(program_lib, '_DONATED_ON_CPU', limit)
  batch = image_batch()
  program, frozen = build(
      image_config('batch_normed', dict(width=4)), batch, devices)
  program.train_step.lower(program.abstract_state, frozen, batch)
  assert set(found) == {expected}


@pytest.mark.parametrize('batch_size, nearest', ((30, '24 or 32'), (4, '8')))
def test_batch_that_does_not_divide_is_refused(batch_size, nearest):
  mesh = mesh_lib.build_mesh(config_lib.base().mesh, jax.devices()[:4])
  match = (f'^config.batch_size must be divisible by .* = 1 x 4 x 2; got '
           f'{batch_size}. The nearest: {nearest}.')
  with pytest.raises(checks.ConfigError, match=match):
    mesh_lib.check_batch_size(mesh, batch_size, 2)
