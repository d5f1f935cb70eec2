"""Prompts and completions: columns worked out by hand."""

import json
import logging

import pytest
import tokenizers
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors

from haikd import config as config_lib
from haikd.core import checks
from haikd.data import description
from haikd.data import pipeline
from haikd.data import source


def open_rows(folder, tokenizer, *rows, **options):
  (folder / 'files').mkdir(exist_ok=True)
  (folder / 'files' / 'train.jsonl').write_text(
      ''.join(f'{json.dumps(row)}\n' for row in rows))
  return source.open_source(
      'completions', 'train',
      options=dict(dict(tokenizer=tokenizer, length=6), **options),
      source_dir=str(folder / 'files'), data_dir=str(folder / 'data'))


# In the tokenizer `words` a is 3, b is 4 and so on; 2 ends a text, 0 pads.
@pytest.mark.parametrize('prompt, completion, tokens, label', [
    ('a b', ' c', [3, 4, 5, 2, 0, 0], [-100, 5, 2, -100, -100, -100]),
    ('', 'c d', [5, 6, 2, 0, 0, 0], [6, 2, -100, -100, -100, -100]),
    ('a b c ', 'd e', [3, 4, 5, 6, 7, 2], [-100, -100, 6, 7, 2, -100]),
    ('a b', '', [3, 4, 2, 0, 0, 0], [-100, 2, -100, -100, -100, -100]),
    # Too long: the prompt loses its beginning, then the completion its end.
    ('a b c d ', 'e f', [4, 5, 6, 7, 8, 2], [-100, -100, 7, 8, 2, -100]),
    ('a b ', 'a b c d e f g', [3, 4, 5, 6, 7, 8], [4, 5, 6, 7, 8, -100]),
])
def test_only_the_completion_is_learned(tmp_path, words, prompt, completion,
                                        tokens, label):
  row = open_rows(tmp_path, words,
                  dict(prompt=prompt, completion=completion))[0]
  assert row['tokens'].tolist() == tokens
  assert row['label'].tolist() == label
  assert row['target_mask'].tolist() == [x != -100 for x in label]
  assert row['mask'].tolist() == [x != 0 for x in tokens]


def test_rows_may_be_padded_on_the_left(tmp_path, words):
  row = open_rows(tmp_path, words, dict(q='a', a=' b'), padding='left',
                  prompt='q', completion='a')[0]
  assert row['tokens'].tolist() == [0, 0, 0, 3, 4, 2]
  assert row['label'].tolist() == [-100, -100, -100, 4, 2, -100]


def test_truncated_rows_are_counted_and_said(tmp_path, words, caplog):
  with caplog.at_level(logging.INFO, 'haikd'):
    opened = open_rows(tmp_path, words, dict(prompt='a', completion=' b'),
                       dict(prompt='a b c d', completion=' a b'))
  assert opened.info['cut'] == 1 and opened.info['rows'] == 2
  assert ("split 'train', of 2 records: 1 prompts and completions are cut to 6 "
          'tokens: config.data.options.length.') in caplog.text


def test_special_tokens_surround_prompt_and_completion(tmp_path, bert_words):
  # [CLS] is 2 and [SEP] is 3: none between prompt and completion.
  row = open_rows(tmp_path, bert_words, dict(prompt='a', completion=' b'))[0]
  assert row['tokens'].tolist() == [2, 4, 5, 3, 0, 0]
  # The first token stays when the prompt loses its beginning.
  row = open_rows(tmp_path, bert_words,
                  dict(prompt='a b c d', completion=' e'))[0]
  assert row['tokens'].tolist() == [2, 5, 6, 7, 8, 3]
  assert row['label'].tolist() == [-100, -100, -100, 8, 3, -100]


def pieces_tokenizer(folder, **parts):
  """Writes BPE of a few merges; 0 begins a text and 1 ends it."""
  merges = [('▁', 'c'), ('▁c', 'a'), ('▁ca', 't'), ('f', 'i')]
  tokens = ['<s>', '</s>', '<unk>', *(f'<0x{i:02X}>' for i in range(256)), '▁',
            *'abcdefghijklmnopqrstuvwxyz', *(a + b for a, b in merges)]
  made = tokenizers.Tokenizer(models.BPE(
      {token: i for i, token in enumerate(tokens)}, merges, unk_token='<unk>',
      byte_fallback=True, fuse_unk=True))
  for name, part in parts.items():
    setattr(made, name, part)
  made.add_special_tokens(['<s>', '</s>', '<unk>'])
  return save_tokenizer(made, folder)


def byte_tokenizer(folder):
  """Likewise, of bytes; places are given without blanks."""
  merges = [('Ġ', 'c'), ('Ġc', 'a'), ('Ġca', 't'), ('Ċ', 'Ċ')]
  tokens = ['<s>', '</s>', *sorted(pre_tokenizers.ByteLevel.alphabet()),
            *(a + b for a, b in merges)]
  made = tokenizers.Tokenizer(models.BPE(
      {token: i for i, token in enumerate(tokens)}, merges))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.add_special_tokens(['<s>', '</s>'])
  return save_tokenizer(made, folder, processors.ByteLevel(trim_offsets=True))


def save_tokenizer(made, folder, *more):
  begin = processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', 0)])
  made.post_processor = processors.Sequence([*more, begin])
  folder.mkdir()
  made.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(
      '{"bos_token": "<s>", "eos_token": "</s>"}')
  return str(folder)


