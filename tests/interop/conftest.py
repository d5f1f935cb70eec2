"""A minimal family of networks, and weights for it."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from haikd.core import base
from haikd.interop import pretrained_source
from haikd.interop import rules

WIDTH, HEADS, HIDDEN, DEPTH, VOCABULARY = 16, 4, 24, 4, 12

OPTIONS = dict(width=WIDTH, heads=HEADS, head_size=WIDTH // HEADS,
               hidden=HIDDEN, depth=DEPTH, tied=True)


def read_config(fields):
  fields.ignore(('vocab_size',))
  return {name: fields.take(name) for name in OPTIONS}


def write_config(options):
  return dict({name: options[name] for name in OPTIONS}, model_type='toy',
              architectures=['Toy'])


def tensors(options, names):
  del names
  network_rules = [
      rules.Rule('embed', 'embeddings', 'embed.weight', vocabulary=0),
      *rules.norm('norm', 'norm', offset=False),
      *rules.linear('block/mlp/up', 'h.{layer}.up'),
      *rules.linear('block/attn/output', 'h.{layer}.output', bias=False),
  ]
  for index, name in enumerate(('query', 'key', 'value')):
    network_rules.append(
        rules.Rule(f'block/attn/{name}', 'w', 'h.{layer}.qkv.weight',
                   rules.TRANSPOSED, rules.TensorPart(0, index, 3)))
  if not options['tied']:
    network_rules.append(
        rules.Rule('logits', 'w', 'head.weight', rules.TRANSPOSED,
                   vocabulary=1))
  return rules.Tensors(tuple(network_rules), ignored=('*.buffer',))


FAMILY = types.SimpleNamespace(
    MODEL='toy', MODEL_TYPES=('toy',), LENGTH=None, read_config=read_config,
    write_config=write_config, tensors=tensors)


def make_tensors(tied=True, seed=0):
  """Returns the tensors that PyTorch would save, `[out, in]`."""
  rng = np.random.RandomState(seed)
  rand = lambda *shape: rng.randn(*shape).astype(np.float32)
  made = {'embed.weight': rand(VOCABULARY, WIDTH), 'norm.weight': rand(WIDTH)}
  for i in range(DEPTH):
    made[f'h.{i}.qkv.weight'] = rand(3 * WIDTH, WIDTH)
    made[f'h.{i}.output.weight'] = rand(WIDTH, WIDTH)
    made[f'h.{i}.up.weight'] = rand(HIDDEN, WIDTH)
    made[f'h.{i}.up.bias'] = rand(HIDDEN)
    made[f'h.{i}.buffer'] = np.arange(3)
  if not tied:
    made['head.weight'] = rand(VOCABULARY, WIDTH)
  return made


def shapes(*, vocabulary=VOCABULARY, stacked=False, **options):
  """Returns the shapes of a network's parameters."""
  options = dict(OPTIONS, **options)
  width, hidden, depth = (options[x] for x in ('width', 'hidden', 'depth'))
  features = options['heads'] * options['head_size']
  block = {
      'attn/query': dict(w=(width, features)),
      'attn/key': dict(w=(width, features)),
      'attn/value': dict(w=(width, features)),
      'attn/output': dict(w=(features, width)),
      'mlp/up': dict(w=(width, hidden), b=(hidden,)),
  }
  params = dict(
      embed=dict(embeddings=(vocabulary, width)), norm=dict(scale=(width,)))
  if not options['tied']:
    params['logits'] = dict(w=(width, vocabulary))
  for module, parameters in block.items():
    if stacked:
      params[f'__layer_stack_no_per_layer/block/{module}'] = {
          name: (depth, *shape) for name, shape in parameters.items()}
    else:
      params.update({f'block_{i}/{module}': parameters for i in range(depth)})
  return params


def expect(dtype=np.float32, place=None, **options):
  """Returns an abstract network; `place` maps a shape to its sharding."""
  single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  place = place or (lambda shape: single)
  params = jax.tree.map(
      lambda shape: jax.ShapeDtypeStruct(
          shape, jnp.dtype(dtype), sharding=place(shape)),
      shapes(**options), is_leaf=lambda x: isinstance(x, tuple))
  return base.Variables(params, {})


@pytest.fixture
def toy(monkeypatch, tmp_path):
  """The toy family, and a folder with weights of it."""
  monkeypatch.setattr(pretrained_source, 'families', lambda: [FAMILY])
  folder = tmp_path / 'toy'

  def write(tensors, **fields):
    folder.mkdir(exist_ok=True)
    safetensors.save_file(tensors, folder / 'model.safetensors')
    config = dict(OPTIONS, model_type='toy', **fields)
    (folder / 'config.json').write_text(json.dumps(config))

  made = make_tensors()
  write(made)
  return types.SimpleNamespace(
      folder=folder, init=f'hf:{folder}', tensors=made, write=write,
      options=dict(OPTIONS), expect=expect, make_tensors=make_tensors,
      vocabulary=VOCABULARY, family=FAMILY)
