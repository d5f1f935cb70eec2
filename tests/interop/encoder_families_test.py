"""Tests of the configs and tensor names of encoders."""

import json
import pathlib

import numpy as np
import pytest
from safetensors import numpy as safetensors

from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.interop import pretrained_source
from haikd.interop.families import bert
from haikd.interop.families import pooling
from haikd.interop.families import vit

GOLDEN = pathlib.Path(__file__).parent / 'golden'
IMAGES = ['vit', 'vit_no_bias', 'deit', 'deit_teacher']
TEXT = [f'{kind}{head}' for kind in ('bert', 'roberta', 'distilbert', 'mpnet')
        for head in ('', '_classification', '_masked_lm')] + [
            'xlm_roberta', 'modernbert', 'modernbert_classification',
            'modernbert_masked_lm', 't5', 'mt5']


def family(case):
  model_type = config(case)['model_type']
  found, = (family for family in pretrained_source.families()
            if model_type in family.MODEL_TYPES)
  return found


def config(case, **changes):
  return json.loads((GOLDEN / case / 'config.json').read_text()) | changes


def read(case, **changes):
  fields = fields_lib.Fields('config.json', config(case, **changes))
  return family(case).read_config(fields)


def tensors(case):
  return safetensors.load_file(GOLDEN / case / 'model.safetensors')


@pytest.mark.parametrize('case, expected', [
    ('bert', dict(head='embedding', types=2, positions=12, vocabulary=40,
                  width=16, depth=2, heads=4, hidden=24, activation='gelu',
                  epsilon=1e-12)),
    ('bert_classification', dict(
        head='classification', num_classes=3, pooler_activation='tanh',
        activation='gelu_tanh')),
    ('bert_masked_lm', dict(head='masked_lm', activation='relu')),
    ('roberta', dict(position_offset=2, types=1, epsilon=1e-5)),
    ('roberta_classification', dict(num_classes=2, pooler_activation='tanh')),
    ('distilbert', dict(types=0, width=16, depth=2, heads=4, hidden=24)),
    ('distilbert_classification', dict(
        num_classes=4, pooler_activation='relu')),
    ('vit', dict(num_classes=3, image_size=8, channels=3, patch_size=4,
                 width=16, mlp_ratio=1.5, epsilon=1e-12, qkv_bias=True,
                 distilled=False, distillation_head=False)),
    ('vit_no_bias', dict(channels=1, qkv_bias=False, epsilon=1e-3)),
    ('deit', dict(distilled=True, distillation_head=False)),
    ('deit_teacher', dict(distilled=True, distillation_head=True)),
])
def test_options_are_those_of_the_config(case, expected):
  options = read(case)
  assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize('case', TEXT + IMAGES)
def test_options_written_are_read_again(case):
  options = read(case)
  written = family(case).write_config(options)
  again = family(case).read_config(fields_lib.Fields('config.json', written))
  assert again == options
  assert written['architectures'] == config(case)['architectures']


@pytest.mark.parametrize('case', TEXT + IMAGES)
def test_new_files_have_the_names_and_values_of_theirs(case):
  """All tensors of their files, except a pooler that no output depends on."""
  theirs = tensors(case)
  options = read(case)
  stored = {}
  for rule in family(case).tensors(options, ()).rules:
    # The first block of ModernBERT has no norm before attention.
    first = '{layer}.attn_norm' in rule.tensor
    for layer in range(options['depth'] if '{layer}' in rule.tensor else 1):
      if layer >= first:
        name, part = rule.tensor.format(layer=layer), rule.part
        stored.setdefault(name, {})[part.number if part else 0] = (
            rule.layout.store(rule.load(theirs[name])))
  assert set(theirs) - set(stored) <= {
      'pooler.dense.weight', 'pooler.dense.bias',
      'encoder.embed_tokens.weight'}
  for name, parts in stored.items():
    np.testing.assert_array_equal(
        np.concatenate([parts[i] for i in sorted(parts)]), theirs[name])


@pytest.mark.parametrize('prefix', ('', 'bert.', 'model.bert.'))
def test_names_are_found_behind_any_prefix(prefix):
  names = [prefix + name for name in tensors('bert')]
  rules = bert.tensors(read('bert'), names).rules
  assert {rule.tensor.format(layer=0) for rule in rules} <= set(names)


