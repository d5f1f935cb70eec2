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
from haikd.interop import pretrained_source
from haikd.interop.families import bert
from haikd.interop.families import pooling

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE / 'golden'
TEXT = [f'{kind}{head}' for kind in ('bert', 'roberta', 'distilbert', 'mpnet')
        for head in ('', '_classification', '_masked_lm')] + [
            'xlm_roberta', 'modernbert', 'modernbert_classification',
            'modernbert_masked_lm', 't5', 'mt5']
IMAGES = ['vit', 'vit_no_bias', 'deit', 'deit_teacher']
STACK = '__layer_stack_no_per_layer/block/'


@functools.cache
def family(folder):
  """Returns the family that reads a folder."""
  model_type = json.loads((folder / 'config.json').read_text())['model_type']
  found, = (family for family in pretrained_source.families()
            if model_type in family.MODEL_TYPES)
  return found


@functools.cache
def read(folder):
  """Returns options, tensors and expected values of one case."""
  values = json.loads((folder / 'config.json').read_text())
  fields = fields_lib.Fields('config.json', values)
  options = family(folder).read_config(fields)
  tensors = safetensors.load_file(folder / 'model.safetensors')
  with np.load(folder / 'expected.npz') as expected:
    return options, tensors, dict(expected)


def layers_of(rule, options):
  """Returns the blocks that have a parameter; (0,) outside of blocks."""
  if '{layer}' not in rule.tensor:
    return (0,)
  # The first block of ModernBERT has no such norm.
  return range('{layer}.attn_norm' in rule.tensor, options['depth'])


def parameters(family, options, tensors):
  """Returns parameters by their rules, and checks that all tensors are used."""
  all_rules = family.tensors(options, tensors)
  params, used = {}, set()
  for rule in all_rules.rules:
    for layer in layers_of(rule, options):
      name = rule.tensor.format(layer=layer)
      module = rule.module.replace('block', f'block_{layer}', 1)
      used.add(name)
      value = jnp.asarray(rule.load(tensors[name]))
      params.setdefault(module, {})[rule.name] = value
  left = {name for name in set(tensors) - used
          if not any(pathlib.PurePath(name).match(glob)
                     for glob in (*all_rules.ignored, *all_rules.copies))}
  assert not left
  return params


def stacked(params, alone, depth):
  """Returns the parameters of a network that scans over its blocks.

  Args:
    params: of the network that does not.
    alone: how many blocks come before the scan.
    depth: the number of all blocks.
  """
  result = {}
  for path, leaves in params.items():
    first, _, rest = path.partition('/')
    if first == f'block_{alone}':
      blocks = [params[f'block_{i}/{rest}'] for i in range(alone, depth)]
      result[STACK + rest] = jax.tree.map(lambda *xs: jnp.stack(xs), *blocks)
    elif not first.startswith('block_') or int(first[6:]) < alone:
      result[path] = leaves
  return result


def run(folder, inputs, mask=None, **more):
  """Returns the output, hidden states and attention maps."""
  options, tensors, expected = read(folder)
  options = options | more
  params = parameters(family(folder), options, tensors)
  name = family(folder).MODEL
  if options.get('scan'):
    params = stacked(params, int(name == 'modernbert'), options['depth'])
  model = registry.models[name]
  extra = {} if mask is None else dict(mask=mask)
  taps = dict(hidden=('embed', model.taps['features']),
              maps=model.taps['attention'])
  # Their last hidden state is normalised.
  is_normalised = name in ('modernbert', 't5_encoder')
  if is_normalised:
    taps['last'] = ('norm',)
  net = hk.transform(haikd.capture(
      lambda inputs: model.function(
          inputs, is_training=False, **extra, **options), taps))
  output, values = jax.jit(lambda p, x: net.apply(p, None, x))(params, inputs)
  maps = [query_key.materialise() for query_key in values['maps']]
  hidden = list(values['hidden'])
  if is_normalised:
    hidden[-1] = values['last'][-1]
  return output, np.stack(hidden), np.stack(maps)


def check_text(folder, side, **more):
  """Compares one case and side with its expected values."""
  options, _, expected = read(folder)
  at = lambda name: expected.get(f'{side}/{name}', expected.get(name))
  mask = at('mask')
  columns = dict(tokens=at('tokens'))
  if options.get('types') == 2:
    columns['types'] = at('types')
  output, hidden, maps = run(folder, columns, mask, **more)
  real = lambda x: x[:, mask]
  queries = lambda x: x.swapaxes(2, 3)[:, mask]
  np.testing.assert_allclose(real(hidden), real(at('hidden')), atol=1e-4)
  np.testing.assert_allclose(queries(maps), queries(at('maps')), atol=1e-4)
  head = options.get('head', 'embedding')
  if head == 'masked_lm':
    assert isinstance(output, base.LinearLogits)
    actual, target = output.materialise()[mask], at('logits')[mask]
  elif head == 'classification':
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


@pytest.mark.parametrize('case, more', [
    ('bert', dict(pool='token')),
    ('bert', dict(pool='token', normalise=False)),
    ('bert', dict(pool='mean', normalise=False)),
    ('mpnet', dict(scan=True)),
    ('modernbert', dict(scan=True)),
    ('t5', dict(scan=True)),
], ids=str)
def test_vectors_of_poolings_and_loops_are_the_same(case, more):
  check_text(GOLDEN / case, 'left', **more)


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
  family_of = family(GOLDEN / case)
  names = {
      rule.tensor.format(layer=layer)
      for rule in family_of.tensors(options, ()).rules
      for layer in layers_of(rule, options)
  }
  safetensors.save_file({name: theirs[name] for name in names},
                        tmp_path / 'model.safetensors', dict(format='pt'))
  # As an export has it: the default id of ModernBERT is beyond this vocabulary.
  config = {'pad_token_id': None, **family_of.write_config(options)}
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
      bert, options, safetensors.load_file(folder / 'model.safetensors'))
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
