"""Tokenizers from GGUF: how each kind splits a text, worked out by hand."""

import gguf
import pytest
from tokenizers import pre_tokenizers

from haikd.core import checks
from haikd.data.text import special_tokens
from haikd.data.text import tokenizer

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# The merges, in this order.
MERGES = ['1 2', '12 3', '123 4', "' L", "'L L", "' t", '. .', 'Ġ a', 'a b',
          'Ã ©']
# Tokens that no merge makes.
LOOSE = ['whole']


def write(path, *, pre='gpt-2', model='gpt2', leave_out=(), **more):
  special = [('<s>', CONTROL), ('</s>', CONTROL), ('<tool>', USER_DEFINED)]
  made = [merge.replace(' ', '') for merge in MERGES]
  tokens = [token for token, _ in special] + BYTES + made + LOOSE + ['[PAD1]']
  kinds = ([kind for _, kind in special] +
           [NORMAL] * (len(tokens) - len(special) - 1) + [UNUSED])
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_tokenizer_model(model)
  if pre is not None:
    writer.add_tokenizer_pre(pre)
  if 'tokens' not in leave_out:
    writer.add_token_list(tokens)
  writer.add_token_types(kinds)
  writer.add_token_merges(MERGES)
  writer.add_bos_token_id(0)
  writer.add_eos_token_id(1)
  if 'add_bos' in more:
    writer.add_add_bos_token(more['add_bos'])
  if 'add_eos' in more:
    writer.add_add_eos_token(more['add_eos'])
  writer.add_chat_template('{{ messages }}')
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  return f'gguf:{path}'


def pieces_of(path, text, **options):
  loaded = tokenizer.load(write(path, **options))
  encoded, = loaded.encode_batch([text])
  assert loaded.decode(encoded.ids, skip_special=True) == text
  return [loaded.token_of(i) for i in encoded.ids]


@pytest.mark.parametrize('pre, text, tokens', [
    ('gpt-2', '12345', ['1234', '5']),
    ('smollm', '12345', ['1', '2', '3', '4', '5']),
    ('qwen2', '12345', ['1', '2', '3', '4', '5']),
    ('llama-bpe', '12345', ['<s>', '123', '4', '5']),  # Threes from the left.
    ('default', '12345', ['123', '4', '5']),
    (None, '12345', ['123', '4', '5']),  # The default.
    # 'LL is a contraction for Llama and Qwen; for GPT-2 only in small letters.
    ('gpt-2', "b'LL", ['b', "'", 'L', 'L']),
    ('llama-bpe', "b'LL", ['<s>', 'b', "'LL"]),
    ('qwen2', "b'LL", ['b', "'LL"]),
    ('smollm', "b'tb", ['b', "'t", 'b']),
    ('gpt-2', 'b  ab', ['b', 'Ġ', 'Ġa', 'b']),
    ('gpt-2', 'b \n', ['b', 'Ġ', 'Ċ']),
    # Without a merge a word is one token for Llama only.
    ('gpt-2', 'whole', ['w', 'h', 'o', 'l', 'e']),
    ('llama-bpe', 'whole', ['<s>', 'whole']),
    ('gpt-2', 'b<tool>b</s>', ['b', '<tool>', 'b', '</s>']),
])
def test_text_is_split_as_its_kind_does(tmp_path, pre, text, tokens):
  if '</s>' in text:
    loaded = tokenizer.load(write(tmp_path / 'm.gguf', pre=pre))
    ids = loaded.encode_batch([text])[0].ids
    assert [loaded.token_of(i) for i in ids] == tokens
    assert loaded.decode(ids) == text
    assert loaded.decode(ids, skip_special=True) == 'b<tool>b'
  else:
    assert pieces_of(tmp_path / 'm.gguf', text, pre=pre) == tokens


def test_qwen_composes_letters(tmp_path):
  loaded = tokenizer.load(write(tmp_path / 'm.gguf', pre='qwen2'))
  encoded, = loaded.encode_batch(['e\u0301'])  # A letter and its accent.
  assert [loaded.token_of(i) for i in encoded.ids] == ['Ã©']


@pytest.mark.parametrize('options, tokens', [
    (dict(), ['1']),
    (dict(add_bos=True), ['<s>', '1']),
    (dict(add_eos=True), ['1', '</s>']),
    (dict(add_bos=True, add_eos=True), ['<s>', '1', '</s>']),
    (dict(pre='llama-bpe', add_bos=False), ['1']),
])
def test_bos_and_eos_are_added_as_the_file_says(tmp_path, options, tokens):
  assert pieces_of(tmp_path / 'm.gguf', '1', **options) == tokens


def test_ids_are_those_of_the_file(tmp_path):
  loaded = tokenizer.load(write(tmp_path / 'm.gguf'))
  assert loaded.special == special_tokens.Special(bos=0, eos=1)
  assert loaded.id_of(BYTES[0]) == 3 and loaded.id_of('12') == 3 + 256
  assert loaded.id_of('[PAD1]') is None  # It only pads the embedding.
  assert loaded.size == 3 + 256 + len(MERGES) + len(LOOSE)


@pytest.mark.parametrize('text', [
    'plain', ' two  spaces ', 'tabs\tand\nlines\r\n\n', '3.14159 and 1,000',
    'naïve café — “quoted”', '日本語 русский עברית', '👩‍👩‍👧‍👦 🏳️‍🌈',
    "don't I'LL", '\x00\x7f', ''])
@pytest.mark.parametrize('pre', ['smollm', 'gpt-2', 'default'])
def test_any_text_is_decoded_to_itself(tmp_path, pre, text):
  pieces_of(tmp_path / 'm.gguf', text, pre=pre)


def test_a_saved_tokenizer_is_the_same(tmp_path):
  loaded = tokenizer.load(write(tmp_path / 'm.gguf', pre='smollm'))
  loaded.save(tmp_path / 'saved')
  again = tokenizer.load(str(tmp_path / 'saved'))
  assert again.digest == loaded.digest
  assert again.config['chat_template'] == '{{ messages }}'
  assert again.config['eos_token'] == '</s>'


@pytest.mark.parametrize('options, text', [
    (dict(model='llama'), "tokenizer.ggml.model of .*m.gguf' must be 'gpt2', "
     "byte-level BPE; got 'llama'. Give the folder with"),
    (dict(pre='gpt-3'), "tokenizer.ggml.pre of .*m.gguf' must be a known way .*"
     "; got 'gpt-3'. Did you mean 'gpt-2'"),
    (dict(leave_out=['tokens']),
     "m.gguf' must have the metadata tokenizer.ggml.tokens; got only"),
])
def test_other_kinds_of_tokenizers_are_refused(tmp_path, options, text):
  with pytest.raises(checks.DataError, match=text):
    tokenizer.load(write(tmp_path / 'm.gguf', **options))


def test_missing_and_broken_files_are_refused(tmp_path):
  path = tmp_path / 'm.gguf'
  with pytest.raises(checks.DataError, match=(
      "'gguf:<file>' must name a GGUF file; got .*m.gguf', which is missing")):
    tokenizer.load(f'gguf:{path}')
  path.write_bytes(b'GGUF')
  with pytest.raises(checks.DataError, match=(
      "m.gguf' must be a GGUF file; got .*Fetch it again")):
    tokenizer.load(f'gguf:{path}')
