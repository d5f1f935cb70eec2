"""Decoders compute what transformers computes with the same weights.

make_decoder_goldens.py wrote the expected values with PyTorch.
"""

import functools
import importlib.util
import json
import pathlib

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

import haikd
from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import registry
from haikd.interop import fields as fields_lib
from haikd.interop.families import gpt2
from haikd.interop.families import llama

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE / 'golden'
CASES = ['llama', 'llama_linear', 'llama_dynamic', 'llama_yarn', 'llama_llama3',
         'llama_longrope', 'llama_biases', 'smollm2', 'mistral', 'qwen2',
         'qwen3', 'qwen3_biases', 'smollm3', 'phi3', 'olmo2', 'granite',
         'mixtral', 'qwen3_moe',
         'gemma2', 'gemma3', 'gpt2', 'gpt2_untied']
# Blocks differ in windows, in caps with them, and in rotations.
LOOPED = ['smollm2', 'qwen3_biases', 'gemma2', 'smollm3', 'gpt2']
STACK = '__layer_stack_no_per_layer/block/'


def family(case):
  return gpt2 if case.startswith('gpt2') else llama


@functools.cache
def read(folder):
  """Returns options, tensors and expected values of one case."""
  values = json.loads((folder / 'config.json').read_text())
  fields = fields_lib.Fields('config.json', values)
  options = family(folder.name).read_config(fields)
  tensors = safetensors.load_file(folder / 'model.safetensors')
  with np.load(folder / 'expected.npz') as expected:
    return options, tensors, dict(expected)


def parameters(case, options, tensors):
  """Returns parameters by their rules, and checks that all tensors are used."""
  rules = family(case).tensors(options, tensors).rules
  params, used = {}, set()
  for rule in rules:
    for layer in range(options['depth'] if '{layer}' in rule.tensor else 1):
      name = rule.tensor.format(layer=layer)
      used.add(name)
      module = rule.module.replace('block', f'block_{layer}', 1)
      value = jnp.asarray(rule.load(tensors[name]))
      params.setdefault(module, {})[rule.name] = value
  assert used == set(tensors)
  return params


def stacked(params, depth):
  """Returns the parameters of a network that scans over its blocks."""
  result = {}
  for path, leaves in params.items():
    first, _, rest = path.partition('/')
    if first == 'block_0':
      blocks = [params[f'block_{i}/{rest}'] for i in range(depth)]
      result[STACK + rest] = jax.tree.map(lambda *xs: jnp.stack(xs), *blocks)
    elif not first.startswith('block_'):
      result[path] = leaves
  return result


def check(folder, scan=False):
  """Compares one case with its expected values, padded on either side."""
  case = folder.name
  options, tensors, expected = read(folder)
  params = parameters(case, options, tensors)
  if scan:
    params = stacked(params, options['depth'])
  model = registry.models[family(case).MODEL]
  taps = dict(hidden=('embed', model.taps['features'], 'norm'),
              maps=model.taps['attention'])
  net = hk.transform(haikd.capture(
      lambda tokens, mask: model.function(
          tokens, mask=mask, is_training=False, scan=scan, **options), taps))
  shapes = jax.eval_shape(
      net.init, jax.random.key(0), expected['left/tokens'],
      expected['left/mask'])
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
  run = jax.jit(net.apply)
  for side in ('left', 'right'):
    at = lambda name: expected[f'{side}/{name}']  # noqa: B023
    mask = at('mask')
    output, values = run(params, None, at('tokens'), mask)
    hidden = np.stack(values['hidden'])
    maps = np.stack([x.materialise() for x in values['maps']])
    assert hidden.shape == at('hidden').shape and maps.shape == at('maps').shape
    real = lambda x: np.asarray(x)[..., mask, :]  # noqa: B023
    np.testing.assert_allclose(
        real(hidden), real(at('hidden')), rtol=0, atol=1e-4)
    # With heads first, the mask selects rows and queries.
    np.testing.assert_allclose(
        real(np.moveaxis(maps, 2, 0)), real(np.moveaxis(at('maps'), 2, 0)),
        rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        real(output.materialise()), real(at('logits')), rtol=0, atol=1e-4)


@pytest.mark.parametrize('case', CASES)
def test_decoders_give_the_same(case):
  check(GOLDEN / case)


@pytest.mark.parametrize('case', LOOPED)
def test_decoders_give_the_same_in_a_loop_over_blocks(case):
  check(GOLDEN / case, scan=True)


def goldens():
  """Returns the module that writes goldens, or skips the test."""
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  path = HERE / 'make_decoder_goldens.py'
  spec = importlib.util.spec_from_file_location('make_decoder_goldens', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_other_weights_give_the_same_as_transformers(case, tmp_path):
  folder = tmp_path / case
  goldens().make(case, folder, seed=7)
  check(folder)


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_transformers_reads_a_written_config_as_it_was(case, tmp_path):
  """transformers computes the same logits with the written config."""
  module = goldens()
  import transformers
  options, tensors, expected = read(GOLDEN / case)
  # The export adds it; the default may lie beyond this vocabulary.
  config = dict(family(case).write_config(options), pad_token_id=None)
  (tmp_path / 'config.json').write_text(json.dumps(config))
  safetensors.save_file(
      tensors, tmp_path / 'model.safetensors', metadata=dict(format='pt'))
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
  assert type(model).__name__ == config['architectures'][0]
  mask = expected['left/mask']
  actual = module.compute(
      model, expected['left/tokens'].astype(int), mask.astype(int))
  np.testing.assert_allclose(
      actual['logits'][mask], expected['left/logits'][mask], atol=1e-5)
