"""Sentences and pairs: columns worked out by hand."""

import json
import logging

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

from haikd import config as config_lib
from haikd.core import checks
from haikd.data import pipeline
from haikd.data import source


def write(folder, name, *rows):
  (folder / 'files').mkdir(exist_ok=True)
  (folder / 'files' / name).write_text(
      ''.join(f'{json.dumps(row)}\n' for row in rows))


def pair(first, second, score):
  return dict(sentence1=first, sentence2=second, score=score)


def open_split(folder, tokenizer, split='train', **options):
  return source.open_source(
      'sentences', split,
      options=dict(dict(tokenizer=tokenizer, length=5), **options),
      source_dir=str(folder / 'files'), data_dir=str(folder / 'data'))


# In `bert_words` a is 4, b is 5 and so on; 2 is [CLS], 3 is [SEP], 0 pads.
def test_sentences_are_padded_or_truncated_with_special_tokens(tmp_path,
                                                               bert_words):
  (tmp_path / 'files').mkdir()
  (tmp_path / 'files' / 'train.txt').write_text('a b\n\nc\na b c d e f\n')
  opened = open_split(tmp_path, bert_words)
  assert opened.num_classes is None
  assert [opened[i]['tokens'].tolist() for i in range(len(opened))] == [
      [2, 4, 5, 3, 0], [2, 6, 3, 0, 0], [2, 4, 5, 6, 3]]
  assert [opened[i]['mask'].tolist().index(False)
          for i in range(2)] == [4, 3]
  assert opened[2]['mask'].all()


def test_special_tokens_are_not_added_to_what_has_them(tmp_path, bert_words,
                                                       caplog):
  write(tmp_path, 'train.jsonl', dict(text='[CLS] a [SEP]'), dict(text='a'))
  with caplog.at_level(logging.INFO, 'haikd'):
    opened = open_split(tmp_path, bert_words)
  assert opened[0]['tokens'].tolist() == [2, 4, 3, 0, 0]
  assert opened[1]['tokens'].tolist() == [2, 4, 3, 0, 0]
  assert "split 'train', of 2 records: 1 texts hold special" in caplog.text


def test_padding_may_be_on_the_left(tmp_path, bert_words):
  write(tmp_path, 'train.jsonl', dict(text='a'))
  row = open_split(tmp_path, bert_words, padding='left')[0]
  assert row['tokens'].tolist() == [0, 0, 2, 4, 3]
  assert row['mask'].tolist() == [False, False, True, True, True]


def test_pairs_have_two_rows_and_a_score(tmp_path, bert_words):
  write(tmp_path, 'train.jsonl', pair('a', 'b c', 1), pair('d', 'e', 0.25))
  opened = open_split(tmp_path, bert_words)
  assert opened.num_classes is None and len(opened) == 2
  assert opened[0]['tokens'].tolist() == [[2, 4, 3, 0, 0], [2, 5, 6, 3, 0]]
  assert opened[0]['mask'].sum(-1).tolist() == [3, 4]
  assert opened[1]['label'] == np.float32(0.25)
  assert opened[1]['label'].dtype == np.float32


def test_splits_may_differ_and_padding_of_batches_is_masked(tmp_path,
                                                            bert_words):
  write(tmp_path, 'train.jsonl', *(dict(text=t) for t in 'abcd'))
  write(tmp_path, 'test.jsonl', pair('a', 'b', 0.5), pair('c', 'd', 0.75),
        pair('e', 'f', 1.0))
  config = config_lib.base()
  config.batch_size = 2
  config.data.name = 'sentences'
  config.data.source_dir = str(tmp_path / 'files')
  config.data.data_dir = str(tmp_path / 'data')
  config.data.options = dict(tokenizer=bert_words, length=5)
  config.evaluation.split = config.evaluation.final = 'test'
  config.evaluation.batch_size = 4
  data = pipeline.build_data(config, shards=4)
  data.check()
  assert data.spec.inputs.shape == data.spec.mask.shape == (2, 5)
  batch, = data.evaluation('test')
  assert batch.inputs.shape == batch.mask.shape == (4, 2, 5)
  assert batch.labels[:3].tolist() == [0.5, 0.75, 1.0]
  assert batch.labels.dtype == np.float32
  assert not batch.mask[3].any() and batch.mask[:3].sum() == 18
  assert data.num_classes is None


def test_pruned_sentences_decode_to_the_same(tmp_path, bert_words):
  write(tmp_path, 'train.jsonl', dict(text='b d'))
  write(tmp_path, 'test.jsonl', pair('a', 'b', 1.0))
  opened = open_split(tmp_path, bert_words, prune=True)
  # Special tokens, b and d are kept: 0 to 3, 5 and 7.
  assert opened.text.kept_ids.tolist() == [0, 1, 2, 3, 5, 7]
  assert opened[0]['tokens'].tolist() == [2, 4, 5, 3, 0]
  pairs = open_split(tmp_path, bert_words, 'test', prune=True)
  assert pairs[0]['tokens'].tolist() == [[2, 1, 3, 0, 0], [2, 4, 3, 0, 0]]


