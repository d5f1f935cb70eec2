"""The special tokens that tokenizers add, whatever their vocabulary."""

import json

import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

from haikd.core import checks
from haikd.data.text import affixes
from haikd.data.text import tokenizer as tokenizer_lib


def make(model, *, special=('<s>', '</s>'), **config):
  made = tokenizers.Tokenizer(model)
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  made.add_special_tokens(list(special))
  made.post_processor = processors.TemplateProcessing(
      single='<s> $A </s>',
      special_tokens=[(name, made.token_to_id(name)) for name in special[:2]])
  return tokenizer_lib.Tokenizer(json.loads(made.to_str()), config)


def bases(*special):
  return {token: i for i, token in enumerate([*special, *'ACGT'])}


@pytest.mark.parametrize('tokenizer', [
    # BPE leaves out what it has no token for; WordLevel writes the unknown.
    make(models.BPE(bases('<s>', '</s>'), [])),
    make(models.WordLevel(bases('<s>', '</s>'), unk_token='<s>'),
         unk_token='<s>'),
], ids=['left_out', 'unknown'])
def test_a_vocabulary_need_not_have_the_letter_a(tokenizer):
  before, after = affixes.of(tokenizer)
  assert (before.tolist(), after.tolist()) == ([0], [1])
  assert affixes.strip(tokenizer, ['<s>A C</s>']) == ['A C']


def test_a_vocabulary_of_added_tokens_is_refused():
  tokenizer = make(models.BPE({'<s>': 0, '</s>': 1}, []))
  with pytest.raises(checks.DataError, match=(
      'tokenizer must have a token besides those that it adds')):
    affixes.of(tokenizer)
