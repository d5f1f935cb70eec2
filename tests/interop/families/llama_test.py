"""Tests of the family llama."""

import math

import numpy as np
import pytest

from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.interop.families import llama

# As in the config.json of Llama 3.2, Mistral 7B v0.1, Qwen2.5 and Qwen3, with
# smaller sizes.
LLAMA = dict(
    architectures=['LlamaForCausalLM'], attention_bias=False,
    attention_dropout=0.0, bos_token_id=128000, eos_token_id=128001,
    head_dim=64, hidden_act='silu', hidden_size=2048, initializer_range=0.02,
    intermediate_size=8192, max_position_embeddings=131072, mlp_bias=False,
    model_type='llama', num_attention_heads=32, num_hidden_layers=16,
    num_key_value_heads=8, pretraining_tp=1, rms_norm_eps=1e-05,
    rope_scaling=dict(factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0,
                      original_max_position_embeddings=8192,
                      rope_type='llama3'),
    rope_theta=500000.0, tie_word_embeddings=True, torch_dtype='bfloat16',
    transformers_version='4.45.0.dev0', use_cache=True, vocab_size=128256)
MISTRAL = dict(
    architectures=['MistralForCausalLM'], bos_token_id=1, eos_token_id=2,
    hidden_act='silu', hidden_size=64, initializer_range=0.02,
    intermediate_size=96, max_position_embeddings=32768, model_type='mistral',
    num_attention_heads=8, num_hidden_layers=4, num_key_value_heads=2,
    rms_norm_eps=1e-05, rope_theta=10000.0, sliding_window=4096,
    tie_word_embeddings=False, torch_dtype='bfloat16',
    transformers_version='4.34.0.dev0', use_cache=True, vocab_size=32000)
QWEN2 = dict(
    architectures=['Qwen2ForCausalLM'], attention_dropout=0.0,
    hidden_act='silu', hidden_size=64, intermediate_size=96,
    max_position_embeddings=32768,
    max_window_layers=2, model_type='qwen2', num_attention_heads=8,
    num_hidden_layers=4, num_key_value_heads=2, rms_norm_eps=1e-06,
    rope_theta=1000000.0, sliding_window=32768, tie_word_embeddings=True,
    use_cache=True, use_sliding_window=False, vocab_size=151936)
QWEN3 = QWEN2 | dict(
    architectures=['Qwen3ForCausalLM'], attention_bias=False, head_dim=128,
    model_type='qwen3', rope_scaling=None, sliding_window=None)
CONFIGS = dict(llama=LLAMA, mistral=MISTRAL, qwen2=QWEN2, qwen3=QWEN3)

SMALL = dict(num_classes=11, width=12, depth=3, heads=2, key_value_heads=1,
             head_size=4, hidden=10)


def read(values, **more):
  return llama.read_config(fields_lib.Fields('config.json', values | more))


def scaling(**fields):
  """Returns the scaling that fields give, both old and new ones."""
  old = read(LLAMA, max_position_embeddings=64, rope_scaling=fields)
  values = dict(LLAMA)
  del values['rope_theta'], values['rope_scaling']
  new = read(values, max_position_embeddings=64, rope_parameters=dict(
      rope_theta=500000.0, **fields))
  assert old == new and old['rope_base'] == 500000.0
  return old['rope_scaling']


def test_a_config_of_llama_3_is_read():
  assert read(LLAMA) == dict(
      num_classes=128256, width=2048, depth=16, heads=32, key_value_heads=8,
      head_size=64, hidden=8192, activation='silu', epsilon=1e-5, tied=True,
      qk_norm=False, qkv_bias=False, output_bias=False, mlp_bias=False,
      rope_base=500000.0, rope_scaling=dict(
          kind='llama3', factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
          original_length=8192))


@pytest.mark.parametrize('kind, expected', [
    ('mistral', dict(window=4096, qkv_bias=False, qk_norm=False, head_size=8,
                     tied=False)),
    ('qwen2', dict(qkv_bias=True, output_bias=False, qk_norm=False, head_size=8,
                   rope_base=1e6)),
    ('qwen3', dict(qkv_bias=False, output_bias=False, qk_norm=True,
                   head_size=128)),
])
def test_configs_of_others_are_read(kind, expected):
  actual = read(CONFIGS[kind])
  assert {name: actual[name] for name in expected} == expected
  assert actual['rope_scaling'] is None
  assert ('window' in actual) == (kind == 'mistral')


