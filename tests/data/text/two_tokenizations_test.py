"""Texts in the tokens of two tokenizers: columns worked out by hand."""

import json

import numpy as np
import pytest

from haikd import config as config_lib
from haikd.data import description
from haikd.data import pipeline


def make_config(folder, name, rows, bert_words, words, **options):
  (folder / 'files').mkdir()
  for split in ('train', 'test'):
    (folder / 'files' / f'{split}.jsonl').write_text(
        ''.join(json.dumps(row) + '\n' for row in rows))
  config = config_lib.base()
  config.batch_size, config.evaluation.batch_size = 2, 4
  config.data.name = name
  config.data.source_dir = str(folder / 'files')
  config.data.data_dir = str(folder / 'data')
  config.data.options = dict(
      tokenizer=bert_words, student_tokenizer=words, length=5) | options
  return config


# In `bert_words` a is 4, 2 is [CLS], 3 is [SEP]; in `words` a is 3, and no
# special token is put around a text.
def test_each_network_gets_its_own_tokens(tmp_path, bert_words, words):
  rows = [dict(text=text) for text in ('a b', '', 'c d e f g')]
  config = make_config(tmp_path, 'sentences', rows, bert_words, words)
  data = pipeline.build_data(config, shards=4)
  batch, = data.evaluation('test')
  teacher, student = batch.view('teacher'), batch.view('student')
  assert teacher.inputs[:3].tolist() == [
      [2, 4, 5, 3, 0], [2, 3, 0, 0, 0], [2, 6, 7, 8, 3]]
  assert student.inputs[:3].tolist() == [
      [3, 4, 0, 0, 0], [0, 0, 0, 0, 0], [5, 6, 7, 8, 9]]
  # The second text has no token of the student's, and the fourth is padding.
  assert teacher.mask.sum(-1).tolist() == [4, 0, 5, 0]
  assert student.mask.sum(-1).tolist() == [2, 0, 5, 0]
  assert data.text_of('teacher').size == 14
  assert data.text_of('student').size == 13
  assert data.spec.student.inputs.shape == (2, 5)


def test_pairs_are_masked_text_by_text(tmp_path, bert_words, words):
  rows = [dict(sentence1='a', sentence2='', score=0.5),
          dict(sentence1='b', sentence2='c', score=1.0)]
  config = make_config(tmp_path, 'sentences', rows, bert_words, words)
  batch, = pipeline.build_data(config).evaluation('test')
  assert batch.mask.any(-1).tolist() == [[True, False], [True, True]]
  assert batch.student.mask.any(-1).tolist() == batch.mask.any(-1).tolist()
  assert batch.student.inputs[1].tolist() == [[4, 0, 0, 0, 0], [5, 0, 0, 0, 0]]
  assert batch.labels.tolist() == [0.5, 1.0]


def test_classes_have_pairs_with_the_types_of_each_tokenizer(
    tmp_path, bert_words, words):
  rows = [dict(text='a', other='b', label=1), dict(text='c', other='d',
                                                   label=0)]
  config = make_config(tmp_path, 'labelled_sentences', rows, bert_words, words,
                       second='other', classes=2)
  data = pipeline.build_data(config)
  assert description.describe(config)[0] == data.spec
  batch, = data.evaluation('test')
  assert batch.inputs['tokens'].tolist() == [[2, 4, 3, 5, 3], [2, 6, 3, 7, 3]]
  assert batch.inputs['types'].tolist() == [[0, 0, 0, 1, 1]] * 2
  # `words` does not tell the two sentences apart.
  assert batch.student.inputs.tolist() == [[3, 4, 0, 0, 0], [5, 6, 0, 0, 0]]
  assert batch.labels.tolist() == [1, 0]


def test_each_vocabulary_is_pruned_to_the_texts(tmp_path, bert_words, words):
  rows = [dict(text=text) for text in ('b', 'd')]
  config = make_config(tmp_path, 'sentences', rows, bert_words, words,
                       prune=True)
  data = pipeline.build_data(config)
  assert data.text_of('teacher').kept_ids.tolist() == [0, 1, 2, 3, 5, 7]
  assert data.text_of('student').kept_ids.tolist() == [0, 1, 2, 4, 6]
  batch, = data.evaluation('test[1:]')
  np.testing.assert_array_equal(batch.inputs, [[2, 5, 3, 0, 0]])
  np.testing.assert_array_equal(batch.student.inputs, [[4, 0, 0, 0, 0]])


@pytest.mark.parametrize('name', ['sentences', 'labelled_sentences'])
def test_one_tokenizer_makes_one_view(tmp_path, bert_words, name):
  rows = [dict(text='a', label=0), dict(text='b', label=1)]
  config = make_config(tmp_path, name, rows, bert_words, None)
  batch, = pipeline.build_data(config).evaluation('test')
  assert batch.student is None
  assert batch.view('student') == batch.view('teacher')
