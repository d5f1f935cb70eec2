"""Encoders compute what transformers computes with the same weights.

make_encoder_goldens.py wrote the expected values with PyTorch.
"""

import functools
import importlib.util
import json
import os
import pathlib

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

import haikd
from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import base
from haikd.core import registry
from haikd.interop import fields as fields_lib
from haikd.interop.families import bert
from haikd.interop.families import pooling
from haikd.interop.families import vit

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE / 'golden'
TEXT = [f'{kind}{head}' for kind in ('bert', 'roberta', 'distilbert')
        for head in ('', '_classification', '_masked_lm')]
IMAGES = ['vit', 'vit_no_bias', 'deit', 'deit_teacher']
STACK = '__layer_stack_no_per_layer/block/'


def family(case):
  return vit if case in IMAGES else bert


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
  all_rules = family(case).tensors(options, tensors)
  params, used = {}, set()
  for rule in all_rules.rules:
    layers = options['depth'] if '{layer}' in rule.tensor else 1
    for layer in range(layers):
      name = rule.tensor.format(layer=layer)
      module = rule.module.replace('block', f'block_{layer}', 1)
      used.add(name)
      value = jnp.asarray(rule.layout.load(tensors[name]))
      params.setdefault(module, {})[rule.name] = value
  left = {name for name in set(tensors) - used
          if not any(pathlib.PurePath(name).match(glob)
                     for glob in (*all_rules.ignored, *all_rules.copies))}
  assert not left
  return params


def stacked(params):
  """Returns the parameters of a network that scans over its blocks."""
  result = {}
  for path, leaves in params.items():
    first, _, rest = path.partition('/')
    if first == 'block_0':
      blocks = [params[f'block_{i}/{rest}'] for i in range(2)]
      result[STACK + rest] = jax.tree.map(lambda *xs: jnp.stack(xs), *blocks)
    elif not first.startswith('block_'):
      result[path] = leaves
  return result


def run(folder, inputs, mask=None, **more):
  """Returns the output, hidden states and attention maps."""
  case = folder.name
  options, tensors, expected = read(folder)
  options = options | more
  params = parameters(case, options, tensors)
  if options.get('scan'):
    params = stacked(params)
  model = registry.models[family(case).MODEL]
  extra = {} if mask is None else dict(mask=mask)
  taps = dict(hidden=('embed', model.taps['features']),
              maps=model.taps['attention'])
  net = hk.transform(haikd.capture(
      lambda inputs: model.function(
          inputs, is_training=False, **extra, **options), taps))
  output, values = jax.jit(lambda p, x: net.apply(p, None, x))(params, inputs)
  maps = [query_key.materialise() for query_key in values['maps']]
  return output, np.stack(values['hidden']), np.stack(maps)


def check_text(folder, side, **more):
  """Compares one case and side with its expected values."""
  options, _, expected = read(folder)
  at = lambda name: expected.get(f'{side}/{name}', expected.get(name))
  mask = at('mask')
  columns = dict(tokens=at('tokens'))
  if options['types'] == 2:
    columns['types'] = at('types')
  output, hidden, maps = run(folder, columns, mask, **more)
  real = lambda x: x[:, mask]
  queries = lambda x: x.swapaxes(2, 3)[:, mask]
  np.testing.assert_allclose(real(hidden), real(at('hidden')), atol=1e-4)
  np.testing.assert_allclose(queries(maps), queries(at('maps')), atol=1e-4)
  if options['head'] == 'masked_lm':
    assert isinstance(output, base.LinearLogits)
    actual, target = output.materialise()[mask], at('logits')[mask]
  elif options['head'] == 'classification':
    actual, target = output, at('logits')
  else:
    pool = more.get('pool', 'mean')
    is_unit = more.get('normalise', True)
    target = at(pool + ('_normalised' if is_unit else ''))
    actual = output.vectors
  np.testing.assert_allclose(actual, target, atol=1e-4)


def check_images(folder, **more):
  expected = read(folder)[-1]
  logits, hidden, maps = run(folder, expected['images'], **more)
  np.testing.assert_allclose(hidden, expected['hidden'], atol=1e-4)
  np.testing.assert_allclose(maps, expected['maps'], atol=1e-4)
  np.testing.assert_allclose(logits, expected['logits'], atol=1e-4)


