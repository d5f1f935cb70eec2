"""Triples: columns worked out by hand, and files as people have them."""

import json
import logging

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from haikd.core import checks
from haikd.data import source

# In `bert_words` a is 4, b is 5 and so on; 2 is [CLS], 3 is [SEP], 0 pads.
TEXTS = dict(query='a', positive='b')
ROW = dict(TEXTS, negatives=['c', 'd'], scores=[3, -1, 0.5])


def open_split(folder, tokenizer, *rows, split='train', name='train.jsonl',
               **options):
  (folder / 'files').mkdir(exist_ok=True)
  path = folder / 'files' / name
  if name.endswith('.parquet'):
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
  else:
    path.write_text(''.join(
        row if isinstance(row, str) else f'{json.dumps(row)}\n'
        for row in rows))
  return source.open_source(
      'triples', split,
      options=dict(dict(tokenizer=tokenizer, length=4, num_negatives=2),
                   **options),
      source_dir=str(folder / 'files'), data_dir=str(folder / 'data'))


def words(row):
  """The words of each text; '' for one that is missing."""
  return [''.join(chr(ord('a') + i - 4) for i in tokens[mask] if i > 3)
          for tokens, mask in zip(row['tokens'], row['mask'])]


def test_a_row_has_the_query_the_positive_and_negatives(tmp_path, bert_words):
  opened = open_split(tmp_path, bert_words, ROW)
  assert opened.num_classes is None and len(opened) == 1
  row = opened[0]
  assert row['tokens'].tolist() == [
      [2, 4, 3, 0], [2, 5, 3, 0], [2, 6, 3, 0], [2, 7, 3, 0]]
  np.testing.assert_array_equal(row['mask'], row['tokens'] > 0)
  assert row['label'].tolist() == [3, -1, 0.5]
  assert row['label'].dtype == np.float32


@pytest.mark.parametrize('name, row, options, texts, label', (
    # Numbered columns and one of scores, as sentence-transformers has them.
    ('train.jsonl',
     dict(TEXTS, negative_1='c', negative_2='d', label=[1, 2, 3]), {}, 'abcd',
     [1, 2, 3]),
    ('train.jsonl', dict(TEXTS, negative1='c', score=[1, 2]), {}, 'abc',
     [1, 2, 0]),
    # A margin, as of the files of Margin-MSE.
    ('train.jsonl', dict(TEXTS, negative='c', score=4.5),
     dict(margins='score'), 'abc', [0, -4.5, 0]),
    # FlagEmbedding's fields.
    ('train.jsonl', dict(query='a', pos=['b'], neg=['c', 'd'], pos_scores=[5],
                         neg_scores=[1, 2]),
     dict(positive='pos', negatives='neg', scores=('pos_scores', 'neg_scores')),
     'abcd', [5, 1, 2]),
    # A null is no text; it has no score, or one that is not used.
    ('train.jsonl', dict(ROW, negatives=[None, 'd'], scores=[3, None, 1]), {},
     'abd', [3, 1, 0]),
    ('train.jsonl', dict(ROW, scores=None), dict(scores=()), 'abcd', None),
    ('train.parquet', ROW, {}, 'abcd', [3, -1, 0.5]),
    ('train.csv', 'query,positive,n1,n2,s0,s1,s2\na,b,,d,3,,1\n',
     dict(negatives=('n1', 'n2'), scores=('s0', 's1', 's2')), 'abd', [3, 1, 0]),
    ('train.csv', 'query,positive,negatives,scores\n'
     'a,b,"[""c"", ""d""]","[3, 1, 2]"\n', {}, 'abcd', [3, 1, 2]),
))
def test_files_as_people_have_them(tmp_path, bert_words, name, row, options,
                                   texts, label):
  opened = open_split(tmp_path, bert_words, row, name=name, **options)
  assert words(opened[0]) == [*texts, *[''] * (4 - len(texts))]
  if label is None:
    assert 'label' not in opened[0]
  else:
    assert opened[0]['label'].tolist() == label


