"""Documents as batches: columns worked out by hand."""

import json
import logging
import pathlib

import numpy as np
import pytest
import tokenizers
from tokenizers import processors

from haikd import config as config_lib
from haikd.core import checks
from haikd.data import description
from haikd.data import pipeline
from haikd.data import source
from haikd.data.text import tokenizer as tokenizer_lib

# In the tokenizer `words` a is 3, b is 4 and so on; 2 ends a text, 0 pads.
DOCUMENTS = 'a b c\n\nd\n\na b c d e f'


def open_split(folder, tokenizer, split='train', **options):
  options = dict(tokenizer=tokenizer, length=4, documents='paragraph',
                 **options)
  return source.open_source('text', split, options=options,
                            source_dir=str(folder / 'files'),
                            data_dir=str(folder / 'data'))


def write(folder, text, name='train.txt'):
  (folder / 'files').mkdir(exist_ok=True)
  (folder / 'files' / name).write_text(text)


def listed(opened, key):
  return [opened[i][key].astype(int).tolist() for i in range(len(opened))]


def test_packed_rows(tmp_path, words):
  write(tmp_path, DOCUMENTS)
  opened = open_split(tmp_path, words)
  assert opened.num_classes == 13
  assert listed(opened, 'tokens') == [
      [3, 4, 5, 2], [6, 2, 3, 4], [5, 6, 7, 8], [2, 0, 0, 0]]
  assert listed(opened, 'segments') == [
      [1, 1, 1, 1], [1, 1, 2, 2], [1, 1, 1, 1], [1, 0, 0, 0]]
  assert listed(opened, 'positions') == [
      [0, 1, 2, 3], [0, 1, 0, 1], [0, 1, 2, 3], [0, 0, 0, 0]]
  assert listed(opened, 'mask') == [[1] * 4, [1] * 4, [1] * 4, [1, 0, 0, 0]]
  assert listed(opened, 'label') == [
      [4, 5, 2, -100], [2, -100, 4, -100], [6, 7, 8, -100], [-100] * 4]
  assert listed(opened, 'target_mask') == [
      [1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0] * 4]
  for key in ('tokens', 'segments', 'positions', 'label'):
    assert opened[0][key].dtype == np.int32


@pytest.mark.parametrize('padding', ['right', 'left'])
def test_padded_rows(tmp_path, words, padding):
  write(tmp_path, DOCUMENTS)
  opened = open_split(tmp_path, words, form='padded', padding=padding)
  assert opened[0].keys() == {'tokens', 'mask', 'label', 'target_mask'}
  right = dict(
      tokens=[[3, 4, 5, 2], [6, 2, 0, 0], [3, 4, 5, 6], [7, 8, 2, 0]],
      label=[[4, 5, 2, -100], [2, -100, -100, -100], [4, 5, 6, -100],
             [8, 2, -100, -100]])
  left = dict(
      tokens=[[3, 4, 5, 2], [0, 0, 6, 2], [3, 4, 5, 6], [0, 7, 8, 2]],
      label=[[4, 5, 2, -100], [-100, -100, 2, -100], [4, 5, 6, -100],
             [-100, 8, 2, -100]])
  for key, rows in dict(right=right, left=left)[padding].items():
    assert listed(opened, key) == rows
  mask = (np.array(listed(opened, 'tokens')) > 0).astype(int)
  assert listed(opened, 'mask') == mask.tolist()


def test_tokens_that_the_tokenizer_adds_are_kept(tmp_path, bpe, bert_words):
  write(tmp_path, 'a b')
  opened = open_split(tmp_path, bpe, form='padded')
  tokens = [t for row in listed(opened, 'tokens') for t in row]
  assert tokens[0] == 0 and 1 in tokens  # <s>, and </s>, which it does not add.
  opened = open_split(tmp_path, bert_words, form='padded')
  assert listed(opened, 'tokens') == [[2, 4, 5, 3]]  # One [SEP], not two.


# As transformers has '<s>a' and 'a' of this tokenizer, without special tokens
# in the first and with them in the second.
@pytest.mark.parametrize('options, begins', [
    (dict(), [1, 1]),
    (dict(add_special_tokens=True), [2, 1]),
    (dict(add_special_tokens=False), [1, 0]),
    (dict(bos='</s>', eos='a'), [1, 0]),
])
def test_special_tokens_are_not_added_to_what_has_them(tmp_path, bpe, caplog,
                                                       options, begins):
  write(tmp_path, '<s>it\n\nit')
  for _ in range(2):  # The second time, its preparation is complete.
    caplog.clear()
    with caplog.at_level(logging.INFO, 'haikd'):
      opened = open_split(tmp_path, bpe, form='padded', **options)
    assert (("split 'train', of 2 records: 1 texts hold special tokens that "
             "texts get ('<s>', '</s>')") in caplog.text) == (not options)
  assert [row.count(0) for row in listed(opened, 'tokens')] == begins


