"""Tensors of each family are the same after they are loaded and exported.

The parity tests compare what a network computes with them.
"""

import inspect
import json
import pathlib

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from haikd import interop
from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.interop import pretrained_source

GOLDEN = pathlib.Path(__file__).parent / 'golden'
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
FILE = 'model.safetensors'


def expect(model, options, **changes):
  """Returns an abstract network, made by Haiku."""
  options = {**options, **changes}
  function = registry.models[model].function
  if model == 'vit':
    size = options['image_size']
    inputs = jnp.zeros((1, size, size, options['channels']))
  else:
    inputs = jnp.zeros((1, 4), jnp.int32)
  net = hk.transform(lambda x: function(x, is_training=False, **options))
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.eval_shape(net.init, jax.random.key(0), inputs)
  return base.Variables(jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      shapes), {})


def load(init, **changes):
  pretrained = interop.describe(init)
  expected = expect(pretrained.model, pretrained.options, **changes)
  network = interop.load('config.teacher.init', init, expected,
                         options={**pretrained.options, **changes})
  return pretrained, network.params


@pytest.mark.parametrize('case', CASES)
def test_parameters_are_as_the_rules_say(case):
  init = f'hf:{GOLDEN / case}'
  pretrained, params = load(init, scan=False)
  reader = pretrained_source.open_source(init).reader
  family = pretrained_source.family_of(pretrained.model)
  rules = family.tensors(pretrained.options, reader.shapes).rules
  compared = 0
  for rule in rules:
    layers = range(pretrained.options['depth'] if '{layer}' in rule.tensor
                   else 1)
    if pretrained.model == 'modernbert' and rule.module == 'block/norm_attn':
      layers = layers[1:]  # Its first block has none.
    for layer in layers:
      module = rule.module.replace('block', f'block_{layer}', 1)
      tensor = reader.read(rule.tensor_of(layer), np.float32)
      np.testing.assert_array_equal(
          params[module][rule.name], rule.load(tensor))
      compared += 1
  assert compared == len(jax.tree.leaves(params))


@pytest.mark.parametrize('scan', (False, True))
@pytest.mark.parametrize('case', CASES)
def test_exported_and_loaded_again_nothing_has_changed(case, scan, tmp_path):
  pretrained, params = load(f'hf:{GOLDEN / case}', scan=scan)
  folder = tmp_path / 'out'
  interop.export(folder, model=pretrained.model,
                 options={**pretrained.options, 'scan': scan}, params=params,
                 tokenizer=None, card=lambda folder: '')
  again, same = load(f'hf:{folder}', scan=scan)
  # It is exported without its tokenizer.
  assert again == pretrained._replace(tokenizer=None)
  jax.tree.map(np.testing.assert_array_equal, params, same)
  before = safetensors.load_file(GOLDEN / case / FILE)
  after = safetensors.load_file(folder / FILE)
  assert set(after) <= set(before)
  for name, values in after.items():
    np.testing.assert_array_equal(values, before[name], err_msg=name)


@pytest.mark.parametrize('case', CASES)
def test_half_of_the_blocks_is_a_network_too(case, tmp_path):
  init = f'hf:{GOLDEN / case}'
  pretrained = interop.describe(init)
  last = pretrained.options['depth'] - 1
  # The first block of ModernBERT has no norm before attention.
  layers = (0, last) if pretrained.model == 'modernbert' else (last,)
  options = dict(
      interop.of_blocks(pretrained.model, pretrained.options, layers),
      scan=False)
  network = interop.load(
      'config.student.init', init, expect(pretrained.model, options),
      options=options, layers=layers)
  _, params = load(init, scan=False)
  block = len(layers) - 1
  np.testing.assert_array_equal(
      network.params[f'block_{block}/attn/query']['w'],
      params[f'block_{last}/attn/query']['w'])


@pytest.mark.parametrize('case', CASES)
def test_unknown_field_is_refused_by_name(case, tmp_path):
  config = json.loads((GOLDEN / case / 'config.json').read_text())
  config['logit_softcap'] = 30.0
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(checks.DataError, match="{'logit_softcap': 30.0}"):
    interop.describe(f'hf:{tmp_path}')


@pytest.mark.parametrize('model', ('bert', 'gpt2', 'llama', 'vit'))
def test_options_are_those_of_the_model(model):
  cases = [c for c in CASES if interop.describe(f'hf:{GOLDEN / c}').model ==
           model]
  taken = set(inspect.signature(registry.models[model].function).parameters)
  assert cases
  for case in cases:
    assert set(interop.describe(f'hf:{GOLDEN / case}').options) <= taken