@pytest.mark.parametrize('kind, more, expected', [
    ('llama', dict(attention_bias=True, mlp_bias=True),
     dict(qkv_bias=True, output_bias=True, mlp_bias=True)),
    # As in the config of SmolLM2.
    ('llama', dict(is_llama_config=True, rope_interleaved=False), dict()),
    ('llama', dict(num_key_value_heads=None, head_dim=None),
     dict(key_value_heads=32, head_size=64)),
    ('llama', dict(hidden_act='gelu_pytorch_tanh'),
     dict(activation='gelu_tanh')),
    ('mistral', dict(sliding_window=None), dict(window=None)),
    ('mistral', dict(head_dim=16), dict(head_size=16)),
    ('qwen2', dict(use_sliding_window=True),
     dict(window=32768, window_layers=(2, 3))),
    ('qwen2', dict(use_sliding_window=True, max_window_layers=0),
     dict(window=32768, window_layers=None)),
    ('qwen2', dict(use_sliding_window=True, sliding_window=8, layer_types=[
        'sliding_attention', 'full_attention'] * 2),
     dict(window=8, window_layers=(0, 2))),
    ('qwen3', dict(attention_bias=True), dict(qkv_bias=True, output_bias=True)),
])
def test_fields_that_differ_are_read(kind, more, expected):
  actual = read(CONFIGS[kind], **more)
  assert {name: actual[name] for name in expected} == expected


@pytest.mark.parametrize('kind, field, option, default', [
    ('llama', 'tie_word_embeddings', 'tied', False),
    ('llama', 'rms_norm_eps', 'epsilon', 1e-6),
    ('llama', 'num_key_value_heads', 'key_value_heads', 32),
    ('mistral', 'sliding_window', 'window', 4096),
    ('mistral', 'rope_theta', 'rope_base', 10000.0),
    ('qwen3', 'head_dim', 'head_size', 128),
])
def test_what_is_left_out_is_as_transformers_has_it(kind, field, option,
                                                    default):
  values = dict(CONFIGS[kind])
  del values[field]
  assert read(values)[option] == default


@pytest.mark.parametrize('fields, expected', [
    (dict(rope_type='default'), None),
    (dict(type='linear', factor=2.0), dict(kind='linear', factor=2.0)),
    # The final training length, which this kind extends.
    (dict(rope_type='dynamic', factor=2.0),
     dict(kind='dynamic', factor=2.0, original_length=64)),
    (dict(rope_type='yarn', factor=4.0, original_max_position_embeddings=16,
          beta_fast=32, truncate=False),
     dict(kind='yarn', factor=4.0, original_length=16, beta_fast=32,
          truncate=False)),
    # The factor is 64 / 16.
    (dict(type='yarn', original_max_position_embeddings=16),
     dict(kind='yarn', factor=4.0, original_length=16)),
    (dict(rope_type='yarn', factor=math.e, original_max_position_embeddings=16,
          mscale=2.0, mscale_all_dim=1.0),
     dict(kind='yarn', factor=math.e, original_length=16,
          attention_factor=1.2 / 1.1)),
    (dict(rope_type='longrope', short_factor=[1.0], long_factor=[2.0],
          original_max_position_embeddings=16),
     dict(kind='longrope', factor=4.0, original_length=16, short_factor=(1.0,),
          long_factor=(2.0,))),
    (dict(rope_type='llama3', factor=2.0, low_freq_factor=1,
          high_freq_factor=4),
     dict(kind='llama3', factor=2.0, low_freq_factor=1, high_freq_factor=4,
          original_length=64)),
])
def test_scalings_are_read_where_they_stand(fields, expected):
  actual = scaling(**fields)
  if expected and 'attention_factor' in expected:
    expected['attention_factor'] = pytest.approx(expected['attention_factor'])
  assert actual == expected


@pytest.mark.parametrize('kind, more, text', [
    ('llama', dict(architectures=['LlamaForSequenceClassification']),
     'config.json: architectures must be one of LlamaForCausalLM, LlamaModel;'
     r" got \['LlamaForSequenceClassification'\]"),
    ('llama', dict(hidden_act='glu'), "hidden_act must be .* got 'glu'"),
    ('llama', dict(partial_rotary_factor=0.5),
     'config.json: partial_rotary_factor must be 1.0; got 0.5'),
    ('llama', dict(rope_interleaved=True),
     'rope_interleaved must be False; got True'),
    ('llama', dict(logit_scale=2.0),
     "config.json: all fields must be known .* got {'logit_scale': 2.0}"),
    ('llama', dict(sliding_window=4), "got {'sliding_window': 4}"),
    ('llama', dict(rope_scaling=dict(rope_type='ntk', factor=2.0)),
     "config.json: rope_scaling.rope_type must be one of linear, .* got 'ntk'"),
    ('llama', dict(rope_scaling=dict(type='ntk')),
     'config.json: rope_scaling.type must be one of'),
    ('llama', dict(rope_scaling=None, rope_parameters=dict(rope_type='ntk')),
     'config.json: rope_parameters.rope_type must be one of'),
    ('llama', dict(rope_scaling=dict(rope_type='linear')),
     'config.json: rope_scaling.factor is missing'),
    ('llama', dict(rope_scaling=dict(rope_type='linear', factor=2.0, mscale=3)),
     "got {'rope_scaling.mscale': 3}"),
    ('qwen2', dict(layer_types=['sliding_attention'] * 4),
     'config.json: layer_types must be .* full_attention for all without a w'),
    ('qwen2', dict(layer_types=['full_attention'] * 3), 'layer_types must'),
    ('qwen2', dict(layer_types=['linear_attention'] * 4), 'layer_types must'),
    ('mistral', dict(layer_types=['full_attention'] * 4), 'layer_types must'),
])
def test_what_is_not_supported_is_refused(kind, more, text):
  with pytest.raises(checks.DataError, match=text):
    read(CONFIGS[kind], **more)


