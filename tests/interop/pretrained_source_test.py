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
    ('runs/x', checks.ConfigError, 'must be hf:<folder> or gguf:<file>'),
    ('hf:gs://a/b', checks.ConfigError, 'must name local files'),
    ('hf:/nowhere', checks.DataError, 'must name a folder; got /nowhere'),
    ('gguf:/nowhere', checks.DataError, 'must name a file; got /nowhere'),
))
@pytest.mark.parametrize('field', ('', 'config.teacher.init'))
def test_what_is_not_there_is_refused(init, kind, match, field):
  with pytest.raises(kind, match=f'^{field or "init"} {match}'):
    interop.describe(init, field=field)


def test_unknown_model_type_is_named_with_those_there_are(toy):
  config = dict(model_type='tory')
  (toy.folder / 'config.json').write_text(json.dumps(config))
  with pytest.raises(checks.DataError,
                     match='config.json: model_type must be .* got '
                     "'tory'. Did you mean 'toy'. Known: toy"):
    interop.describe(toy.init)


def test_pointer_of_git_lfs_is_named(toy):
  (toy.folder / 'config.json').write_text(
      'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n')
  with pytest.raises(checks.DataError, match='a pointer of Git LFS. Run `git'):
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


@pytest.mark.parametrize('case, fields', (
    # As unsloth, axolotl, TRL, NeMo, MLC, vLLM and older releases of
    # transformers leave them.
    ('llama', dict(unsloth_fixed=True, unsloth_version='2025.9.7')),
    ('llama', dict(neftune_noise_alpha=5.0, use_flash_attention_2=True,
                   _flash_attn_2_enabled=True, license='mit', source='x')),
    ('qwen2', dict(max_sequence_length=4096, model_max_length=4096,
                   tokenizer_model_max_length=2048, num_logits_to_keep=1)),
    ('mistral', dict(do_sample=True, temperature=0.7, max_length=4096)),
    ('gpt2', dict(task_specific_params={'text-generation': dict(top_k=50)})),
    ('bert', dict(classifier_dropout=0.1, gradient_checkpointing=True)),
    ('vit', dict(_commit_hash='f', base_model_name='vit')),
))
def test_fields_that_change_nothing_are_skipped(tmp_path, case, fields):
  folder = copy(case, tmp_path, **fields)
  assert interop.describe(f'hf:{folder}') == interop.describe(
      f'hf:{GOLDEN / case}')


@pytest.mark.parametrize('changes, name', (
    (dict(embedding_multiplier=12.0), 'embedding_multiplier'),
    (dict(rope_scaling=dict(rope_type='linear', factor=2.0, spread=3)),
     'rope_scaling.spread'),
))
def test_unknown_field_may_be_ignored_by_its_name(tmp_path, changes, name):
  folder = copy('llama', tmp_path, **changes)
  with pytest.raises(checks.DataError) as error:
    interop.describe(f'hf:{folder}', field='config.teacher.init')
  assert str(error.value).endswith(
      'If you know that it does not, set config.teacher.init_options.ignore='
      f"('{name}',).")
  assert interop.describe(f'hf:{folder}', ignore=(name,)).model == 'llama'


@pytest.mark.parametrize('field, content, match', (
    ('quantization_config', dict(quant_method='awq', bits=4), "got 'awq'"),
    ('quantization', dict(group_size=64, bits=4), "got {'group_size': 64"),
))
def test_quantised_weights_are_named(tmp_path, field, content, match):
  folder = copy('llama', tmp_path, **{field: content})
  with pytest.raises(checks.DataError,
                     match=f'config.json: {field} must be missing, .*{match}'):
    interop.describe(f'hf:{folder}')
  assert interop.describe(f'hf:{folder}', ignore=(field,))


ADAPTER = 'adapter_config.json'


def test_adapter_alone_is_named(tmp_path):
  (tmp_path / ADAPTER).write_text('{"base_model_name_or_path": "Qwen/Qwen3"}')
  (tmp_path / 'adapter_model.safetensors').write_bytes(b'')
  with pytest.raises(checks.DataError, match=(
      r'^config.teacher.init must name a complete model; got .*, which holds '
      r'an adapter \(adapter_config.json\) of Qwen/Qwen3. Merge it '
      r'.*merge_and_unload\(\)')):
    interop.describe(f'hf:{tmp_path}', field='config.teacher.init')


def test_adapter_beside_weights_is_refused(tmp_path):
  """transformers would read the adapter and its base, and not the weights."""
  folder = copy('llama', tmp_path)
  (folder / ADAPTER).write_text('{}')
  assert interop.describe(f'hf:{folder}').model == 'llama'
  (folder / 'adapter_model.safetensors').write_bytes(b'')
  with pytest.raises(checks.DataError, match=(
      '^config.teacher.init must name one model; got .*, which holds weights '
      'and an adapter')):
    interop.describe(f'hf:{folder}', field='config.teacher.init')


def test_name_on_the_hub_is_told_how_to_be_fetched():
  with pytest.raises(checks.DataError, match=(
      'run `hf download Qwen/Qwen2.5-0.5B --local-dir Qwen2.5-0.5B`, and set '
      'it to hf:Qwen2.5-0.5B.')):
    interop.describe('hf:Qwen/Qwen2.5-0.5B')


def test_folder_above_is_told_the_one_inside():
  with pytest.raises(checks.DataError, match=(
      '^config.teacher.init must name a folder with config.json; got '
      f'{GOLDEN}. Did you mean {GOLDEN}/bert?')):
    interop.describe(f'hf:{GOLDEN}', field='config.teacher.init')


def test_file_is_told_its_folder():
  with pytest.raises(checks.DataError, match=f'it is in, {GOLDEN}/llama.'):
    interop.describe(f'hf:{GOLDEN}/llama/config.json')


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
    ('llama', 'rope_scaling', dict(type='linear', factor='2')),
    ('llama', 'rope_scaling', dict(
        type='longrope', short_factor=[1, '1'], long_factor=[2, 2])),
    ('roberta', 'pad_token_id', True),
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
