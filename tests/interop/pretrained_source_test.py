"""Tests of what is read of pretrained weights, and what is refused."""

import json
import pathlib
import shutil

import pytest

from haikd import interop
from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import checks
from haikd.interop import pretrained_source

GOLDEN = pathlib.Path(__file__).parent / 'golden'
SCALE = dict(image_mean=[0.5, 0.25, 0], image_std=[1, 0.5, 0.25])


def copy(case, tmp_path, **changes):
  """Copies a network, changes fields of its config, and returns its folder."""
  folder = tmp_path / case
  shutil.copytree(GOLDEN / case, folder)
  config = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps({**config, **changes}))
  return folder


def test_folder_is_described(toy):
  assert interop.describe(toy.init) == interop.Pretrained(
      'toy', toy.options, toy.vocabulary, None)


@pytest.mark.parametrize('name', ('tokenizer.json', 'vocab.txt'))
def test_tokenizer_is_the_folder_that_has_one(toy, name):
  (toy.folder / name).write_text('{}')
  assert interop.describe(toy.init).tokenizer == str(toy.folder)


@pytest.mark.parametrize('init, is_it', (
    ('hf:x', True), ('gguf:x', True), ('runs/hf', False), (None, False)))
def test_init_says_whether_it_is_pretrained(init, is_it):
  assert interop.is_pretrained(init) is is_it


@pytest.mark.parametrize('init, kind, match', (
    ('runs/x', checks.ConfigError, 'hf:<folder> or gguf:<file>'),
    ('hf:gs://a/b', checks.ConfigError, 'must name local files'),
    ('hf:/nowhere', checks.DataError, 'must name a folder; got /nowhere'),
    ('gguf:/nowhere', checks.DataError, 'must name a file; got /nowhere'),
))
def test_what_is_not_there_is_refused(init, kind, match):
  with pytest.raises(kind, match=match):
    interop.describe(init)


def test_unknown_model_type_is_named_with_those_there_are(toy):
  config = dict(model_type='tory')
  (toy.folder / 'config.json').write_text(json.dumps(config))
  with pytest.raises(checks.DataError,
                     match='config.json: model_type must be .* got '
                     "'tory'. Did you mean 'toy'. Known: toy"):
    interop.describe(toy.init)


@pytest.mark.parametrize('content', ('', '[]', '{"model_type": 3}'))
def test_broken_config_is_refused(toy, content):
  (toy.folder / 'config.json').write_text(content)
  with pytest.raises(checks.DataError, match='config.json|got 3'):
    interop.describe(toy.init)


def test_unknown_field_is_refused_by_name(toy):
  toy.write(toy.tensors, alibi=True, cached=0, use_cache=True)
  with pytest.raises(checks.DataError, match="got {'alibi': True}"):
    interop.describe(toy.init)


def test_model_that_transformers_does_not_have_is_refused(toy):
  with pytest.raises(checks.ConfigError,
                     match="model must be .* got 'toi'. Did you mean 't"):
    pretrained_source.family_of('toi')


@pytest.mark.parametrize('case, field, value', (
    ('bert', 'num_attention_heads', 0),
    ('bert', 'num_hidden_layers', '2'),
    ('bert', 'num_hidden_layers', True),
    ('bert', 'hidden_size', None),
    ('bert', 'layer_norm_eps', 'small'),
    ('bert_classification', 'id2label', [3]),
    ('bert_classification', 'id2label', {'no': 'yes'}),
    ('distilbert', 'n_heads', 2.0),
    ('gpt2', 'n_embd', -8),
    ('gpt2', 'architectures', 3),
    ('llama', 'num_attention_heads', 0),
    ('llama', 'num_key_value_heads', [1, 2]),
    ('llama', 'rope_scaling', 'linear'),
    ('llama', 'rope_theta', '1e4'),
    ('qwen2', 'max_window_layers', 'all'),
    ('vit', 'architectures', 3),
    ('vit', 'architectures', [3]),
    ('vit', 'hidden_size', 0),
    ('vit', 'model_type', ['vit']),
    ('vit', 'hidden_act', []),
))
def test_broken_field_is_refused_with_the_file(tmp_path, case, field, value):
  changes = {field: value}
  if case == 'qwen2':  # The field matters only with a window.
    changes.update(use_sliding_window=True, sliding_window=4, layer_types=None)
  folder = copy(case, tmp_path, **changes)
  with pytest.raises(checks.DataError, match=str(folder)):
    interop.describe(f'hf:{folder}')