# transformers 5.24 encodes 'a' as [4] of the first, and as [2, 4] of the
# second: it follows tokenizer.json. Version 4 follows the field.
@pytest.mark.parametrize('adds, field, ids, text, remedy', [
    (False, True, [4, 3], "add_bos_token=True in tokenizer_config.json "
     "contradicts tokenizer.json, which does not add '[CLS]'. tokenizer.json "
     "counts, as in transformers 5;", dict(bos='[CLS]')),
    (True, False, [2, 4, 3], "add_bos_token=False in tokenizer_config.json "
     "contradicts tokenizer.json, which adds '[CLS]'",
     dict(add_special_tokens=False)),
    (True, True, [2, 4, 3], None, dict()),
])
def test_field_that_contradicts_the_tokenizer_is_named(
    tmp_path, bert_words, caplog, adds, field, ids, text, remedy):
  made = tokenizers.Tokenizer.from_file(f'{bert_words}/tokenizer.json')
  made.post_processor = processors.TemplateProcessing(
      single='[CLS] $A' if adds else '$A', special_tokens=[('[CLS]', 2)])
  made.save(f'{bert_words}/tokenizer.json')
  pathlib.Path(bert_words, 'tokenizer_config.json').write_text(json.dumps(dict(
      bos_token='[CLS]', add_bos_token=field, add_eos_token=False,
      eos_token='[SEP]')))
  write(tmp_path, 'a')
  with caplog.at_level(logging.INFO, 'haikd'):
    row = open_split(tmp_path, bert_words, form='padded')[0]
  assert row['tokens'][row['mask']].tolist() == ids
  assert (text or '') in caplog.text and len(caplog.records) == bool(text)
  for option, value in remedy.items():  # What the message says helps.
    assert f'config.data.options.{option}={value!r}' in caplog.text
    row = open_split(tmp_path, bert_words, form='padded', **remedy)[0]
    assert row['tokens'][row['mask']].tolist() == (
        [4, 3] if adds else [2, 4, 3])


def test_options_name_the_tokens_of_the_data(tmp_path, words):
  write(tmp_path, DOCUMENTS)
  opened = open_split(tmp_path, words, form='padded', eos='j', bos='i',
                      pad='h')
  assert listed(opened, 'tokens')[:2] == [[11, 3, 4, 5], [12, 10, 10, 10]]
  assert listed(opened, 'mask')[1] == [1, 0, 0, 0]
  # The tokenizer that is exported is not changed by what the data uses.
  assert tokenizer_lib.load(opened.text.tokenizer).special.eos == 2


def test_pruning_keeps_the_tokens_of_the_data(tmp_path, merging):
  write(tmp_path, 'ab')
  opened = open_split(tmp_path, merging, form='padded', eos='a', pad='bc',
                      prune=True)
  kept = tokenizer_lib.load(opened.text.tokenizer)
  assert [kept.token_of(i) for i in opened[0]['tokens']] == [
      'ab', 'a', 'bc', 'bc']


def test_documents_without_text_are_left_out(tmp_path, words):
  write(tmp_path, '{"text": ""}\n{"text": "a"}\n', 'train.jsonl')
  opened = open_split(tmp_path, words, form='padded')
  assert listed(opened, 'tokens') == [[3, 2, 0, 0]]
  assert opened.info['documents'] == 2 and opened.info['tokens'] == 2


def test_inputs_of_a_batch_have_names(tmp_path, words):
  write(tmp_path, DOCUMENTS)
  config = config_lib.base()
  config.batch_size = 2
  config.data.name = 'text'
  config.data.source_dir = str(tmp_path / 'files')
  config.data.data_dir = str(tmp_path / 'data')
  config.data.options = dict(tokenizer=words, length=4, documents='paragraph')
  described, num_classes, _ = description.describe(config)
  data = pipeline.build_data(config)
  batch = next(data.train())
  assert batch.inputs.keys() == {'tokens', 'segments', 'positions'}
  assert described == data.spec and num_classes == data.num_classes == 13
  assert tokenizer_lib.load(data.text_of('student').tokenizer).id_of('a') == 3
  assert data.text_of('student').kept_ids is None
  config.data.options.form = 'padded'
  assert description.describe(config)[0].inputs.shape == (2, 4)
  assert pipeline.build_data(config).spec.inputs.shape == (2, 4)