def test_more_negatives_than_have_room_are_said(tmp_path, bert_words, caplog):
  with caplog.at_level(logging.INFO, 'haikd'):
    opened = open_split(
        tmp_path, bert_words, ROW, dict(TEXTS, negatives=[], scores=[2]),
        num_negatives=1)
  assert words(opened[0]) == ['a', 'b', 'c']
  assert opened[0]['label'].tolist() == [3, -1]
  assert words(opened[1]) == ['a', 'b', '']
  for says in ('of 2 records: 1 have more than config.data.options.num_negat',
               'of 2 records: 1 have no negative; losses on scores leave'):
    assert says in caplog.text


def test_prompts_precede_texts(tmp_path, bert_words):
  opened = open_split(tmp_path, bert_words, ROW, length=5, query_prompt='e ',
                      document_prompt='f ')
  assert words(opened[0]) == ['ea', 'fb', 'fc', 'fd']


def test_pruned_and_doubly_tokenised_rows_have_the_same_texts(tmp_path,
                                                              bert_words):
  opened = open_split(tmp_path, bert_words, dict(ROW, query='e'), prune=True,
                      student_tokenizer=bert_words)
  # Special tokens, b, c, d and e are kept.
  assert opened.text.kept_ids.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
  row = opened[0]
  assert row['tokens'][:, 1].tolist() == [7, 4, 5, 6]
  np.testing.assert_array_equal(row['tokens'], row['student/tokens'])
  assert row['label'].tolist() == [3, -1, 0.5]


@pytest.mark.parametrize('row, options, match', (
    (dict(ROW, scores=[3, 1]), {},
     "line 2 .* a score for the positive and for each negative in 'scores', 3 "
     'in all; got 2. If they are .* set config.data.options.margins'),
    (dict(ROW, scores=[3, 1, None]), {},
     "line 2 .* a finite number as the score of each text in 'scores'; got "
     'None for text 3 of 3'),
    (dict(ROW, scores=[3, 1, float('nan')]), {}, 'finite number .* got nan'),
    (dict(ROW, scores=[3, 1, 'x']), {}, "finite number .* got 'x'"),
    (dict(ROW, m=[1]), dict(margins='m', scores=()),
     "line 2 .* a margin for each negative in 'm', 2 in all; got 1.$"),
    (dict(ROW, negatives=['c', 3]), {},
     "line 2 .* must have texts in the field 'negatives'; got 3"),
    (dict(ROW, positive=['b', 'c']), {},
     "line 2 .* one text in the field 'positive'; got 2. Write a record for"),
    (dict(ROW, positive=None), {}, "one text in the field 'positive'; got 0"),
    (dict(TEXTS, scores=[1]), {}, "line 2 .* must have the field 'negatives'"),
    (dict(TEXTS, negatives=['c', 'd']), {}, "must have the field 'scores'"),
))
def test_records_that_cannot_be_meant_are_refused(tmp_path, bert_words, row,
                                                  options, match):
  with pytest.raises(checks.DataError, match=match):
    open_split(tmp_path, bert_words, dict(ROW, m=[1, 2]), row, **options)


def test_lists_in_csv_are_json(tmp_path, bert_words):
  with pytest.raises(checks.DataError, match="lists as JSON .* 'negatives'; g"):
    open_split(tmp_path, bert_words,
               'query,positive,negatives\na,b,"[\'c\' \'d\']"\n',
               name='train.csv')


@pytest.mark.parametrize('row, options, error, match', (
    (dict(TEXTS, other='c'), {}, checks.DataError,
     "must have the field 'negatives' or 'negative'; got .*'other'"),
    (ROW, dict(scores='scores', margins='m'), checks.ConfigError,
     "must have scores or margins; got both, 'scores' and 'm'"),
    (ROW, dict(num_negatives=0), checks.ConfigError,
     'num_negatives must be a positive int; got 0'),
    (ROW, dict(length=2), checks.ConfigError, 'data.options.length must be'),
))
def test_options_that_cannot_work_are_refused(tmp_path, bert_words, row,
                                              options, error, match):
  with pytest.raises(error, match=match):
    open_split(tmp_path, bert_words, row, **options)