@pytest.mark.parametrize('name, content', (
    ('modules.json', [dict(path='')]),
    ('modules.json', {}),
    ('modules.json', [3]),
    ('1_Pooling/config.json', []),
    ('1_Pooling/config.json', dict(pooling_mode=3)),
))
def test_broken_pooling_is_refused_with_its_file(tmp_path, name, content):
  folder = copy('bert', tmp_path)
  modules = [dict(type='a.Transformer', path=''),
             dict(type='a.Pooling', path='1_Pooling')]
  (folder / '1_Pooling').mkdir()
  (folder / 'modules.json').write_text(json.dumps(modules))
  (folder / name).write_text(json.dumps(content))
  with pytest.raises(checks.DataError, match=str(folder)):
    interop.describe(f'hf:{folder}')


@pytest.mark.parametrize('case, labels, expected', (
    ('vit', {'2': 'owl', '0': 'crane', '1': 'crane'},
     ('crane', 'crane', 'owl')),
    ('deit', {'0': 'a', '1': 'b', '2': 'c'}, ('a', 'b', 'c')),
    ('bert_classification', {'0': 'no', '1': 'maybe', '2': 'yes'},
     ('no', 'maybe', 'yes')),
    ('vit', {'0': 'LABEL_0', '1': 'LABEL_1', '2': 'LABEL_2'}, None),
    ('vit', {'1': 'a', '2': 'b', '3': 'c'}, None),
    ('bert_classification', None, None),
    ('bert', {'0': 'no', '1': 'yes'}, None),
    ('gpt2', {'0': 'no', '1': 'yes'}, None),
))
def test_classes_are_named_in_their_order(tmp_path, case, labels, expected):
  folder = copy(case, tmp_path, id2label=labels)
  assert interop.describe(f'hf:{folder}').classes == expected


@pytest.mark.parametrize('content, expected', (
    (SCALE, ((0.5, 0.25, 0.0), (1.0, 0.5, 0.25))),
    (dict(SCALE, do_rescale=True, rescale_factor=0.00392156862745098),
     ((0.5, 0.25, 0.0), (1.0, 0.5, 0.25))),
    (dict(image_mean=0.5, image_std=0.5), ((0.5,) * 3, (0.5,) * 3)),
    (dict(SCALE, do_normalize=False), ((0.0,) * 3, (1.0,) * 3)),
    (None, None),
))
def test_scale_is_that_of_the_preprocessor(tmp_path, content, expected):
  folder = copy('vit', tmp_path)
  if content is not None:
    (folder / 'preprocessor_config.json').write_text(json.dumps(content))
  assert interop.describe(f'hf:{folder}').scale == expected


@pytest.mark.parametrize('content, match', (
    (dict(SCALE, rescale_factor=1 / 127.5),
     'preprocessor_config.json: rescale_factor must be 1/255'),
    (dict(SCALE, do_rescale=False), 'do_rescale must be True; got False'),
    (dict(SCALE, image_std=[1, 1, 0]), 'image_std must be above 0'),
    (dict(SCALE, image_mean=[1, 1]), 'image_mean must be .* 3 channels'),
    (dict(image_mean=[0, 0, 0]), 'image_std is missing; got the fields'),
    ([], 'preprocessor_config.json must hold a JSON object'),
))
def test_scale_that_is_not_supported_is_refused(tmp_path, content, match):
  folder = copy('vit', tmp_path)
  (folder / 'preprocessor_config.json').write_text(json.dumps(content))
  with pytest.raises(checks.DataError, match=match):
    interop.describe(f'hf:{folder}')


def test_texts_have_no_scale(tmp_path):
  folder = copy('bert', tmp_path)
  (folder / 'preprocessor_config.json').write_text(json.dumps(SCALE))
  assert interop.describe(f'hf:{folder}').scale is None


def test_home_is_expanded(toy, monkeypatch):
  monkeypatch.setenv('HOME', str(toy.folder.parent))
  (toy.folder / 'tokenizer.json').write_text('{}')
  pretrained = interop.describe('hf:~/toy')
  assert pretrained == interop.describe(toy.init)
  assert pretrained.tokenizer == str(toy.folder)
