"""Tests of the configs and tensor names of encoders."""

import json
import pathlib

import numpy as np
import pytest
from safetensors import numpy as safetensors

from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.interop import options as options_lib
from haikd.interop import pretrained_source
from haikd.interop.families import bert
from haikd.interop.families import modernbert
from haikd.interop.families import t5_encoder
from haikd.interop.families import vit

GOLDEN = pathlib.Path(__file__).parent / 'golden'
IMAGES = ['vit', 'vit_no_bias', 'deit', 'deit_teacher']
TEXT = [f'{kind}{head}' for kind in ('bert', 'roberta', 'distilbert', 'mpnet')
        for head in ('', '_classification', '_masked_lm')] + [
            'xlm_roberta', 'modernbert', 'modernbert_classification',
            'modernbert_masked_lm', 't5', 'mt5']

# Options cannot tell these from their older relatives.
SAME = dict(xlm_roberta=['RobertaModel'], mt5=['T5EncoderModel'])


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
    ('xlm_roberta', dict(position_offset=2, types=1, relative_buckets=0)),
    ('mpnet', dict(position_offset=2, types=0, relative_buckets=32)),
    ('mpnet_classification', dict(num_classes=2, pooler_activation='tanh')),
    ('modernbert', dict(window=2, window_layers=(1,), rope_base=160000.0,
                        window_rope_base=10000.0, hidden=24, depth=3)),
    ('modernbert_classification', dict(
        num_classes=3, pool='mean', transform_bias=True)),
    ('modernbert_masked_lm', dict(
        norm_offset=True, attention_bias=True, mlp_bias=True,
        logits_bias=True)),
    ('t5', dict(head_size=6, gated=False, activation='relu',
                relative_buckets=8, max_distance=6)),
    ('mt5', dict(gated=True, activation='gelu_tanh')),
    ('vit', dict(num_classes=3, image_size=8, channels=3, patch_size=4,
                 width=16, mlp_ratio=1.5, epsilon=1e-12, qkv_bias=True,
                 distilled=False, distillation_head=False)),
    ('vit_no_bias', dict(channels=1, qkv_bias=False, epsilon=1e-3)),
    ('deit', dict(distilled=True, distillation_head=False)),
    ('deit_teacher', dict(distilled=True, distillation_head=True)),
])
def test_options_are_those_of_the_config(case, expected):
  options = {**options_lib.complete(family(case).MODEL, {}), **read(case)}
  assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize('case', TEXT + IMAGES)
def test_options_written_are_read_again(case):
  options = read(case)
  written = family(case).write_config(options)
  again = family(case).read_config(fields_lib.Fields('config.json', written))
  assert again == options
  assert written['architectures'] == SAME.get(
      case, config(case)['architectures'])


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
    ('mpnet', dict(relative_attention_num_buckets=16),
     'relative_attention_num_buckets must be 32; got 16'),
    ('modernbert', dict(layer_types=['full_attention']),
     'layer_types must give full_attention or sliding_attention for each of 3'),
    ('modernbert', dict(rope_parameters=dict(full_attention=dict(
        rope_type='yarn', rope_theta=1e4))),
     "full_attention.rope_type must be 'default'; got 'yarn'"),
    ('t5', dict(architectures=['T5ForConditionalGeneration']),
     'must be one of T5EncoderModel; got'),
    ('t5', dict(feed_forward_proj='gated-tanh'),
     "feed_forward_proj must be 'relu' or .*; got 'gated-tanh'"),
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


def test_modernbert_of_version_4_is_read():
  """The fields of answerdotai/ModernBERT-base, but for its sizes."""
  changes = dict(
      layer_types=None, rope_parameters=None, global_attn_every_n_layers=2,
      global_rope_theta=80000.0, local_rope_theta=5000.0, layer_norm_eps=1e-5,
      position_embedding_type='absolute', local_attention=128,
      classifier_pooling='mean', deterministic_flash_attn=False)
  options = read('modernbert', **changes)
  assert options['window_layers'] == (1,) and options['window'] == 65
  assert options['rope_base'] == 80000.0
  assert options['window_rope_base'] == 5000.0
  assert modernbert.write_config(options)['global_attn_every_n_layers'] == 2


def test_blocks_with_windows_in_no_order_are_written_for_version_5_alone():
  written = modernbert.write_config(dict(depth=4, window_layers=(0, 3)))
  assert 'global_attn_every_n_layers' not in written
  assert [kind[:4] for kind in written['layer_types']] == [
      'slid', 'full', 'full', 'slid']


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
    (bert, dict(relative_buckets=32, types=0),
     'options.position_offset must be 2; got 0'),
    (modernbert, dict(head='classification', num_classes=2, pool='max'),
     "options.pool must be 'token' or 'mean'; got 'max'"),
    (modernbert, dict(head='classification'), 'num_classes must be given'),
    (t5_encoder, dict(gated=True, activation='gelu'),
     "options.gated and options.activation must be .*; got .True, 'gelu'"),
    (vit, dict(num_classes=2, image_size=8), 'options.channels must be given'),
    (vit, dict(num_classes=2, channels=1), 'options.image_size must be given '
     'for a vit; got None. Set it in the config'),
    (vit, dict(num_classes=2, channels=1, image_size=8, pool='mean'),
     "options.pool must be 'token'; got 'mean'"),
])
def test_what_cannot_be_written_is_refused(family, options, text):
  with pytest.raises(checks.ConfigError, match=text):
    family.write_config(options)
