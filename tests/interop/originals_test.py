"""An export says what its original says, but for what the student changed.

The originals are goldens that transformers wrote.
"""

import json
import pathlib
import shutil

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import interop
from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import registry

GOLDEN = pathlib.Path(__file__).parent / 'golden'
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


def read(path):
  return json.loads(path.read_text())


def write(folder, case, files=None, drop=(), **changes):
  """Copies a network, with changed fields and other JSON files."""
  shutil.copytree(GOLDEN / case, folder)
  config = {**read(folder / 'config.json'), **changes}
  for name in drop:
    del config[name]
  for name, content in {**(files or {}), 'config.json': config}.items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
  return folder


def export(source, folder, *, changes=None, layers=None, role='original',
           tokenizer=None, **more):
  """Exports ones in the shapes of a folder's parameters.

  The folder is the student's original, its teacher, or neither.
  """
  pretrained = interop.describe(f'hf:{source}')
  options = {**interop.of_blocks(pretrained.model, pretrained.options, layers),
             **(changes or {})}
  function = registry.models[pretrained.model].function
  inputs = jnp.zeros((1, 4), jnp.int32)
  if 'image_size' in options:
    size = options['image_size']
    inputs = jnp.zeros((1, size, size, options['channels']))
  net = hk.transform(lambda x: function(x, is_training=False, **options))
  shapes = jax.eval_shape(net.init, jax.random.key(0), inputs)
  params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
  interop.export(
      folder, model=pretrained.model, options=options, params=params,
      card=lambda folder: '',
      tokenizer=tokenizer, scale=pretrained.scale,
      **{} if role is None else {role: interop.Original(
          f'hf:{source}', layers)}, **more)
  return read(folder / 'config.json')


@pytest.mark.parametrize('case', CASES)
def test_config_is_the_original_field_by_field(case, tmp_path):
  assert export(GOLDEN / case, tmp_path / 'out') == read(
      GOLDEN / case / 'config.json')


# As Llama 3.2 has them, and an older release of transformers wrote them.
OLD = dict(
    bos_token_id=5, eos_token_id=[6, 8, 9], pad_token_id=-1,
    attention_dropout=0.1, max_position_embeddings=131072, rope_theta=500000.0,
    torch_dtype='bfloat16', transformers_version='4.45.0', unsloth_fixed=True,
    rope_scaling=dict(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                      original_max_position_embeddings=8192,
                      rope_type='llama3'))
GENERATION = dict(eos_token_id=[8, 6], temperature=0.6, do_sample=True,
                  suppress_tokens=[2, 9], transformers_version='4.45.0')


def test_what_no_option_holds_is_kept(tmp_path):
  source = write(tmp_path / 'in', 'llama_llama3',
                 {'generation_config.json': GENERATION},
                 drop=('rope_parameters', 'dtype'), **OLD)
  config = export(source, tmp_path / 'out')
  # The weights of a student are float32.
  assert config == {**read(source / 'config.json'), 'torch_dtype': 'float32'}
  assert read(tmp_path / 'out' / 'generation_config.json') == GENERATION


def test_own_place_and_code_are_left_out(tmp_path):
  source = write(tmp_path / 'in', 'llama', _name_or_path='/home/me/llama',
                 auto_map=dict(AutoModel='code.Model'))
  assert export(source, tmp_path / 'out') == read(
      GOLDEN / 'llama' / 'config.json')


@pytest.mark.parametrize('case, changes, layers, expected', (
    # A narrower MLP, and two of three blocks, the second of which has a window.
    ('qwen2', dict(hidden=20), (0, 2), dict(
        intermediate_size=20, num_hidden_layers=2,
        layer_types=['full_attention', 'sliding_attention'])),
    # One of two heads: their size is no longer the width by their number.
    ('qwen2', dict(heads=2, key_value_heads=1), None, dict(
        num_attention_heads=2, num_key_value_heads=1, head_dim=4)),
    ('gpt2', dict(positions=8, dropout=0.3), None, dict(
        n_positions=8, n_ctx=8, embd_pdrop=0.3, resid_pdrop=0.3)),
    ('distilbert', dict(width=8, heads=2), None, dict(dim=8, n_heads=2)),
    ('vit', dict(mlp_ratio=1.0), None, dict(intermediate_size=16)),
))
def test_only_what_changed_is_changed(tmp_path, case, changes, layers,
                                      expected):
  config = export(GOLDEN / case, tmp_path / 'out', changes=changes,
                  layers=layers)
  assert {**config, **expected} == config
  before = read(GOLDEN / case / 'config.json')
  assert {name: x for name, x in config.items() if name not in expected} == {
      name: x for name, x in before.items() if name not in expected}
  again = interop.describe(f'hf:{tmp_path / "out"}').options
  changes.pop('dropout', None)  # It is of training, and not read.
  assert {**again, **changes} == again


