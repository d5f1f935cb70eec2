"""Tensors beside those of a network; the weights are goldens of transformers.
"""

import json
import pathlib
import shutil

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

GOLDEN = pathlib.Path(__file__).parent / 'golden'
FIELD = 'config.teacher.init'


def write(folder, case, tensors, **changes):
  """Copies a network, with further tensors and changed fields."""
  shutil.copytree(GOLDEN / case, folder)
  path = folder / 'model.safetensors'
  safetensors.save_file({**safetensors.load_file(path), **tensors}, path)
  config = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps({**config, **changes}))
  return f'hf:{folder}'


def load(init, ignore=(), **changes):
  """Returns the parameters of a network of these weights."""
  pretrained = interop.describe(init, ignore=ignore)
  options = {**pretrained.options, **changes}
  function = registry.models[pretrained.model].function
  net = hk.transform(lambda x: function(x, is_training=False, **options))
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((1, 4), int))
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  expected = base.Variables(jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      shapes), {})
  return interop.load(FIELD, init, expected, options=options,
                      ignore=ignore).params


def tensor(case, name):
  return safetensors.load_file(GOLDEN / case / 'model.safetensors')[name]


TABLE, HEAD = 'model.embed_tokens.weight', 'lm_head.weight'


def test_table_may_be_held_twice(tmp_path, caplog):
  init = write(tmp_path / 'x', 'smollm2', {HEAD: tensor('smollm2', TABLE)})
  with caplog.at_level('INFO', 'haikd'):
    params = load(init)
  assert 'logits' not in params and not caplog.records


def test_head_that_contradicts_the_config_is_refused(tmp_path):
  """transformers 5 uses the head, earlier releases used the table."""
  head = tensor('smollm2', TABLE) + np.float32([0] * 17 + [1e-6])
  init = write(tmp_path / 'x', 'smollm2', {HEAD: head})
  with pytest.raises(checks.DataError, match=(
      f'{HEAD} must be equal to {TABLE}, since .* Set '
      'config.teacher.options.tied=False to use both, .* or '
      rf"config.teacher.init_options.ignore=\('{HEAD}',\)")):
    load(init)
  np.testing.assert_array_equal(load(init, tied=False)['logits']['w'], head.T)
  assert 'logits' not in load(init, ignore=(HEAD,))


def test_head_that_is_missing_may_be_tied(tmp_path):
  init = write(tmp_path / 'x', 'smollm2', {}, tie_word_embeddings=False)
  with pytest.raises(checks.DataError, match=(
      f'with no {HEAD}. Nothing was loaded. If its embeddings are tied, set '
      'config.teacher.options.tied=True')):
    load(init)
  assert 'logits' not in load(init, tied=True)


@pytest.mark.parametrize('case, copy, original', (
    ('bert_masked_lm', 'cls.predictions.decoder.weight',
     'bert.embeddings.word_embeddings.weight'),
    ('bert_masked_lm', 'cls.predictions.decoder.bias', 'cls.predictions.bias'),
    ('roberta_masked_lm', 'lm_head.decoder.bias', 'lm_head.bias'),
    ('distilbert_masked_lm', 'vocab_projector.weight',
     'distilbert.embeddings.word_embeddings.weight'),
))
def test_copies_of_encoders_are_compared(tmp_path, case, copy, original):
  values = tensor(case, original)
  load(write(tmp_path / 'same', case, {copy: values}))
  init = write(tmp_path / 'other', case, {copy: values[::-1].copy()})
  match = f'{copy} must be equal to {original}'
  with pytest.raises(checks.DataError, match=match):
    load(init)
  load(init, ignore=(copy,))


RATES = 100.0**-np.array([0, 0.25, 0.5, 0.75], np.float32)  # Of 8 features.


@pytest.mark.parametrize('case, name, right, wrong', (
    ('llama_llama3', 'model.layers.0.self_attn.rotary_emb.inv_freq', RATES,
     None),
    ('llama_linear', 'model.layers.1.self_attn.rotary_emb.inv_freq',
     RATES[::2].copy(), RATES[::2]**2),
    ('bert', 'embeddings.position_ids', np.arange(12)[None],
     np.arange(1, 13)[None]),
    ('gpt2', 'transformer.h.0.attn.bias',
     np.tri(12, dtype=np.uint8)[None, None],
     np.ones((1, 1, 12, 12), np.uint8)),
    ('gpt2', 'transformer.h.0.attn.masked_bias', np.full((), -1e4),
     np.zeros(())),
))
def test_buffers_hold_what_the_config_says(tmp_path, case, name, right, wrong):
  load(write(tmp_path / 'right', case, {name: right}))
  if wrong is None:  # It depends on more than is compared.
    return
  init = write(tmp_path / 'wrong', case, {name: wrong})
  with pytest.raises(checks.DataError, match=f'{name} must hold what follows'):
    load(init)
  load(init, ignore=(name,))


def test_heads_that_are_not_used_are_named(tmp_path, caplog):
  init = write(tmp_path / 'x', 'bert', {})
  with caplog.at_level('INFO', 'haikd'):
    load(init)
  said = {record.getMessage() for record in caplog.records}
  assert {message for message in said if 'modules.json' not in message} == {
      f'{init}: pooler.dense.* are not used.'}