@pytest.mark.parametrize('kind', CONFIGS)
def test_a_written_config_says_the_same(kind):
  options = read(CONFIGS[kind])
  values = llama.write_config(options)
  assert values['model_type'] == kind
  assert values['architectures'] == CONFIGS[kind]['architectures']
  assert read(values) == options


@pytest.mark.parametrize('numbers', [
    dict(kind='linear', factor=2.0),
    dict(kind='dynamic', factor=2.0, original_length=16),
    dict(kind='yarn', factor=2.0, original_length=16, beta_fast=8.0,
         attention_factor=1.5, truncate=False),
    dict(kind='llama3', factor=2.0, original_length=16, low_freq_factor=1.0,
         high_freq_factor=4.0),
    dict(kind='longrope', factor=2.0, original_length=16,
         short_factor=(1.0, 2.0), long_factor=(3.0, 4.0)),
], ids=lambda numbers: numbers['kind'])
def test_a_written_scaling_says_the_same(numbers):
  values = llama.write_config(SMALL | dict(rope_scaling=numbers))
  assert read(values)['rope_scaling'] == numbers


@pytest.mark.parametrize('options, kind', [
    (dict(), 'llama'),
    (dict(qkv_bias=True, output_bias=True), 'llama'),
    (dict(mlp_bias=True), 'llama'),
    (dict(window=4), 'mistral'),
    (dict(window=4, window_layers=(0, 1, 2)), 'mistral'),
    # transformers wants the width of a Llama to be a multiple of its heads.
    (dict(heads=5), 'mistral'),
    (dict(qkv_bias=True), 'qwen2'),
    (dict(qkv_bias=True, window=4, window_layers=(1,)), 'qwen2'),
    (dict(qk_norm=True), 'qwen3'),
    (dict(qk_norm=True, qkv_bias=True, output_bias=True, window=4), 'qwen3'),
])
def test_model_type_is_one_that_has_the_options(options, kind):
  values = llama.write_config(SMALL | options)
  assert values['model_type'] == kind
  actual = read(values)
  expected = dict(window=None, window_layers=None) | options
  if len(expected['window_layers'] or ()) == 3:
    expected['window_layers'] = None
  for name, value in expected.items():
    assert actual.get(name) == value


@pytest.mark.parametrize('options', [
    dict(window=4, window_layers=(1,)),
    dict(window=4, mlp_bias=True),
    dict(window=4, qkv_bias=True, output_bias=True),
    dict(output_bias=True),
    dict(qk_norm=True, qkv_bias=True),
    dict(qk_norm=True, mlp_bias=True),
    dict(qkv_bias=True, mlp_bias=True),
    dict(heads=5, mlp_bias=True),
], ids=str)
def test_options_that_no_model_type_has_are_refused(options):
  text = '^options must be those of one of llama, mistral'
  with pytest.raises(checks.ConfigError, match=text):
    llama.write_config(SMALL | options)


def test_unknown_activation_is_refused():
  with pytest.raises(checks.ConfigError,
                     match="options.activation must be .* got 'elu'"):
    llama.write_config(SMALL | dict(activation='elu'))


def test_defaults_are_written_as_they_come_out():
  """12 / 2 features a head; 8/3 of 12 is 32, rounded up to a multiple of 64."""
  values = llama.write_config(dict(width=12, heads=2))
  assert values['head_dim'] == 6 and values['num_key_value_heads'] == 2
  assert values['intermediate_size'] == 64 and 'vocab_size' not in values


@pytest.mark.parametrize('names, prefix', [
    ((), 'model.'), (('model.embed_tokens.weight',), 'model.'),
    (('embed_tokens.weight',), '')])
def test_tensors_have_the_prefix_that_is_there(names, prefix):
  rules, _, copies = llama.tensors(SMALL | dict(tied=True), names)
  tensors = {rule.tensor for rule in rules}
  assert f'{prefix}embed_tokens.weight' in tensors
  assert f'{prefix}layers.{{layer}}.mlp.up_proj.weight' in tensors
  assert 'lm_head.weight' not in tensors
  assert copies == {'lm_head.weight': f'{prefix}embed_tokens.weight'}


def test_axes_of_the_vocabulary_are_marked():
  rules = llama.tensors(SMALL, ()).rules
  axes = {rule.tensor: rule.vocabulary for rule in rules
          if rule.vocabulary is not None}
  assert axes == {'model.embed_tokens.weight': 0, 'lm_head.weight': 1}
  head, = (rule for rule in rules if rule.tensor == 'lm_head.weight')
  assert head.layout.load(np.zeros((11, 12))).shape == (12, 11)