def test_scaling_that_changed_is_written_once(tmp_path):
  scaling = dict(kind='linear', factor=2.0)
  config = export(GOLDEN / 'llama_llama3', tmp_path / 'out',
                  changes=dict(rope_scaling=scaling))
  assert config['rope_scaling'] == dict(rope_type='linear', factor=2.0)
  assert config['rope_theta'] == 100.0 and 'rope_parameters' not in config
  again = interop.describe(f'hf:{tmp_path / "out"}').options
  assert again['rope_scaling'] == scaling


def test_longer_rows_lengthen_the_context(tmp_path):
  assert export(GOLDEN / 'llama', tmp_path / 'out', length=64)[
      'max_position_embeddings'] == 64
  assert export(GOLDEN / 'llama', tmp_path / 'out', length=8)[
      'max_position_embeddings'] == 16


def test_names_of_classes_are_kept(tmp_path):
  names = {'0': 'no', '1': 'maybe', '2': 'yes'}
  source = write(tmp_path / 'in', 'bert_classification', id2label=names)
  config = export(source, tmp_path / 'out')
  assert config['id2label'] == names


def test_end_of_the_texts_ends_what_is_generated(tmp_path, caplog):
  files = {'generation_config.json': dict(eos_token_id=[2, 9], top_k=5)}
  source = write(tmp_path / 'in', 'llama', files, eos_token_id=2)

  def ends(name, **more):
    with caplog.at_level('INFO', 'haikd'):
      config = export(source, tmp_path / name, **more)
    generation = tmp_path / name / 'generation_config.json'
    return config['eos_token_id'], generation.exists() and read(generation).get(
        'eos_token_id')

  assert ends('same', ends=(2,)) == (2, [2, 9])
  assert not caplog.records
  assert ends('one', ends=(9,)) == ([2, 9], [2, 9])
  said, = caplog.records
  assert said.getMessage() == (
      'config.json: texts of the data end with id 9, which is added to '
      'eos_token_id, 2. config.data.options.eos chooses the token.')
  assert ends('more', ends=(4, 9)) == ([2, 4, 9], [2, 9, 4])
  # Neither a teacher nor a tokenizer says what ends a text.
  assert ends('none', role=None, ends=(4,)) == (4, False)


def test_other_files_are_kept(tmp_path):
  modules = [dict(idx=i, name=str(i), path=path, type=f'sentence_transformers.'
                  f'models.{kind}')
             for i, (kind, path) in enumerate(
                 (('Transformer', ''), ('Pooling', '1_Pooling')))]
  files = {
      'modules.json': modules,
      '1_Pooling/config.json': dict(
          word_embedding_dimension=16, pooling_mode_cls_token=True,
          include_prompt=True),
      'sentence_bert_config.json': dict(max_seq_length=8, do_lower_case=True),
      'config_sentence_transformers.json': dict(prompts=dict(query='q: ')),
  }
  source = write(tmp_path / 'in', 'bert', files)
  export(source, tmp_path / 'out')
  for name, content in files.items():
    assert read(tmp_path / 'out' / name) == content, name


def test_preprocessor_is_kept(tmp_path):
  name = 'preprocessor_config.json'
  content = dict(image_mean=[0.5] * 3, image_std=[0.25] * 3, resample=3,
                 feature_extractor_type='ViTFeatureExtractor', size=8)
  source = write(tmp_path / 'in', 'vit', {name: content})
  export(source, tmp_path / 'out')
  assert read(tmp_path / 'out' / name) == content


