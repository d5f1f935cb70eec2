"""The loss and its gradient do not depend on the layout of the devices.

The reference is one device, without remat and with unrolled layers; its own
gradient is compared with plain JAX in `step_test`.
"""

import functools
import itertools

import jax
import jmp
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.engine import step as step_lib
from haikd.losses import cutting

BATCH, LENGTH, VOCABULARY, DEPTH = 16, 8, 16, 2

MESHES = tuple(shape for shape in itertools.product((1, 2, 4, 8), repeat=3)
               if np.prod(shape) == 8)

# 8 divides the widths, heads and classes that are split. The heads of a llama
# have 8 features: normalising heads of 2 is badly conditioned.
MODELS = dict(
    vit=(dict(patch_size=4, width=16, depth=DEPTH, heads=8, mlp_ratio=2.0),
         dict(patch_size=4, width=24, depth=DEPTH, heads=8, mlp_ratio=2.0)),
    llama=(dict(width=16, depth=DEPTH, heads=8, head_size=8, key_value_heads=4,
                hidden=32, qk_norm='all', qkv_bias=True, mlp_bias=True,
                window=3, window_layers=(1,), window_rope_base=100.0,
                attention_soft_cap=2.0, logits_scale=0.5, logits_soft_cap=3.0),
           dict(width=32, depth=DEPTH, heads=8, head_size=8, hidden=64)))
LONG = 'long'  # A llama whose maps have several blocks, some of padding only.


def make_batch(model):
  """Images, some of them padding; or ragged tokens, with an empty shard."""
  rng = np.random.RandomState(0)
  if model == 'vit':
    return base.Batch(
        inputs=rng.rand(BATCH, 8, 8, 1).astype(np.float32),
        mask=np.arange(BATCH) % 5 > 0,
        labels=rng.randint(0, VOCABULARY, BATCH).astype(np.int32))
  length = 256 if model == LONG else LENGTH
  lengths = rng.randint(0, length + 1, BATCH)
  lengths[2:4] = 0
  if model == LONG:
    lengths[8:] %= 16  # Half of the shards.
  mask = np.arange(length) < lengths[:, None]
  mask[7] = mask[7][::-1]  # Left padding as well.
  tokens, labels = rng.randint(0, VOCABULARY, (2, BATCH, length))
  return base.Batch(tokens.astype(np.int32), mask, labels.astype(np.int32))


def make_config(model, **fields):
  config = config_lib.base()
  config.batch_size = BATCH
  config.chunk_mib = 4 * 4 * VOCABULARY / 2**20  # Of 4 positions of logits.
  model = 'llama' if model == LONG else model
  student, teacher = MODELS[model]
  for network, options in ((config.student, student),
                           (config.teacher, teacher)):
    network.model = model
    network.options = dict(options, scan=False)
  config.distillation.use_feature_matching = True
  config.distillation.feature_loss_weight = 1.0
  config.distillation.use_attention_transfer = True
  config.distillation.attention_loss_weight = 1.0
  # The parameters of a learned alignment are split as well.
  config.losses.projected = dict(
      loss='feature_matching', align='project', layers='last')
  config.update_from_flattened_dict(fields)
  return config


def stack(params):
  """Stacks the parameters of all `block_i`, as a network with `scan` does."""
  stacked = {}
  for module, parameters in params.items():
    if 'block_0' in module:
      name = module.replace('block_0', 'block').split('/')
      name.insert(name.index('block'), '__layer_stack_no_per_layer')
      layers = [params[module.replace('block_0', f'block_{i}')]
                for i in range(DEPTH)]
      stacked['/'.join(name)] = jax.tree.map(lambda *x: np.stack(x), *layers)
    elif 'block_' not in module:
      stacked[module] = parameters
  return stacked


