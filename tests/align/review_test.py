"""The fusion of layers against NumPy, and in a job."""

import json

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import align
from haikd.core import checks

MASK = jnp.array([True, True, False])
SHAPES = (((3, 4, 4, 3), (3, 4, 4, 5)), ((3, 2, 2, 6), (3, 2, 2, 7)),
          ((3, 2, 1, 4), (3, 1, 1, 2)))


def make(shapes=SHAPES):
  rng = np.random.RandomState(0)
  return [tuple(jnp.float32(rng.randn(*shape[side])) for shape in shapes)
          for side in range(2)]


def transform(mask=MASK, **options):

  def run(student, teacher):
    masks = mask if isinstance(mask, tuple) else (mask,) * len(student)
    return align.knowledge_review(student, teacher, mask=masks, on='features',
                                  **options)

  return hk.transform(run)


def linear(params, name, x):
  return x @ params[name]['w'] + params[name]['b']


def in_numpy(params, student, widths):
  """Returns the student's maps for the teacher, float64."""
  params = jax.tree.map(np.float64, jax.device_get(params))
  behind, found = None, []
  for number in reversed(range(len(student))):
    x = linear(params, f'review_{number}_in', np.float64(student[number]))
    if behind is not None:
      height, width = (x.shape[i] // behind.shape[i] for i in (1, 2))
      up = behind.repeat(height, axis=1).repeat(width, axis=2)
      score = linear(params, f'review_{number}_attention',
                     np.concatenate([x, up], -1))
      gate = 1 / (1 + np.exp(-score))
      x = x * gate[..., :1] + up * gate[..., 1:]
    behind = x * np.array(MASK)[:, None, None, None]
    kernel = params[f'review_{number}_out']
    padded = np.pad(behind, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    y = sum(padded[:, i:i + height, j:j + width] @ kernel['w'][i, j]
            for i in range(3) for j in range(3)) + kernel['b']
    assert y.shape[-1] == widths[number]
    found.insert(0, y)
  return found


def test_fusion_is_that_of_numpy():
  student, teacher = make()
  run = transform(width=4)
  params = jax.jit(run.init)(jax.random.key(0), student, teacher)
  params = jax.tree.map(lambda x: x + 0.1, params)  # Biases begin at 0.
  pairs = jax.jit(run.apply)(params, None, student, teacher)
  # The last pair has the places of the smaller side, whose mean is taken.
  pooled = (*student[:2], student[2].mean(axis=(1, 2), keepdims=True))
  expected = in_numpy(params, pooled, (5, 7, 2))
  keep = np.array(MASK)
  for pair, values, target in zip(pairs, expected, teacher):
    np.testing.assert_allclose(pair.student[keep], values[keep], rtol=1e-5,
                               atol=1e-5)
    np.testing.assert_array_equal(pair.teacher[keep], target[keep])
    np.testing.assert_array_equal(pair.mask, MASK)


def test_an_early_layer_of_the_teacher_teaches_later_ones_of_the_student():
  student, teacher = make()
  run = transform()
  params = jax.jit(run.init)(jax.random.key(0), student, teacher)
  assert params['review_2_in']['w'].shape == (4, 4)  # The last one's width.
  slopes = jax.jit(jax.jacrev(lambda s: jnp.stack([
      x.student[:2].sum() for x in run.apply(params, None, s, teacher)])))
  student = tuple(x.at[2].set(jnp.nan) for x in student)  # It is masked.
  gradients = slopes(student)
  reached = [[bool(x[number].any()) for x in gradients] for number in range(3)]
  assert reached == [[True] * 3, [False, True, True], [False, False, True]]
  assert all(np.isfinite(x).all() and not x[:, 2].any() for x in gradients)


def test_tokens_of_images_are_maps():
  rng = np.random.RandomState(0)
  tokens = tuple(jnp.float32(rng.randn(3, 5, 4)) for _ in range(2))
  maps = tuple(jnp.float32(rng.randn(3, 2, 2, 6)) for _ in range(2))
  run = transform()
  shapes = jax.eval_shape(
      lambda: run.apply(
          run.init(jax.random.key(0), tokens, maps), None, tokens, maps))
  assert shapes[0].student.shape == (3, 2, 2, 6)


@pytest.mark.parametrize('sides, options, match', (
    (make(SHAPES[:1]), {}, "two or more layers of features; got 1 of 'fea"),
    (make([((3, 4, 5), (3, 4, 5))] * 2), dict(grid=False),
     r"must be used on maps \[B, h, w, C\]; got student.shape=\(3, 4, 5\)"),
    (make(), dict(width=0), 'width must be None or a positive int; got 0'),
    (make(), dict(class_token='x'), 'class_token must be')))
def test_what_is_no_map_is_refused(sides, options, match):
  with pytest.raises(checks.ConfigError, match=match):
    transform(**options).init(jax.random.key(0), *sides)


CONFIG = """
from haikd import config as config_lib

def get_config():
  config = config_lib.base()
  config.steps = config.teacher.train.steps = config.log_every = 1
  config.batch_size = config.evaluation.batch_size = 8
  config.data.name = 'synthetic'
  config.data.options = dict(size=20, shape=(4, 4, 1), num_classes=3)
  for network, channels in ((config.student, (4, 6)), (config.teacher, (8, 8))):
    network.model = 'convnet'
    network.options = dict(channels=channels, norm='none')
  config.losses.review = dict(
      loss='hierarchical_context', align='knowledge_review')
  return config
"""


@pytest.mark.mesh
@pytest.mark.parametrize('meshes', (
    (8,), pytest.param((8, 1), marks=pytest.mark.slow)))
def test_a_job_reviews_alike_with_split_parameters(run, tmp_path, meshes):
  (tmp_path / 'maps.py').write_text(CONFIG)
  found = []
  for devices in meshes:
    code, _, err = run(f'--config.mesh.fsdp={devices}',
                       f'--config.mesh.replica={8 // devices}',
                       config='maps.py', workdir=f'run{devices}')
    assert code == 0, err
    lines = (tmp_path / f'run{devices}/metrics.jsonl').read_text().splitlines()
    first = json.loads(lines[0])
    found.append([first['loss/review'], first['grad_norm']])
    assert found[-1][0] > 0
    np.testing.assert_allclose(found[-1], found[0], rtol=1e-5)
