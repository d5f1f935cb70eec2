"""Weights of examples: in total and count, on any mesh, by hand."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.engine import collectives
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.engine import step as step_lib

BATCH, WIDTH, CLASSES, LENGTH = 16, 6, 5, 4
# The batch of `repeated` has as many rows, so that one program computes both.
WEIGHTS = np.array([0, 0, 0, 0, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1], np.float32)


def linear(x, *, is_training, num_classes):
  del is_training
  return hk.Linear(num_classes)(x)


def attending(tokens, *, is_training, mask, num_classes):
  """Attention, features, and lazy logits."""
  del is_training
  x = hk.Embed(8, 8)(tokens)
  pairs = mask[:, None, None, :] & mask[:, None, :, None]
  x = x + hk.MultiHeadAttention(
      2, 4, model_size=8, w_init=hk.initializers.VarianceScaling(),
      name='attn')(x, x, x, mask=pairs)
  x = hk.Linear(8, name='hidden')(x)
  kernel = hk.get_parameter('kernel', (8, num_classes),
                            init=hk.initializers.RandomNormal(0.3))
  return base.LinearLogits(x, kernel)


@pytest.fixture(autouse=True)
def models():
  with registry.models.temporary():
    registry.register_model()(linear)
    registry.register_model(
        taps=dict(features='hidden', attention='attn'))(attending)
    yield


def config_of(model, **fields):
  config = config_lib.base()
  config.batch_size = BATCH
  config.student.model = config.teacher.model = model
  config.student.options = config.teacher.options = {}
  config.update_from_flattened_dict(fields)
  return config


def gradient(config, batch, devices, num_classes=CLASSES):
  """Returns the gradient, the loss, the student and the frozen teacher."""
  program = program_lib.build_program(
      config,
      spec=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                        batch),
      num_classes=num_classes, has_teacher=True,
      mesh=mesh_lib.build_mesh(config.mesh, jax.devices()[:devices]))
  frozen = program.freeze(base.Variables(*jax.jit(
      program.objective.teacher.init)(jax.random.key(7), batch)))
  state = program.init(jax.random.key(0))
  shardings = mesh_lib.shardings_of(
      (program.abstract_state.params, program.abstract_frozen))
  run = jax.jit(step_lib.build_gradient(
      program.objective, program.mesh, *shardings,
      microbatches=config.microbatches, seed=0))
  grads, _, sums = run(
      state.params, state.net_state, frozen, state.loss_scale, jnp.int32(0),
      collectives.shard_batch(program.mesh, batch))
  loss, _ = program.objective.combine(sums, 0)
  return jax.device_get((grads.student, loss, state.params.student,
                         frozen.params))


def softmax(x):
  powers = np.exp(x - x.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def images(weight):
  rng = np.random.RandomState(0)
  return base.Batch(
      inputs=rng.randn(BATCH, WIDTH).astype(np.float32),
      mask=np.arange(BATCH) != 5,
      labels=rng.randint(0, CLASSES, BATCH).astype(np.int32),
      weight=weight)


def by_hand(batch, student, teacher):
  """Loss and gradient of 0.9 T^2 KL + 0.1 CE with T = 2, in NumPy."""
  logits, target = (batch.inputs.astype(np.float64) @ p['linear']['w'] +
                    p['linear']['b'] for p in (student, teacher))
  share = batch.weight.astype(np.float64) * batch.mask
  share /= share.sum()
  p, q, hard = softmax(target / 2), softmax(logits / 2), softmax(logits)
  true = np.eye(CLASSES)[batch.labels]
  loss = share @ (0.9 * 4 * (p * np.log(p / q)).sum(-1) -
                  0.1 * (true * np.log(hard)).sum(-1))
  # d KL / d logits = (q - p) / T.
  slope = share[:, None] * (0.9 * 4 / 2 * (q - p) + 0.1 * (hard - true))
  return loss, dict(linear=dict(w=batch.inputs.T @ slope, b=slope.sum(0)))


def assert_close(one, two, atol=1e-6):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=atol), one, two)


@pytest.mark.parametrize('devices, microbatches', ((1, 1), (8, 2)))
@pytest.mark.parametrize('scale', (1.0, 1e-3))
def test_weights_enter_total_and_count(devices, microbatches, scale):
  """A common factor of all weights, also a tiny one, changes nothing."""
  weight = np.random.RandomState(1).uniform(0, 3, BATCH).astype(np.float32)
  batch = images(weight * np.float32(scale))
  config = config_of('linear', microbatches=microbatches)
  grads, loss, student, teacher = gradient(config, batch, devices)
  expected, slopes = by_hand(batch, student, teacher)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert_close(grads, slopes)


def test_weights_of_1_are_as_none():
  weighted = gradient(config_of('linear'), images(np.ones(BATCH, np.float32)),
                      8)
  plain = gradient(config_of('linear'), images(None), 8)
  assert_close(weighted[:2], plain[:2], atol=1e-7)


@pytest.mark.parametrize('task', ('regression', 'multilabel'))
def test_other_tasks_are_weighted_as_if_repeated(task):
  config = config_of('linear', task=task)
  rng = np.random.RandomState(0)
  labels = rng.rand(BATCH, 3).astype(np.float32)
  if task == 'multilabel':
    labels = np.round(labels)
  batch = images(WEIGHTS)._replace(labels=labels)
  one = gradient(config, batch, 8, 3)
  two = gradient(config, repeated(batch), 1, 3)
  assert_close(one[:2], two[:2])


def repeated(batch):
  """Returns a batch in which weights are how often an example is there."""
  rows = np.repeat(np.arange(BATCH), WEIGHTS.astype(int))
  return jax.tree.map(lambda x: x[rows], batch._replace(weight=None))


def texts():
  rng = np.random.RandomState(3)
  lengths = rng.randint(1, LENGTH + 1, BATCH)
  return base.Batch(
      inputs=rng.randint(0, 8, (BATCH, LENGTH)).astype(np.int32),
      mask=np.arange(LENGTH) < lengths[:, None],
      labels=rng.randint(0, CLASSES, (BATCH, LENGTH)).astype(np.int32),
      weight=WEIGHTS)


def test_an_example_of_weight_2_is_as_two():
  """Logits in chunks, features, attention: whatever a loss is."""
  with registry.losses.temporary():
    from haikd.losses import register

    @register.register_loss(on='features')
    def theirs(student, teacher, *, mask):
      """Knows nothing of weights, and counts by hand."""
      errors = jnp.where(mask[..., None], jnp.abs(student - teacher), 0.0)
      return base.LossSum(errors.sum(), mask.sum() * 1.0)

    config = config_of(
        'attending', microbatches=2,
        **{'distillation.use_attention_transfer': True,
           'distillation.use_feature_matching': True})
    config.losses.theirs = dict(loss='theirs', weight=0.3)
    one = gradient(config, texts(), 8)
    config.microbatches = 1
    two = gradient(config, repeated(texts()), 1)
  assert_close(one[:2], two[:2])


def test_a_loss_that_relates_examples_is_refused():
  config = config_of('linear')
  config.losses.related = dict(loss='related_distance')
  with registry.losses.temporary():
    from haikd.losses import register

    @register.register_loss(on='logits', relational=True)
    def related_distance(student, teacher, *, mask):
      del teacher
      return base.LossSum(student.sum(), mask.sum() * 1.0)

    with pytest.raises(
        checks.ConfigError, match='config.losses.related must be a loss over '
        'examples one by one, since the data has weights'):
      gradient(config, images(WEIGHTS), 1)