def build(config, batch, shape, devices=None):
  config.mesh = dict(zip(mesh_lib.AXES, shape))
  mesh = mesh_lib.build_mesh(config.mesh, devices)
  return program_lib.build_program(
      config,
      spec=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                        batch),
      num_classes=VOCABULARY, mesh=mesh, has_teacher=True)


def gradient(program, config, params, frozen, batch):
  """Returns loss and gradient on the host."""
  state = program.abstract_state
  function = step_lib.build_gradient(
      program.objective,
      program.mesh,
      mesh_lib.shardings_of(state.params),
      mesh_lib.shardings_of(program.abstract_frozen),
      microbatches=config.microbatches,
      seed=0)
  params = jax.device_put(params, mesh_lib.shardings_of(state.params))
  grads, _, sums = jax.jit(function)(
      params, {}, program.freeze(frozen), jmp.NoOpLossScale(), np.int32(0),
      collectives.shard_batch(program.mesh, batch))
  loss, _ = program.objective.combine(sums, 0)
  return jax.device_get((loss, grads))


@functools.cache
def reference(model):
  """Returns parameters, teacher, loss and gradient of one device."""
  config, batch = make_config(model), make_batch(model)
  config.student.remat = 'none'
  program = build(config, batch, (1, 1, 1), jax.devices()[:1])
  params = jax.device_get(program.init(jax.random.key(0)).params)
  frozen = jax.device_get(
      base.Variables(*program.objective.teacher.init(jax.random.key(1), batch)))
  return params, frozen, *gradient(program, config, params, frozen, batch)


def check(model, mesh, scan, remat, microbatches=1):
  params, frozen, loss, expected = reference(model)
  batch = make_batch(model)
  config = make_config(model, **{
      'student.options.scan': scan, 'teacher.options.scan': scan,
      'student.remat': remat, 'microbatches': microbatches})
  if scan:
    params = params._replace(student=stack(params.student))
    frozen = frozen._replace(params=stack(frozen.params))
    expected = expected._replace(student=stack(expected.student))
  program = build(config, batch, mesh, jax.devices()[:np.prod(mesh)])
  split_loss, grads = gradient(program, config, params, frozen, batch)
  np.testing.assert_allclose(split_loss, loss, rtol=1e-5)
  assert jax.tree.structure(grads) == jax.tree.structure(expected)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), grads,
      expected)


# Every other mesh has each axis split by 1, 2 and 4 at least; the slow test
# below has all of them.
@pytest.mark.parametrize('model, mesh, scan, remat', [
    pytest.param(
        ('llama', 'vit')[i % 4 == 0], mesh, i != 8,
        ('none', 'gathers', 'full', 'dots')[i // 2 % 4],
        marks=[pytest.mark.slow] * (i in (0, 2)))
    for i, mesh in enumerate(MESHES) if i % 2 == 0])
def test_meshes_give_the_gradient_of_one_device(model, mesh, scan, remat):
  check(model, mesh, scan, remat)


def test_vocabulary_is_split_where_nothing_else_is():
  check('llama', (1, 1, 8), True, 'none')


@pytest.mark.slow
@pytest.mark.parametrize('mesh', ((2, 2, 2), (1, 1, 2)))
def test_devices_that_share_heads_run_every_block(mesh):
  check(LONG, mesh, True, 'none')


@pytest.mark.slow
@pytest.mark.parametrize('remat', ('none', 'gathers', 'dots', 'full'))
@pytest.mark.parametrize('scan', (False, True))
@pytest.mark.parametrize('mesh', MESHES)
@pytest.mark.parametrize('model', MODELS)
def test_every_mesh_with_every_remat(model, mesh, scan, remat):
  check(model, mesh, scan, remat)


@pytest.mark.parametrize('model', MODELS)
def test_microbatches_on_a_mesh(model, monkeypatch):
  monkeypatch.setattr(cutting, '_MAX_LOGITS_IN_GROUP', 2 * VOCABULARY)
  check(model, (2, 2, 2), True, 'gathers', microbatches=2)