@pytest.fixture
def tokenizer(tmp_path):
  """A tokenizer that has other special tokens than the original."""
  folder = tmp_path / 'tokenizer'
  folder.mkdir()
  (folder / 'tokenizer.json').write_text(json.dumps(dict(
      added_tokens=[dict(id=4, content='</s>'), dict(id=3, content='<s>')])))
  (folder / 'tokenizer_config.json').write_text(
      json.dumps(dict(eos_token='</s>', bos_token='<s>')))
  return interop.TokenizerSource(folder)


def test_student_of_its_own_speaks_as_its_teacher(tmp_path, tokenizer):
  """It began as nothing, so that sizes and lengths are its own."""
  source = write(tmp_path / 'in', 'llama_llama3',
                 {'generation_config.json': GENERATION},
                 drop=('rope_parameters', 'dtype'), **OLD)
  config = export(source, tmp_path / 'out', role='teacher',
                  changes=dict(rope_scaling=None), length=4096,
                  tokenizer=tokenizer)
  assert config['eos_token_id'] == [6, 8, 9] and config['bos_token_id'] == 5
  assert config['max_position_embeddings'] == 4096
  assert 'unsloth_fixed' not in config
  assert read(tmp_path / 'out' / 'generation_config.json') == GENERATION


def test_student_of_its_own_without_a_teacher_has_its_tokenizers_ids(
    tmp_path, tokenizer):
  config = export(GOLDEN / 'llama_llama3', tmp_path / 'out', role=None,
                  tokenizer=tokenizer)
  assert config['eos_token_id'] == 4 and config['bos_token_id'] == 3
  assert config['pad_token_id'] is None
  assert not (tmp_path / 'out' / 'generation_config.json').exists()


KEPT = np.array([0, 1, 5, 6, 8, 20])  # 6 of 24 tokens.


def test_pruning_renumbers_ids(tmp_path, caplog):
  source = write(tmp_path / 'in', 'llama_llama3',
                 {'generation_config.json': GENERATION},
                 drop=('rope_parameters', 'dtype'), **OLD)
  for name, content in {
      'tokenizer.json': {}, 'merges.txt': '', 'chat_template.jinja': 'hi',
      'tokenizer_config.json': dict(added_tokens_decoder={
          '6': dict(content='</s>'), '7': dict(content='gone')}, eos='</s>'),
      'added_tokens.json': {'</s>': 6, 'gone': 7},
  }.items():
    text = content if isinstance(content, str) else json.dumps(content)
    (source / name).write_text(text)
  pruned = tmp_path / 'pruned'
  pruned.mkdir()
  (pruned / 'tokenizer.json').write_text('{"pruned": true}')
  with caplog.at_level('INFO', 'haikd'):
    config = export(
        source, tmp_path / 'out', changes=dict(num_classes=len(KEPT)),
        tokenizer=interop.TokenizerSource(pruned, source, KEPT))
  # 5, 6 and 8 have become 2, 3 and 4; 9 and 2 are gone.
  assert config['bos_token_id'] == 2 and config['eos_token_id'] == [3, 4]
  assert config['pad_token_id'] == -1 and config['vocab_size'] == 6
  out = tmp_path / 'out'
  assert read(out / 'generation_config.json') == {
      **GENERATION, 'eos_token_id': [4, 3], 'suppress_tokens': []}
  assert read(out / 'tokenizer_config.json') == dict(
      added_tokens_decoder={'3': dict(content='</s>')}, eos='</s>')
  assert read(out / 'added_tokens.json') == {'</s>': 3}
  assert read(out / 'tokenizer.json') == dict(pruned=True)
  assert (out / 'chat_template.jinja').read_text() == 'hi'
  assert not (out / 'merges.txt').exists()  # Of the larger vocabulary.
  said = [record.getMessage() for record in caplog.records]
  assert said == [
      f'{file}: {name} named tokens that pruning removed; these ids are left '
      'out.' for file, name in (
          ('config.json', 'eos_token_id'),
          ('generation_config.json', 'suppress_tokens'))]


