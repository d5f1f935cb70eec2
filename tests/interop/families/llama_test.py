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
# As in the config.json of SmolLM3 3B, Phi 4 mini, OLMo 2 1B, Granite 3.3 2B,
# Gemma 2 2B and Gemma 3 1B, with smaller sizes.
SMOLLM3 = LLAMA | dict(
    architectures=['SmolLM3ForCausalLM'], layer_types=['full_attention'] * 16,
    max_window_layers=28, model_type='smollm3', no_rope_layer_interval=4,
    no_rope_layers=[1, 1, 1, 0] * 4, pretraining_tp=2, rope_scaling=None,
    rope_theta=5000000.0, sliding_window=None, use_sliding_window=False)
PHI3 = dict(
    architectures=['Phi3ForCausalLM'], attention_bias=False,
    attention_dropout=0.0, auto_map=dict(AutoConfig='configuration_phi3'),
    bos_token_id=199999, embd_pdrop=0.0, eos_token_id=199999, full_attn_mod=1,
    hidden_act='silu', hidden_size=64, initializer_range=0.02,
    intermediate_size=96, interpolate_factor=1, lm_head_bias=False,
    max_position_embeddings=131072, mlp_bias=False, model_type='phi3',
    num_attention_heads=8, num_hidden_layers=4, num_key_value_heads=2,
    original_max_position_embeddings=4096, pad_token_id=199999,
    partial_rotary_factor=0.75, resid_pdrop=0.0, rms_norm_eps=1e-05,
    rope_scaling=dict(long_factor=[1, 2.0, 3.0], short_factor=[1, 1.0, 1.0],
                      type='longrope'),
    rope_theta=10000.0, sliding_window=262144, tie_word_embeddings=True,
    torch_dtype='bfloat16', use_cache=True, vocab_size=200064)
OLMO2 = dict(
    architectures=['Olmo2ForCausalLM'], attention_bias=False,
    attention_dropout=0.0, hidden_act='silu', hidden_size=64,
    intermediate_size=96, max_position_embeddings=4096, model_type='olmo2',
    num_attention_heads=8, num_hidden_layers=4, num_key_value_heads=8,
    rms_norm_eps=1e-06, rope_scaling=None, rope_theta=500000,
    tie_word_embeddings=False, vocab_size=100352)
GRANITE = OLMO2 | dict(
    architectures=['GraniteForCausalLM'], attention_multiplier=0.015625,
    embedding_multiplier=12.0, logits_scaling=8.0, mlp_bias=False,
    model_type='granite', residual_multiplier=0.22, rope_theta=10000000.0,
    tie_word_embeddings=True)
GEMMA2 = dict(
    architectures=['Gemma2ForCausalLM'], attention_bias=False,
    attention_dropout=0.0, attn_logit_softcapping=50.0, bos_token_id=2,
    cache_implementation='hybrid', eos_token_id=1, final_logit_softcapping=30.0,
    head_dim=256, hidden_act='gelu_pytorch_tanh',
    hidden_activation='gelu_pytorch_tanh', hidden_size=64,
    initializer_range=0.02, intermediate_size=96, max_position_embeddings=8192,
    model_type='gemma2', num_attention_heads=8, num_hidden_layers=4,
    num_key_value_heads=4, pad_token_id=0, query_pre_attn_scalar=144,
    rms_norm_eps=1e-06, rope_theta=10000.0, sliding_window=4096,
    sliding_window_size=4096, torch_dtype='float32', use_cache=True,
    vocab_size=256000)
GEMMA3 = {name: value for name, value in GEMMA2.items()
          if name not in ('hidden_act', 'sliding_window_size')} | dict(
    architectures=['Gemma3ForCausalLM'], attn_logit_softcapping=None,
    final_logit_softcapping=None, model_type='gemma3_text',
    num_hidden_layers=7, query_pre_attn_scalar=256, rope_local_base_freq=10000,
    rope_scaling=None, rope_theta=1000000, sliding_window=512,
    sliding_window_pattern=6)
# As in the config.json of Mixtral 8x7B and Qwen3 30B A3B.
MIXTRAL = MISTRAL | dict(
    architectures=['MixtralForCausalLM'], model_type='mixtral',
    num_experts_per_tok=2, num_local_experts=8, output_router_logits=False,
    router_aux_loss_coef=0.02, rope_theta=1000000.0, sliding_window=None)
