"""A pretrained model, if `configs/data/austen.py` has fetched it."""

import pathlib

import jax
import numpy as np
import pytest

import haikd
from haikd import config as config_lib
from haikd import interop
from haikd.core import base
from haikd.data.text import tokenizer as tokenizer_lib
from haikd.engine import mesh as mesh_lib
from haikd.network import network as network_lib

SMOLLM2 = (pathlib.Path(haikd.__file__).parent.parent / 'data' / 'smollm2' /
           'SmolLM2-135M-Instruct.Q4_1.gguf')


@pytest.mark.slow
@pytest.mark.skipif(
    not SMOLLM2.exists(), reason='python configs/data/austen.py fetches it')
@pytest.mark.parametrize('precision', ('float32', 'bfloat16'))
def test_smollm2_knows_the_capital_of_france(precision):
  init = f'gguf:{SMOLLM2}'
  described = interop.describe(init)
  config = config_lib.network()
  config.model, config.options = described.model, described.options
  config.precision = precision
  network = network_lib.build_network(
      config, title='teacher', num_classes=described.vocabulary)
  tokenizer = tokenizer_lib.load(init)
  encoded, = tokenizer.encode_batch(['The capital of France is'])
  batch = base.Batch(encoded.ids[None], np.ones((1, len(encoded.ids)), bool))
  params, state = jax.eval_shape(network.init, jax.random.key(0), batch)
  mesh = mesh_lib.build_mesh(config_lib.base().mesh)
  place = lambda tree: mesh_lib.abstract(
      tree, jax.tree.map(lambda _: mesh_lib.replicated(mesh), tree))
  params, state = interop.load(
      'init', init, base.Variables(place(params), place(state)),
      options=described.options)
  output, _ = network.apply(params, state, None, batch, is_training=False)
  best = int(np.argmax(output.logits.materialise()[0, -1]))
  assert tokenizer.decode([best]) == ' Paris'