def test_tokenizer_is_the_original_byte_by_byte(tmp_path):
  """Truncation and padding too, which the prepared one has not."""
  source, prepared = tmp_path / 'in', tmp_path / 'prepared'
  write(source, 'llama')
  prepared.mkdir()
  (prepared / 'tokenizer.json').write_text('{"padding": null}')
  contents = {
      'tokenizer.json': '{"padding": {"length": 9}}', 'merges.txt': 'a b',
      'tokenizer_config.json': '{"add_bos_token": false}', 'vocab.json': '{}',
      'special_tokens_map.json': '{"eos_token": {"content": "</s>"}}',
      'tokenizer.model': 'pieces', 'chat_template.jinja': '{{ messages }}'}
  for name, text in contents.items():
    (source / name).write_text(text)
  templates = source / 'additional_chat_templates'
  templates.mkdir()
  (templates / 'tools.jinja').write_text('{{ tools }}')
  export(source, tmp_path / 'out',
         tokenizer=interop.TokenizerSource(prepared, source))
  for name, text in contents.items():
    assert (tmp_path / 'out' / name).read_text() == text
  assert (tmp_path / 'out' / 'additional_chat_templates' / 'tools.jinja'
          ).read_text() == '{{ tools }}'


@pytest.mark.parametrize('beside', (
    {}, {'special_tokens_map.json': dict(eos_token='</s>')},
    {'special_tokens_map.json': dict(eos_token='</s>'),
     'tokenizer_config.json': dict(model_max_length=9)}))
def test_special_tokens_are_written_where_the_original_does_not_say_them(
    tmp_path, beside):
  """Of a tokenizer that is one file, the data says which they are."""
  source, prepared = tmp_path / 'in', tmp_path / 'prepared'
  definition = dict(added_tokens=[dict(id=4, content='</s>')])
  made = {'special_tokens_map.json': dict(eos_token='</s>'),
          'tokenizer_config.json': dict(eos_token='</s>')}
  for folder, contents in ((source, beside), (prepared, made)):
    folder.mkdir()
    for name, content in {'tokenizer.json': definition, **contents}.items():
      (folder / name).write_text(json.dumps(content))
  config = export(GOLDEN / 'llama', tmp_path / 'out', role=None,
                  tokenizer=interop.TokenizerSource(prepared, source))
  assert config['eos_token_id'] == 4
  for name, content in {**made, **beside}.items():
    assert read(tmp_path / 'out' / name) == content


@pytest.mark.parametrize('place', (
    'chat_template.jinja', 'chat_template.json', 'tokenizer_config.json'))
@pytest.mark.parametrize('kept', (None, KEPT), ids=('full', 'pruned'))
def test_chat_template_is_that_of_the_data(tmp_path, place, kept):
  """The original's templates go where the data has chosen another."""
  source, prepared = tmp_path / 'in', tmp_path / 'prepared'
  tools = 'additional_chat_templates/tools.jinja'
  contents = {'tokenizer.json': '{}', tools: 'tools',
              'tokenizer_config.json': '{"pad_token": "<pad>"}'}
  contents[place] = ('old' if place.endswith('.jinja') else
                     '{"chat_template": "old", "pad_token": "<pad>"}')
  for name, text in contents.items():
    (source / name).parent.mkdir(exist_ok=True, parents=True)
    (source / name).write_text(text)
  prepared.mkdir()
  (prepared / 'tokenizer.json').write_text('{}')

  def written(chosen):
    if chosen is not None:
      (prepared / 'chat_template.jinja').write_text(chosen)
    out = tmp_path / f'out-{chosen}'
    export(GOLDEN / 'llama', out,
           tokenizer=interop.TokenizerSource(prepared, source, kept))
    return {name: (out / name).read_text()
            for name in {'chat_template.jinja', *contents}
            if (out / name).exists()}

  # Unless the data chooses one, it has a file for what is in a file.
  assert written(None if place == 'tokenizer_config.json' else 'old') == (
      contents)
  new = written('new')
  assert json.loads(new.pop('tokenizer_config.json')) == dict(pad_token='<pad>')
  assert new == {'tokenizer.json': '{}', 'chat_template.jinja': 'new'}