def test_names_of_old_files_are_found():
  names = [name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
      'LayerNorm.bias', 'LayerNorm.beta') for name in tensors('bert_masked_lm')]
  rules = bert.tensors(read('bert_masked_lm'), names).rules
  assert {rule.tensor.format(layer=0) for rule in rules} <= set(names)
  norms = {rule.tensor: rule.name for rule in rules if 'LayerNorm' in
           rule.tensor}
  assert norms['bert.embeddings.LayerNorm.gamma'] == 'scale'
  assert norms['bert.embeddings.LayerNorm.beta'] == 'offset'


def test_vocabulary_is_marked_where_it_can_be_pruned():
  theirs = tensors('roberta_masked_lm')
  rules = bert.tensors(read('roberta_masked_lm'), theirs).rules
  marked = {f'{rule.module}/{rule.name}': rule for rule in rules
            if 40 in theirs[rule.tensor.format(layer=0)].shape}
  assert {name: rule.vocabulary for name, rule in marked.items()} == {
      'embed/embeddings': 0, 'logits/b': 0}


def test_patches_are_read_row_by_row_with_channels_last():
  """A convolution of 2 x 2 pixels, 3 channels and 5 features, by loops."""
  kernel = np.random.default_rng(0).normal(size=(5, 3, 2, 2))
  rules = vit.tensors(dict(patch_size=2), ()).rules
  layout = rules[0].layout
  actual = layout.load(kernel)
  assert actual.shape == (12, 5)
  for row in range(2):
    for column in range(2):
      for channel in range(3):
        np.testing.assert_array_equal(
            actual[(row * 2 + column) * 3 + channel],
            kernel[:, channel, row, column])
  np.testing.assert_array_equal(layout.store(actual), kernel)


@pytest.mark.parametrize('case, changes, text', [
    ('bert', dict(architectures=['BertForQuestionAnswering']),
     r"config.json: architectures must be one of BertModel, .* got \['BertF"),
    ('bert', dict(architectures=['RobertaModel']), 'must be one of BertModel'),
    ('bert', dict(position_embedding_type='relative_key'),
     "config.json: position_embedding_type must be 'absolute'; got "
     "'relative_key', which haikd does not support"),
    ('bert', dict(is_decoder=True), 'is_decoder must be False; got True'),
    ('bert', dict(hidden_act='quick_gelu'),
     "hidden_act must be .*; got 'quick_gelu'"),
    ('bert', dict(embedding_size=8), r"got \{'embedding_size': 8\}"),
    ('bert_masked_lm', dict(tie_word_embeddings=False),
     'tie_word_embeddings must be True; got False'),
    ('roberta_masked_lm', dict(hidden_act='relu'),
     "hidden_act must be 'gelu'; got 'relu'"),
    ('roberta', dict(pad_token_id=None),
     'config.json: pad_token_id must be a whole number, .*; got None'),
    ('vit', dict(architectures=['ViTModel']),
     'must be one of ViTForImageClassification; got ViTModel, which has no '
     'logits .* Choose a network that was trained to classify'),
    ('vit', dict(architectures=None), 'got none, which has no logits'),
    ('deit', dict(architectures=['ViTForImageClassification']),
     'must be one of DeiTForImageClassification, DeiT.*WithTeacher; got ViT'),
    ('vit', dict(use_mean_pooling=True), "got {'use_mean_pooling': True}"),
])
def test_what_is_not_supported_is_refused_by_name(case, changes, text):
  with pytest.raises(checks.DataError, match=text):
    read(case, **changes)


def test_bert_of_no_architecture_gives_vectors():
  assert read('bert', architectures=None)['head'] == 'embedding'


def test_bert_trained_on_pairs_is_read_for_its_tokens():
  options = read('bert_masked_lm', architectures=['BertForPreTraining'])
  assert options['head'] == 'masked_lm'


