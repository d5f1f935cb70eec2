"""Tests of the poolings and dense layers of sentence-transformers.

make_sentence_goldens.py wrote the expected vectors with that package.
"""

import importlib.util
import json
import pathlib
import shutil

import haiku as hk
import jax
import numpy as np
import pytest
import tokenizers

from haikd import interop
from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import base
from haikd.core import checks
from haikd.core import notes
from haikd.core import registry
from haikd.interop import exporting
from haikd.interop import tokenizer_files
from haikd.interop.families import pooling

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE / 'golden'
CASES = ('sentence_bert', 'sentence_t5')
DENSE = dict(in_features=16, out_features=8)
TANH = 'torch.nn.modules.activation.Tanh'
IDENTITY = 'torch.nn.modules.linear.Identity'


def write(folder, contents):
  for name, content in contents.items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def modules(*kinds, path='sentence_transformers.models.'):
  return [dict(idx=i, name=str(i), type=path + kind,
               path='' if i == 0 else f'{i}_{kind}')
          for i, kind in enumerate(kinds)]


def load(folder):
  """Returns the network in a folder, its options and parameters."""
  described = interop.describe(f'hf:{folder}')
  net = hk.transform(
      lambda inputs, mask: registry.models[described.model].function(
          inputs, mask=mask, is_training=False, **described.options).vectors)
  rows = np.zeros((1, 3), int)
  shapes = jax.eval_shape(
      net.init, jax.random.key(0), rows, rows == 0)
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  expected = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
  loaded = interop.load('init', f'hf:{folder}', base.Variables(expected, {}),
                        options=described.options)
  return net, described, loaded.params


def check_vectors(folder, texts, expected):
  net, _, params = load(folder)
  tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  tokenizer.no_truncation()
  tokenizer.enable_padding()
  rows = tokenizer.encode_batch(texts)
  tokens, mask = (np.array([getattr(row, name) for row in rows])
                  for name in ('ids', 'attention_mask'))
  vectors = jax.jit(net.apply)(params, None, tokens, mask.astype(bool))
  np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.mark.parametrize('case', CASES)
def test_vectors_are_those_of_sentence_transformers(case):
  content = json.loads((GOLDEN / case / 'expected.json').read_text())
  check_vectors(GOLDEN / case, content['texts'], content['vectors'])


@pytest.mark.parametrize('case', (*CASES, 'mpnet', 'modernbert'))
def test_export_has_the_same_modules_and_tensors(case, tmp_path):
  _, described, params = load(GOLDEN / case)
  exporting.export(
      tmp_path / 'out', model=described.model, options=described.options,
      params=params, tokenizer=None, card=lambda folder: '')
  _, again, exported = load(tmp_path / 'out')
  assert again.options == described.options
  jax.tree.map(np.testing.assert_array_equal, exported, params)
  for path in (GOLDEN / case).glob('*/*'):
    assert (tmp_path / 'out' / path.relative_to(GOLDEN / case)).exists() or (
        'Normalize' in path.parent.name)


