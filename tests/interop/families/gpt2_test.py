"""Tests of the family gpt2."""

import pytest

from haikd import models  # noqa: F401  Registers the zoo.
from haikd.core import checks
from haikd.interop import fields as fields_lib
from haikd.interop.families import gpt2

# As in the config.json of the smallest GPT-2.
CONFIG = dict(
    activation_function='gelu_new', architectures=['GPT2LMHeadModel'],
    attn_pdrop=0.1, bos_token_id=50256, embd_pdrop=0.1, eos_token_id=50256,
    initializer_range=0.02, layer_norm_epsilon=1e-05, model_type='gpt2',
    n_ctx=1024, n_embd=768, n_head=12, n_layer=12, n_positions=1024,
    resid_pdrop=0.1, summary_activation=None, summary_first_dropout=0.1,
    summary_proj_to_labels=True, summary_type='cls_index',
    summary_use_proj=True, task_specific_params={'text-generation': {
        'do_sample': True, 'max_length': 50}}, vocab_size=50257)
OPTIONS = dict(
    num_classes=50257, positions=1024, width=768, depth=12, heads=12,
    hidden=None, activation='gelu_tanh', epsilon=1e-5, tied=True)


def read(**more):
  return gpt2.read_config(fields_lib.Fields('config.json', CONFIG | more))


def test_a_config_is_read():
  assert read() == OPTIONS


@pytest.mark.parametrize('more, expected', [
    (dict(n_inner=100), dict(hidden=100)),
    (dict(activation_function='relu'), dict(activation='relu')),
    (dict(tie_word_embeddings=False), dict(tied=False)),
    (dict(architectures=None), dict()),
    # As in the configs of DistilGPT-2 and of the larger ones.
    (dict(_num_labels=1, predict_special_tokens=True, n_special=0), dict()),
])
def test_fields_that_differ_are_read(more, expected):
  assert read(**more) == OPTIONS | expected


@pytest.mark.parametrize('more, text', [
    (dict(architectures=['GPT2ForSequenceClassification']),
     'must be one of GPT2LMHeadModel, GPT2Model; got'),
    (dict(scale_attn_weights=False), 'scale_attn_weights must be True; got F'),
    (dict(scale_attn_by_inverse_layer_idx=True),
     'scale_attn_by_inverse_layer_idx must be False; got True'),
    (dict(add_cross_attention=True),
     'add_cross_attention must be False; got True'),
    (dict(rotary=True), "got {'rotary': True}. Nothing was loaded"),
])
def test_what_is_not_supported_is_refused(more, text):
  with pytest.raises(checks.DataError, match=text):
    read(**more)


@pytest.mark.parametrize('more', [
    dict(), dict(hidden=100, activation='relu', epsilon=1e-3, tied=False)])
def test_a_written_config_says_the_same(more):
  options = OPTIONS | more
  values = gpt2.write_config(options)
  assert values['architectures'] == ['GPT2LMHeadModel']
  actual = gpt2.read_config(fields_lib.Fields('config.json', values))
  assert actual == options


@pytest.mark.parametrize('names, prefix', [
    ((), 'transformer.'), (('wte.weight',), '')])
def test_tensors_have_the_prefix_that_is_there(names, prefix):
  rules, _, copies = gpt2.tensors(OPTIONS, names)
  tensors = {rule.tensor for rule in rules}
  assert f'{prefix}wte.weight' in tensors
  assert f'{prefix}h.{{layer}}.attn.c_attn.bias' in tensors
  assert 'lm_head.weight' not in tensors
  assert copies == {'lm_head.weight': f'{prefix}wte.weight'}


def test_axes_of_the_vocabulary_are_marked():
  rules = gpt2.tensors(OPTIONS | dict(tied=False), ()).rules
  axes = {rule.tensor: rule.vocabulary for rule in rules
          if rule.vocabulary is not None}
  assert axes == {'transformer.wte.weight': 0, 'lm_head.weight': 1}