QWEN3_MOE = QWEN3 | dict(
    architectures=['Qwen3MoeForCausalLM'], decoder_sparse_step=1,
    max_window_layers=48, mlp_only_layers=[], model_type='qwen3_moe',
    moe_intermediate_size=24, norm_topk_prob=True, num_experts=128,
    num_experts_per_tok=8, output_router_logits=False,
    router_aux_loss_coef=0.001)
CONFIGS = dict(
    mixtral=MIXTRAL, qwen3_moe=QWEN3_MOE,
    llama=LLAMA, mistral=MISTRAL, qwen2=QWEN2, qwen3=QWEN3, smollm3=SMOLLM3,
    phi3=PHI3, olmo2=OLMO2, granite=GRANITE, gemma2=GEMMA2, gemma3_text=GEMMA3)

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
      qk_norm=None, qkv_bias=False, output_bias=False, mlp_bias=False,
      rope_base=500000.0, rope_scaling=dict(
          kind='llama3', factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
          original_length=8192))


@pytest.mark.parametrize('kind, expected', [
    ('mistral', dict(window=4096, qkv_bias=False, qk_norm=None, head_size=8,
                     tied=False)),
    ('qwen2', dict(qkv_bias=True, output_bias=False, qk_norm=None, head_size=8,
                   rope_base=1e6)),
    ('qwen3', dict(qkv_bias=False, output_bias=False, qk_norm='head',
                   head_size=128)),
    ('smollm3', dict(unrotated_layers=(3, 7, 11, 15), rope_base=5e6)),
    ('phi3', dict(
        window=262144, rope_fraction=0.75, rope_scaling=dict(
            kind='longrope', short_factor=(1, 1.0, 1.0),
            long_factor=(1, 2.0, 3.0), original_length=4096, factor=32.0))),
    ('mixtral', dict(experts=8, experts_per_token=2, normalise_experts=True,
                     hidden=96, window=None)),
    ('qwen3_moe', dict(experts=128, experts_per_token=8, qk_norm='head',
                       normalise_experts=True, hidden=24, window=None)),
    ('olmo2', dict(norms='after', qk_norm='all', epsilon=1e-6)),
    ('granite', dict(embedding_scale=12.0, attention_scale=1 / 64,
                     residual_scale=0.22, logits_scale=1 / 8)),
    # The scale is 1 / sqrt(144).
    ('gemma2', dict(
        norms='both', norm_unit_offset=True, qk_norm=None, tied=True,
        embedding_scale='sqrt_width', attention_scale=pytest.approx(1 / 12),
        attention_soft_cap=50.0, logits_soft_cap=30.0, activation='gelu_tanh',
        window=4096, window_layers=(0, 2))),
    ('gemma3_text', dict(
        norms='both', norm_unit_offset=True, qk_norm='head',
        embedding_scale='sqrt_width', attention_scale=1 / 16,
        logits_soft_cap=None, rope_base=1e6, window_rope_base=1e4, window=512,
        window_layers=(0, 1, 2, 3, 4, 6))),
])
def test_configs_of_others_are_read(kind, expected):
  actual = read(CONFIGS[kind])
  assert {name: actual[name] for name in expected} == expected
  has_window = ('mistral', 'phi3', 'gemma2', 'gemma3_text', 'mixtral',
                'qwen3_moe')
  assert ('window' in actual) == (kind in has_window)


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
    ('smollm3', dict(no_rope_layers=None, no_rope_layer_interval=5),
     dict(unrotated_layers=(4, 9, 14))),
    # By default blocks without rotations have the window.
    ('smollm3', dict(layer_types=None, use_sliding_window=True,
                     sliding_window=8),
     dict(window=8, window_layers=(3, 7, 11, 15))),
    ('phi3', dict(rope_scaling=dict(
        type='su', short_factor=[1.0] * 3, long_factor=[2.0] * 3)),
     dict(rope_scaling=dict(
         kind='longrope', short_factor=(1.0,) * 3, long_factor=(2.0,) * 3,
         original_length=4096, factor=32.0))),
    ('gemma2', dict(attn_logit_softcapping=None, final_logit_softcapping=None),
     dict(attention_soft_cap=None, logits_soft_cap=None)),
    ('gemma3_text', dict(rope_theta=None, rope_local_base_freq=None,
                         rope_parameters=dict(
                             full_attention=dict(rope_type='linear', factor=8.0,
                                                 rope_theta=500.0),
                             sliding_attention=dict(rope_theta=20.0))),
     dict(rope_base=500.0, window_rope_base=20.0,
          rope_scaling=dict(kind='linear', factor=8.0))),
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
    ('smollm3', 'rope_theta', 'rope_base', 2e6),
    ('phi3', 'rms_norm_eps', 'epsilon', 1e-5),
    ('olmo2', 'rms_norm_eps', 'epsilon', 1e-5),
    ('qwen3_moe', 'norm_topk_prob', 'normalise_experts', False),
    ('granite', 'attention_multiplier', 'attention_scale', 1.0),
    ('gemma2', 'query_pre_attn_scalar', 'attention_scale', 1 / 16),
    ('gemma2', 'attn_logit_softcapping', 'attention_soft_cap', 50.0),
    ('gemma3_text', 'sliding_window_pattern', 'window_layers',
     (0, 1, 2, 3, 4, 6)),
    ('gemma3_text', 'rope_local_base_freq', 'window_rope_base', 1e4),
    ('gemma3_text', 'head_dim', 'head_size', 256),
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
    ('phi3', dict(rope_scaling=dict(type='yarn', factor=2.0)),
     "rope_scaling.type must be one of longrope; got 'yarn'"),
    ('qwen3_moe', dict(mlp_only_layers=[0]), r'mlp_only_layers must be \[\]'),
    ('phi3', dict(lm_head_bias=True), 'lm_head_bias must be False; got True'),
    ('gemma2', dict(use_bidirectional_attention=True),
     'use_bidirectional_attention must be False; got True'),
    # transformers does not apply it to this type.
    ('gemma3_text', dict(attn_logit_softcapping=50.0),
     'attn_logit_softcapping must be False; got 50.0'),
    ('gemma3_text', dict(rope_parameters=dict(rope_theta=20.0)),
     "got {'rope_parameters.rope_theta': 20.0}"),
    ('granite', dict(logits_scaling=0), 'logits_scaling must be a number abo'),
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
    (dict(qk_norm='head'), 'qwen3'),
    (dict(qk_norm='head', qkv_bias=True, output_bias=True, window=4), 'qwen3'),
    (dict(window=4, mlp_bias=True), 'smollm3'),
    (dict(window=4, window_layers=(1,)), 'smollm3'),
    (dict(unrotated_layers=(1,)), 'smollm3'),
    (dict(window=4, rope_fraction=1.0), 'phi3'),
    (dict(rope_fraction=0.5), 'phi3'),
    (dict(norms='after', qk_norm='all'), 'olmo2'),
    (dict(residual_scale=0.5), 'granite'),
    (dict(norms='both', norm_unit_offset=True, embedding_scale='sqrt_width',
          attention_soft_cap=5.0), 'gemma2'),
    (dict(norms='both', norm_unit_offset=True, embedding_scale='sqrt_width',
          qk_norm='head', window=4, window_layers=(0,),
          window_rope_base=20.0), 'gemma3_text'),
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


@pytest.mark.parametrize('options, nearest', [
    (dict(output_bias=True), 'llama, which needs qkv_bias=output_bias'),
    (dict(qk_norm='head', qkv_bias=True), 'qwen2, which needs qk_norm=None'),
    (dict(qk_norm='head', mlp_bias=True),
     'llama, which needs qk_norm=None'),
    (dict(qkv_bias=True, mlp_bias=True),
     'llama, which needs qkv_bias=output_bias'),
    (dict(norms='after', qk_norm='all', window=4),
     'olmo2, which needs no window'),
    (dict(rope_fraction=0.5, window=4, window_layers=[1]),
     'smollm3, which needs rope_fraction=1.0'),
    (dict(rope_fraction=0.5, rope_scaling=dict(kind='linear', factor=2.0)),
     'llama, which needs rope_fraction=1.0'),
    (dict(embedding_scale='sqrt_width', logits_scale=2.0),
     'granite, which needs a number as embedding_scale'),
], ids=str)
def test_options_that_no_model_type_has_are_refused(options, nearest):
  text = f'^options must be those of one of llama, .* The nearest is {nearest}'
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