def test_pieces_beyond_the_truncation_are_kept(tmp_path, merging):
  # Without bc, which is truncated, `xabc` would be x, ab, c.
  write(tmp_path, 'train.jsonl', dict(text='xabc'), dict(text='ab'))
  pruned = open_split(tmp_path, merging, length=2, prune=True)
  kept_ids = pruned.text.kept_ids
  assert kept_ids.tolist() == [0, 1, 2, 3, 4, 5, 6]
  assert kept_ids[pruned[0]['tokens']].tolist() == [4, 1]  # x, a.


def test_pieces_of_pairs_beyond_the_truncation_are_kept(tmp_path, merging):
  write(tmp_path, 'train.jsonl', pair('ab', 'xabc', 1.0))
  pruned = open_split(tmp_path, merging, length=2, prune=True)
  assert pruned.text.kept_ids[pruned[0]['tokens']].tolist() == [[6, 0], [4, 1]]


@pytest.mark.parametrize('name', ['sentences', 'pairs', 'masked_text'])
def test_pruning_keeps_tokens_of_texts_that_hold_special_ones(tmp_path, name):
  """Only the first word has a mark before it, which <s> keeps it from being."""
  made = tokenizers.Tokenizer(models.WordLevel({
      token: i for i, token in enumerate(
          ['<unk>', '<s>', '</s>', '<mask>', 'a', '\u2581a'])},
      unk_token='<unk>'))
  made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first')
  made.add_special_tokens(['<unk>', '<s>', '</s>', '<mask>'])
  made.post_processor = processors.TemplateProcessing(
      single='<s> $A </s>', special_tokens=[('<s>', 1), ('</s>', 2)])
  (tmp_path / 'pieces').mkdir()
  made.save(str(tmp_path / 'pieces' / 'tokenizer.json'))
  text = '<s>a</s>'
  assert made.encode(text, add_special_tokens=False).ids == [1, 4, 2]
  assert made.encode('a').ids == [1, 5, 2]
  write(tmp_path, 'train.jsonl',
        pair(text, text, 1.0) if name == 'pairs' else dict(text=text))
  opened = source.open_source(
      'masked_text' if name == 'masked_text' else 'sentences', 'train',
      options=dict(tokenizer=str(tmp_path / 'pieces'), length=3, prune=True),
      source_dir=str(tmp_path / 'files'), data_dir=str(tmp_path / 'data'))
  kept = opened.text.kept_ids[opened[0]['tokens']].tolist()
  assert kept == ([[1, 5, 2]] * 2 if name == 'pairs' else [1, 5, 2])


def test_pruning_to_a_split_without_texts_is_refused(tmp_path, bert_words):
  (tmp_path / 'files').mkdir()
  (tmp_path / 'files' / 'train.txt').write_text('')
  write(tmp_path, 'test.jsonl', dict(text='a'))
  with pytest.raises(checks.DataError, match="Split 'train' must hold texts"):
    open_split(tmp_path, bert_words, 'test', prune=True)


@pytest.mark.parametrize('row, read', [
    (dict(text='a', other='b'), ['text']),
    (pair('a', 'b', 0.5) | dict(other='c'), [*pair('a', 'b', 0.5)]),
])
def test_unused_columns_of_parquet_are_not_read(
    tmp_path, bert_words, monkeypatch, row, read):
  (tmp_path / 'files').mkdir()
  parquet.write_table(pyarrow.Table.from_pylist([row]),
                      tmp_path / 'files' / 'train.parquet')
  requested, inner = [], parquet.ParquetFile.iter_batches

  def spy(self, *args, columns, **options):
    requested.append(columns)
    return inner(self, *args, columns=columns, **options)

  monkeypatch.setattr(parquet.ParquetFile, 'iter_batches', spy)
  assert len(open_split(tmp_path, bert_words)) == 1
  assert requested == [read] * len(requested) != []


@pytest.mark.parametrize('score', [None, 'high', float('nan'), True])
def test_score_must_be_a_number(tmp_path, bert_words, score):
  write(tmp_path, 'train.jsonl', pair('a', 'b', 1.0), pair('a', 'b', score))
  with pytest.raises(checks.DataError,
                     match="line 2 .* must have a finite number in the field "
                     "'score'"):
    open_split(tmp_path, bert_words)


def test_other_fields_are_refused(tmp_path, bert_words):
  write(tmp_path, 'train.jsonl', dict(sentence1='a', score=1.0))
  with pytest.raises(checks.DataError,
                     match="line 1 .* the field 'text', or the fields"):
    open_split(tmp_path, bert_words)


def test_row_without_room_for_a_word_is_refused(tmp_path, bert_words):
  write(tmp_path, 'train.jsonl', dict(text='a'))
  with pytest.raises(checks.ConfigError, match=(
      'config.data.options.length must be at least 4; got 3')):
    open_split(tmp_path, bert_words, length=3)


def test_empty_split_is_refused(tmp_path, bert_words):
  write(tmp_path, 'train.jsonl')
  with pytest.raises(checks.DataError, match="Split 'train' must hold texts"):
    open_split(tmp_path, bert_words)
