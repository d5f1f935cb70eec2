"""The configs that are too large to run in a test: networks and their sizes."""

import importlib.util
import pathlib

import haiku as hk
import jax
import pytest

from haikd import config as config_lib
from haikd.bench import cases
from haikd.data import description
from haikd.engine import optimizer
from haikd.network import network
from haikd.objective import build as build_lib

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
C4 = 'c4_llama1b_from_llama8b'
IMAGENET = 'imagenet_resnet50_from_resnet152'


def load(name, variant=''):
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


def llama(width, depth, hidden, key_value_width):
  """Parameters of a Llama with a vocabulary of 128,256.

  A block has queries and output, D x D each, keys and values, D x G K each,
  three maps of the MLP and two norms. Outside the blocks there are embedding,
  logits and the last norm.
  """
  block = (2 * width**2 + 2 * width * key_value_width + 3 * width * hidden +
           2 * width)
  return depth * block + 2 * 128_256 * width + width


def resnet(blocks):
  """Parameters of a ResNet with bottlenecks for 1000 classes.

  A block of C channels out has maps of C/4 x its channels in, 9 C/4 x C/4 and
  C x C/4, each with the scale and offset of a norm; the first of a group has a
  shortcut of C x its channels in, with a norm.
  """
  total = 7 * 7 * 3 * 64 + 2 * 64
  size = 64
  for count, channels in zip(blocks, (256, 512, 1024, 2048)):
    middle = channels // 4
    total += size * channels + 2 * channels
    for _ in range(count):
      total += size * middle + 9 * middle**2 + middle * channels
      total += 2 * (middle + middle + channels)
      size = channels
  return total + 2048 * 1000 + 1000


# Published: 8.03 billion (arXiv:2407.21783), 25.557 and 60.193 million (the
# table of torchvision's models). The student of C4 is Llama 3.2 1B, published
# with 1,235,814,400 parameters, plus an untied kernel of logits of the size of
# the embedding.
@pytest.mark.parametrize('name, role, count, by_hand', [
    (C4, 'teacher', 8_030_261_248, llama(4096, 32, 14_336, 1024)),
    (C4, 'student', 1_235_814_400 + 128_256 * 2048,
     llama(2048, 16, 8192, 512)),
    (IMAGENET, 'teacher', 60_192_808, resnet((3, 8, 36, 3))),
    (IMAGENET, 'student', 25_557_032, resnet((3, 4, 6, 3))),
])
def test_networks_have_their_published_number_of_parameters(
    name, role, count, by_hand):
  assert count == by_hand
  config = load(name)
  spec, num_classes, _ = description.describe(config)
  net = network.build_network(
      config[role], title=role, num_classes=num_classes)
  one = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), spec)
  params, _ = jax.eval_shape(net.init, jax.random.key(0), one)
  assert hk.data_structures.tree_size(params) == count


# Qwen3 0.6B is published as one of 0.6 billion, SmolLM2 135M as one of 134.5
# million. A block has D x HK twice, D x GK twice, 3 D x hidden and 2 norms of
# D; those of Qwen3 have 2 norms of K more. The embedding is tied.
@pytest.mark.parametrize('name, role, count', [
    ('records_smollm2', 'teacher', (49_152 + 1) * 576 + 30 * 576 * (
        2 * 576 + 2 * 192 + 3 * 1536 + 2)),
    ('records_smollm2', 'student', (49_152 + 1) * 448 + 2 * 448 * (
        2 * 384 + 2 * 128 + 3 * 768 + 2)),
    ('records_qwen3', 'teacher', (151_936 + 1) * 1024 + 28 * (1024 * (
        2 * 2048 + 2 * 1024 + 3 * 3072 + 2) + 2 * 128)),
    ('records_qwen3', 'student', (151_936 + 1) * 384 + 6 * (384 * (
        2 * 384 + 2 * 128 + 3 * 1152 + 2) + 2 * 64)),
])
def test_benchmark_has_the_networks_that_it_names(name, role, count):
  case = dict(cases.CASES[name], padding=0.0)
  config = config_lib.base()[role]
  config.model, config.options = case[role]
  net = network.build_network(
      config, title=role, num_classes=case['classes'])
  params, _ = jax.eval_shape(
      net.init, jax.random.key(0), cases.batch_of(case))
  assert hk.data_structures.tree_size(params) == count


@pytest.mark.parametrize('variant', ('', 'smoke'))
@pytest.mark.parametrize('name', (C4, IMAGENET))
def test_configs_are_valid_and_can_be_built(name, variant):
  config = load(name, variant)
  config_lib.validate(config)
  spec, num_classes, _ = description.describe(config)
  build_lib.build_objective(
      config, spec=spec, num_classes=num_classes, has_teacher=True)
  optimizer.build_optimizer(config.optimizer, config.steps)


@pytest.mark.parametrize('name, shape, num_classes', [
    (C4, (512, 2048), 128_256), (IMAGENET, (4096, 224, 224, 3), 1000)])
def test_batches_are_described_without_the_data(
    name, shape, num_classes):
  spec, described_classes, _ = description.describe(load(name))
  assert spec.inputs.shape == shape and described_classes == num_classes


def test_function_matching_uses_no_labels():
  config = load(IMAGENET)
  spec, num_classes, _ = description.describe(config)
  built = build_lib.build_objective(
      config, spec=spec, num_classes=num_classes, has_teacher=True)
  assert [term.name for term in built.terms] == ['kl_divergence']