def test_a_data_set_without_text_has_no_tokenizer():
  config = config_lib.base()
  config.data.name = 'synthetic'
  config.data.options = dict(size=9, shape=(2,), num_classes=2)
  assert pipeline.build_data(config).text_of('student') is None


def test_pruned_data_decodes_to_the_same_texts(tmp_path, bpe):
  write(tmp_path, 'the cat and the mat')
  write(tmp_path, 'a theory of 1234', 'test.txt')
  unpruned = {split: open_split(tmp_path, bpe, split)
              for split in ('train', 'test')}
  pruned = {split: open_split(tmp_path, bpe, split, prune=True)
            for split in ('test', 'train')}  # The order does not matter.
  kept_ids = pruned['train'].text.kept_ids
  np.testing.assert_array_equal(kept_ids, pruned['test'].text.kept_ids)
  assert pruned['train'].num_classes == pruned['test'].num_classes
  assert pruned['test'].num_classes == len(kept_ids) < unpruned[
      'test'].num_classes
  for i in range(len(unpruned['train'])):  # Token by token.
    np.testing.assert_array_equal(kept_ids[pruned['train'][i]['tokens']],
                                  unpruned['train'][i]['tokens'])
  tokenizer = tokenizer_lib.load(pruned['test'].text.tokenizer)
  tokens = np.concatenate([row['tokens'][row['mask']]
                           for row in (pruned['test'][i]
                                       for i in range(len(pruned['test'])))])
  assert tokenizer.decode(tokens) == '<s>a theory of 1234</s>'


def test_vocabulary_may_exceed_the_tokenizer(tmp_path, words):
  write(tmp_path, DOCUMENTS)
  assert open_split(tmp_path, words, vocabulary=64).num_classes == 64


def test_slices_know_their_tokenizer(tmp_path, words):
  write(tmp_path, DOCUMENTS)
  opened = open_split(tmp_path, words, 'train[1:]')
  assert len(opened) == 3 and opened.text.tokenizer


@pytest.mark.parametrize('options, text', [
    (dict(form='pact'), "config.data.options.form must be 'packed' or 'padded';"
     " got 'pact'"),
    (dict(padding='up'), "options.padding must be 'right' or 'left'; got 'up'"),
    (dict(vocabulary=5), 'config.data.options.vocabulary must be at least the '
     'size of the tokenizer, 13; got 5'),
    (dict(prune=True, vocabulary=64), 'config.data.options.vocabulary must be '
     'None with prune=True, .*; got 64'),
    (dict(prune=1), 'prune must be of type bool'),
    (dict(eos='</t>'), "config.data.options.eos must be a token of the "
     "tokenizer; got '</t>'. Did you mean '</s>'"),
    (dict(bos='a', add_special_tokens=False), 'add_special_tokens must be None '
     "or True with a bos; got False, bos='a'. Leave one"),
])
def test_options_out_of_range_are_refused(tmp_path, words, options, text):
  write(tmp_path, DOCUMENTS)
  with pytest.raises(checks.ConfigError, match=text):
    open_split(tmp_path, words, **options)


@pytest.mark.parametrize('content', ['', '\n \n\n'])
def test_empty_split_is_refused(tmp_path, words, content):
  write(tmp_path, content)
  for _ in range(2):  # The second time, its preparation is complete.
    with pytest.raises(checks.DataError, match="Split 'train' must hold texts"):
      open_split(tmp_path, words)


def test_tokenizer_that_cannot_end_a_text_is_refused(tmp_path, words):
  write(tmp_path, DOCUMENTS)
  (tmp_path / 'words' / 'tokenizer_config.json').write_text(
      json.dumps(dict(eos_token=None)))
  with pytest.raises(checks.DataError, match=(
      'config.data.options.tokenizer must have a token that ends texts; .* '
      'Name one in config.data.options.eos.')):
    open_split(tmp_path, words)
  open_split(tmp_path, words, eos='</s>')


def test_bucket_is_refused(words):
  with pytest.raises(checks.DataError, match=(
      "config.data.data_dir must be a local folder .*; got 'gs://b/x'")):
    source.open_source('text', 'train', source_dir='.', data_dir='gs://b/x',
                       options=dict(tokenizer=words, length=4))