@pytest.mark.parametrize('family, options, text', [
    (bert, dict(types=0, position_offset=2), 'options.position_offset must be '
     '0; got 2, which no network of this kind has in transformers'),
    (bert, dict(types=0, epsilon=1e-5), 'options.epsilon must be 1e-12; got'),
    (bert, dict(activation='elu'), "options.activation must be .* got 'elu'"),
    (bert, dict(head='classification', num_classes=2, pooler_activation='relu'),
     "options.pooler_activation must be 'tanh'; got 'relu'"),
    (bert, dict(head='classification', num_classes=2, pooler_activation=None),
     "options.pooler_activation must be 'tanh'; got None"),
    (bert, dict(head='classification'), 'options.num_classes must be given for '
     "head='classification'; got None. Set it in the config"),
    (bert, dict(head='masked_lm', position_offset=2, activation='relu'),
     "options.activation must be 'gelu'; got 'relu'"),
    (vit, dict(num_classes=2, image_size=8), 'options.channels must be given'),
    (vit, dict(num_classes=2, channels=1), 'options.image_size must be given '
     'for a vit; got None. Set it in the config'),
    (vit, dict(num_classes=2, channels=1, image_size=8, pool='mean'),
     "options.pool must be 'token'; got 'mean'"),
])
def test_what_cannot_be_written_is_refused(family, options, text):
  with pytest.raises(checks.ConfigError, match=text):
    family.write_config(options)


def write(folder, contents):
  for name, content in contents.items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def modules(*kinds, path='sentence_transformers.models.'):
  return [dict(idx=i, name=str(i), type=path + kind,
               path='' if i == 0 else f'{i}_{kind}')
          for i, kind in enumerate(kinds)]


@pytest.mark.parametrize('config, pool', [
    (dict(word_embedding_dimension=16, pooling_mode_cls_token=False,
          pooling_mode_mean_tokens=True, pooling_mode_max_tokens=False),
     'mean'),
    (dict(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False),
     'token'),
    (dict(embedding_dimension=16, pooling_mode='cls'), 'token'),
    (dict(embedding_dimension=16, pooling_mode=['mean']), 'mean'),
])
@pytest.mark.parametrize('normalise', (False, True))
def test_pooling_is_read(config, pool, normalise, tmp_path):
  kinds = ['Transformer', 'Pooling', 'Normalize'][:2 + normalise]
  write(tmp_path, {'modules.json': modules(*kinds),
                   '1_Pooling/config.json': config})
  assert pooling.read_pooling(tmp_path) == dict(pool=pool, normalise=normalise)


def test_folder_without_modules_has_the_mean_of_length_one(tmp_path):
  assert pooling.read_pooling(tmp_path) == dict(pool='mean', normalise=True)


@pytest.mark.parametrize('kinds, config, text', [
    (('Transformer', 'Pooling', 'Dense'), dict(pooling_mode='mean'),
     'modules.json: the modules must be Transformer, Pooling and perhaps '
     'Normalize; got Transformer, Pooling, Dense, which haikd does not'),
    (('Transformer',), {}, 'got Transformer, which haikd does not support'),
    (('Transformer', 'Pooling'), dict(pooling_mode_max_tokens=True),
     'config.json: pooling_mode must be mean or cls; got '
     'pooling_mode_max_tokens, which haikd does not support'),
    (('Transformer', 'Pooling'), dict(
        pooling_mode_cls_token=True, pooling_mode_mean_tokens=True),
     'got pooling_mode_cls_token, pooling_mode_mean_tokens, which'),
    (('Transformer', 'Pooling'), dict(pooling_mode='lasttoken'),
     'got lasttoken, which haikd does not support'),
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


@pytest.mark.parametrize('pool', ('mean', 'token'))
@pytest.mark.parametrize('normalise', (False, True))
def test_pooling_written_is_read_again(pool, normalise, tmp_path):
  options = dict(pool=pool, normalise=normalise, width=16, positions=12,
                 position_offset=2)
  contents = pooling.write_pooling(options)
  assert contents['sentence_bert_config.json']['max_seq_length'] == 10
  write(tmp_path, contents)
  assert pooling.read_pooling(tmp_path) == dict(pool=pool, normalise=normalise)


def test_no_pooling_is_written_for_logits():
  assert pooling.write_pooling(dict(head='masked_lm')) == {}