BLANKS = normalizers.Replace(' ', '▁')
TOKENIZERS = dict(
    llama=lambda folder: pieces_tokenizer(
        folder, normalizer=normalizers.Sequence(
            [normalizers.Prepend('▁'), BLANKS])),
    metaspace=lambda folder: pieces_tokenizer(
        folder, pre_tokenizer=pre_tokenizers.Metaspace()),
    folding=lambda folder: pieces_tokenizer(
        folder, normalizer=normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Lowercase(), BLANKS])),
    bytes=byte_tokenizer)


# The package `tokenizers` says how the whole text is split; how many of its
# tokens are learned is counted by hand, with the one that ends texts.
@pytest.mark.parametrize('kind, prompt, completion, count', [
    ('llama', 'a cat', ' cat b', 4),  # ▁cat ▁ b
    ('llama', 'a\n', 'cat', 4),  # No blank before c, a and t.
    ('llama', 'a ', 'cat', 2),  # The blank of ▁cat is in the prompt.
    ('llama', 'é', '😀', 5),  # Four bytes.
    ('llama', '', 'cat', 2),  # ▁cat: nobody wrote the blank.
    ('llama', '', 'b', 3),  # Likewise ▁ and b.
    ('llama', 'a</s>', 'b', 3),  # So has what follows a special token.
    ('metaspace', 'a cat', ' cat b', 4),
    ('metaspace', 'a ', 'cat', 2),
    ('folding', 'ﬁ', 'ﬁ cat', 3),  # Two ligatures: fi fi ▁cat
    ('folding', 'ABC', 'DE', 3),
    ('bytes', 'a  ', 'b', 2),
    ('bytes', 'a ', ' b', 3),
    ('bytes', 'a ', 'cat', 2),
    ('bytes', 'a\n', '\nb', 3),  # The two line breaks are one token.
    ('bytes', 'é', '😀', 5),
])
def test_a_text_is_not_split_where_its_completion_begins(
    tmp_path, kind, prompt, completion, count):
  path = TOKENIZERS[kind](tmp_path / kind)
  opened = open_rows(tmp_path, path, dict(prompt=prompt, completion=completion),
                     length=24)
  whole = tokenizers.Tokenizer.from_file(f'{path}/tokenizer.json').encode(
      prompt + completion)
  row = opened[0]
  assert row['tokens'][row['mask']].tolist() == [*whole.ids, 1]
  assert row['target_mask'].sum() == count
  # What is learned is the end of the row.
  assert row['target_mask'][len(whole.ids) - count:len(whole.ids)].all()


def test_tokens_across_the_boundary_are_counted_and_said(tmp_path, caplog):
  path = TOKENIZERS['bytes'](tmp_path / 'bytes')
  rows = [dict(prompt='a ', completion='cat'),
          dict(prompt='a', completion=' cat')]
  for _ in range(2):  # Also of rows that are prepared already.
    caplog.clear()
    with caplog.at_level(logging.INFO, 'haikd'):
      opened = open_rows(tmp_path, path, *rows)
    assert opened.info['crossing'] == 1
    assert ("split 'train', of 2 records: 1 prompts end within a token, which "
            'is learned with the completion') in caplog.text
  assert opened[0]['tokens'].tolist() == opened[1]['tokens'].tolist()


# As tokenizer(prompt + completion, add_special_tokens=False) of transformers
# for a prompt that a chat template has written.
@pytest.mark.parametrize('options, tokens', [
    (dict(), [0, 67, 66, 1]),
    (dict(add_special_tokens=True), [0, 0, 67, 66, 1]),
    (dict(add_special_tokens=False), [0, 67, 66, 1]),
])
def test_a_prompt_that_holds_its_first_token_does_not_get_it_again(
    tmp_path, caplog, options, tokens):
  path = TOKENIZERS['bytes'](tmp_path / 'bytes')
  with caplog.at_level(logging.INFO, 'haikd'):
    opened = open_rows(tmp_path, path, dict(prompt='<s>b', completion='a'),
                       dict(prompt='', completion='<s>a'), **options)
  rows = [opened[i]['tokens'][opened[i]['mask']].tolist() for i in range(2)]
  assert rows == [tokens, [t for t in tokens if t != 67]]  # 66 is a, 67 b.
  # What begins texts is not learned.
  assert opened[0]['target_mask'].sum() == opened[1]['target_mask'].sum() - (
      options.get('add_special_tokens') is True) == 2
  assert ('2 texts hold special tokens that texts get' in caplog.text) == (
      not options)


def test_messages_are_read_by_another_data_set(tmp_path, words):
  messages = [dict(role='user', content='a')]
  with pytest.raises(checks.DataError, match="a text in the field 'prompt'; got"
                     " a list. config.data.name='chat' reads lists of mess"):
    open_rows(tmp_path, words, dict(prompt=messages, completion=messages))


def test_missing_field_is_named(tmp_path, words):
  with pytest.raises(checks.DataError, match="must have the field 'prompt'"):
    open_rows(tmp_path, words, dict(completion='b'))


def test_description_matches_the_data(tmp_path, words):
  open_rows(tmp_path, words, dict(prompt='a', completion=' b'))
  config = config_lib.base()
  config.batch_size = 1
  config.data.name = 'completions'
  config.data.source_dir = str(tmp_path / 'files')
  config.data.data_dir = str(tmp_path / 'data')
  config.data.options = dict(tokenizer=words, length=6, vocabulary=16)
  described, num_classes, _ = description.describe(config)
  data = pipeline.build_data(config)
  assert described == data.spec and num_classes == data.num_classes == 16