@pytest.mark.parametrize('side', ('left', 'right'))
@pytest.mark.parametrize('case', TEXT)
def test_text_gives_the_same(case, side):
  check_text(GOLDEN / case, side)


@pytest.mark.parametrize('more', [
    dict(pool='token'),
    dict(pool='token', normalise=False),
    dict(pool='mean', normalise=False),
    dict(scan=True),
], ids=str)
def test_vectors_of_each_pooling_are_the_same(more):
  check_text(GOLDEN / 'bert', 'left', **more)


@pytest.mark.parametrize('case', IMAGES)
def test_images_give_the_same(case):
  check_images(GOLDEN / case)


def test_images_give_the_same_in_a_loop_over_blocks():
  check_images(GOLDEN / 'deit', scan=True)


def goldens():
  """Returns the module that writes goldens, or skips the test."""
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  path = HERE / 'make_encoder_goldens.py'
  spec = importlib.util.spec_from_file_location('make_encoder_goldens', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.slow
@pytest.mark.parametrize('case', TEXT + IMAGES)
def test_other_weights_give_the_same_as_transformers(case, tmp_path):
  folder = tmp_path / case
  goldens().make(case, folder, seed=7)
  if case in IMAGES:
    check_images(folder)
  else:
    for side in ('left', 'right'):
      check_text(folder, side)


@pytest.mark.slow
@pytest.mark.parametrize('case', TEXT + IMAGES)
def test_transformers_reads_what_is_written_from_options(case, tmp_path):
  """Config and tensor names come from options, values from the golden file."""
  module = goldens()
  options, theirs, expected = read(GOLDEN / case)
  names = {
      rule.tensor.format(layer=layer)
      for rule in family(case).tensors(options, ()).rules
      for layer in range(options['depth'])
  }
  safetensors.save_file({name: theirs[name] for name in names},
                        tmp_path / 'model.safetensors', dict(format='pt'))
  config = family(case).write_config(options)
  (tmp_path / 'config.json').write_text(json.dumps(config))
  actual = module.compute(case, module.load(tmp_path))
  assert set(actual) == set(expected)
  for name, value in actual.items():
    np.testing.assert_allclose(value, expected[name], atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(
    'HAIKD_MINILM' not in os.environ,
    reason='HAIKD_MINILM names no folder of all-MiniLM-L6-v2')
@pytest.mark.parametrize('length', (24, 60))
def test_minilm_gives_the_cosines_of_its_own_code(length):
  """Rows of any length, and sentences in pairs, give the same vectors."""
  import tokenizers
  expected = json.loads((GOLDEN / 'minilm.json').read_text())
  folder = pathlib.Path(os.environ['HAIKD_MINILM'])
  values = json.loads((folder / 'config.json').read_text())
  options = bert.read_config(fields_lib.Fields('config.json', values))
  options.update(pooling.read_pooling(folder))
  params = parameters(
      'minilm', options, safetensors.load_file(folder / 'model.safetensors'))
  tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  tokenizer.no_truncation()
  tokenizer.enable_padding(length=length)
  rows = tokenizer.encode_batch(expected['sentences'])
  mask = np.array([row.attention_mask for row in rows], bool)
  assert mask.sum(1).tolist() == expected['lengths']
  tokens = np.array([row.ids for row in rows])
  # Each sentence with the first one.
  pairs = np.stack([tokens[:1].repeat(5, 0), tokens], axis=1)
  masks = np.stack([mask[:1].repeat(5, 0), mask], axis=1)
  net = hk.transform(lambda inputs, mask: registry.models['bert'].function(
      inputs, mask=mask, is_training=False, **options).vectors)
  run = jax.jit(net.apply)
  vectors = run(params, None, tokens, mask)
  paired = run(params, None, pairs, masks)
  cosines = np.array(expected['cosines'])
  np.testing.assert_allclose(vectors @ vectors.T, cosines, atol=1e-5)
  np.testing.assert_allclose(
      np.sum(paired[:, 0] * paired[:, 1], axis=-1), cosines[0], atol=1e-5)