def goldens():
  """Returns the module that writes goldens, or skips the test."""
  pytest.importorskip('sentence_transformers')
  path = HERE / 'make_sentence_goldens.py'
  spec = importlib.util.spec_from_file_location('make_sentence_goldens', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.slow
@pytest.mark.parametrize('mode', pooling._MODES)
@pytest.mark.parametrize('case', CASES)
def test_other_poolings_and_exports_give_the_same_vectors(case, mode, tmp_path):
  """And sentence-transformers reads what is exported."""
  module = goldens()
  module.make(case, tmp_path / 'made', seed=3, pooling=mode)
  content = json.loads((tmp_path / 'made' / 'expected.json').read_text())
  check_vectors(tmp_path / 'made', content['texts'], content['vectors'])
  _, described, params = load(tmp_path / 'made')
  exporting.export(
      tmp_path / 'out', model=described.model, options=described.options,
      params=params, card=lambda folder: '',
      tokenizer=tokenizer_files.TokenizerSource(tmp_path / 'made'))
  actual = module.encode(tmp_path / 'out', content['texts'])
  np.testing.assert_allclose(actual, content['vectors'], atol=1e-5)


@pytest.mark.parametrize('config, pool', [
    (dict(word_embedding_dimension=16, pooling_mode_cls_token=False,
          pooling_mode_mean_tokens=True, pooling_mode_max_tokens=False),
     'mean'),
    (dict(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False),
     'token'),
    (dict(pooling_mode_lasttoken=True), 'last_token'),
    (dict(pooling_mode_max_tokens=True), 'max'),
    (dict(pooling_mode_mean_sqrt_len_tokens=True), 'mean_sqrt'),
    (dict(embedding_dimension=16, pooling_mode='cls'), 'token'),
    (dict(embedding_dimension=16, pooling_mode=['mean']), 'mean'),
])
def test_pooling_is_read(config, pool, tmp_path):
  write(tmp_path, {'modules.json': modules('Transformer', 'Pooling'),
                   '1_Pooling/config.json': config})
  assert pooling.read_pooling(tmp_path) == dict(
      pool=pool, dense=(), normalise=False)


def test_folder_without_modules_has_the_mean_of_length_one(tmp_path):
  assert pooling.read_pooling(tmp_path) == dict(
      pool='mean', dense=(), normalise=True)


def test_dense_layers_and_norms_are_read_in_any_order(tmp_path):
  kinds = ('Transformer', 'Pooling', 'Normalize', 'Dense', 'Dense', 'Normalize')
  write(tmp_path, {
      'modules.json': modules(*kinds),
      '1_Pooling/config.json': dict(pooling_mode='mean'),
      '3_Dense/config.json': DENSE,
      '4_Dense/config.json': DENSE | dict(
          in_features=8, out_features=4, bias=False,
          activation_function=IDENTITY)})
  # An activation that is not given is Tanh.
  assert pooling.read_pooling(tmp_path) == dict(
      pool='mean', normalise=True, dense=(
          dict(size=8, bias=True, activation='tanh', normalise=True),
          dict(size=4, bias=False, activation=None, normalise=False)))


@pytest.mark.parametrize('kinds, config, text', [
    (('Transformer', 'Pooling', 'LSTM'), dict(pooling_mode='mean'),
     'modules.json: the modules must be Transformer, Pooling and any of Dense '
     'and Normalize; got Transformer, Pooling, LSTM, which haikd does not'),
    (('Transformer', 'Dense', 'Pooling'), {}, 'got Transformer, Dense, Pool'),
    (('Transformer',), {}, 'got Transformer, which haikd does not support'),
    (('Transformer', 'Pooling'), dict(pooling_mode_weightedmean_tokens=True),
     'config.json: pooling_mode must be one of mean, cls, .*; got '
     'pooling_mode_weightedmean_tokens, which haikd does not support'),
    (('Transformer', 'Pooling'), dict(
        pooling_mode_cls_token=True, pooling_mode_mean_tokens=True),
     'got cls, mean, which'),
    (('Transformer', 'Pooling'), {}, 'got none, which haikd does not support'),
    (('Transformer', 'Pooling'), None, 'Pooling/.* must hold JSON; got'),
])
def test_other_poolings_are_refused_by_name(kinds, config, text, tmp_path):
  contents = {'modules.json': modules(*kinds)}
  if config is not None:
    contents['1_Pooling/config.json'] = config
  write(tmp_path, contents)
  with pytest.raises(checks.DataError, match=text):
    pooling.read_pooling(tmp_path)


@pytest.mark.parametrize('name, content, text', [
    ('2_Dense/config.json', DENSE | dict(activation_function='torch.Softmax'),
     "activation_function must be one of .*; got 'torch.Softmax'"),
    ('2_Dense/config.json', DENSE | dict(module_input_name='token_embeddings'),
     "module_input_name must be 'sentence_embedding'; got 'token_emb"),
    ('3_Normalize/config.json', dict(module_input_name='token_embeddings'),
     "module_input_name must be 'sentence_embedding'; got 'token_emb"),
    ('config_sentence_transformers.json', dict(
        prompts=dict(query='query: '), default_prompt_name='query'),
     "default_prompt_name must be null, .*; got 'query'. Begin the texts with "
     "'query: '"),
])
def test_what_would_change_vectors_is_refused_by_name(
    name, content, text, tmp_path):
  kinds = ('Transformer', 'Pooling', 'Dense', 'Normalize')
  contents = {'modules.json': modules(*kinds), '2_Dense/config.json': DENSE,
              '1_Pooling/config.json': dict(pooling_mode='mean')}
  write(tmp_path, contents)
  pooling.read_pooling(tmp_path)
  write(tmp_path, {name: content})
  with pytest.raises(checks.DataError, match=text):
    pooling.read_pooling(tmp_path)


def test_what_a_folder_leaves_open_is_said(tmp_path, capsys):
  with notes.printed():
    pooling.read_pooling(tmp_path)
    write(tmp_path, {
        'modules.json': modules('Transformer', 'Pooling'),
        '1_Pooling/config.json': dict(pooling_mode='cls'),
        'sentence_bert_config.json': dict(do_lower_case=True),
        'config_sentence_transformers.json': dict(
            prompts=dict(query='find: ', document=''))})
    pooling.read_pooling(tmp_path)
  first, second, third = capsys.readouterr().err.splitlines()
  assert 'has no modules.json: the vector of a text is the mean' in first
  assert 'do_lower_case is left out, since texts go to the tokenizer' in second
  assert "no prompt is added to texts; the model has {'query': 'find: '}" in (
      third)


def test_pickled_dense_layer_is_refused(tmp_path):
  shutil.copytree(GOLDEN / 'sentence_t5', tmp_path / 'made')
  layer = tmp_path / 'made' / '2_Dense'
  (layer / 'model.safetensors').rename(layer / 'pytorch_model.bin')
  with pytest.raises(checks.DataError, match='2_Dense must hold model.safet.*'
                     'pytorch_model.bin may run any code and is not opened'):
    interop.describe(f'hf:{tmp_path / "made"}')


@pytest.mark.parametrize('pool', ('mean', 'token'))
@pytest.mark.parametrize('normalise', (False, True))
def test_pooling_written_is_read_again(pool, normalise, tmp_path):
  dense = (dict(size=3, activation='tanh', bias=False, normalise=True),)
  options = dict(pool=pool, normalise=normalise, dense=dense)
  contents = pooling.write_pooling(
      'bert', options | dict(width=16, positions=12, position_offset=2))
  assert contents['sentence_bert_config.json']['max_seq_length'] == 10
  write(tmp_path, contents)
  assert pooling.read_pooling(tmp_path) == options


def test_no_pooling_is_written_for_logits():
  assert pooling.write_pooling('bert', dict(head='masked_lm')) == {}
