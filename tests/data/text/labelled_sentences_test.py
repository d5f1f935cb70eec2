"""Sentences with classes: columns worked out by hand."""

import json

import pytest

from haikd import config as config_lib
from haikd.core import checks
from haikd.data import description
from haikd.data import pipeline
from haikd.data import source


def write(folder, *rows, split='train'):
  (folder / 'files').mkdir(exist_ok=True)
  (folder / 'files' / f'{split}.jsonl').write_text(
      ''.join(f'{json.dumps(row)}\n' for row in rows))


def open_split(folder, tokenizer, split='train', **options):
  return source.open_source(
      'labelled_sentences', split,
      options=dict(dict(tokenizer=tokenizer, length=7), **options),
      source_dir=str(folder / 'files'), data_dir=str(folder / 'data'))


def labels(opened):
  return [int(opened[i]['label']) for i in range(len(opened))]


# In `bert_words` a is 4, b is 5 and so on; 2 is [CLS], 3 is [SEP], 0 pads.
def test_text_with_a_number(tmp_path, bert_words):
  write(tmp_path, dict(text='a b', label=2), dict(text='c', label=0),
        dict(text='c', label=-1))
  opened = open_split(tmp_path, bert_words)
  assert opened.num_classes == 3 and labels(opened) == [2, 0, -100]
  assert opened[0].keys() == {'tokens', 'mask', 'label'}
  assert opened[0]['tokens'].tolist() == [2, 4, 5, 3, 0, 0, 0]


def test_names_are_numbered_as_in_the_split_train(tmp_path, bert_words):
  write(tmp_path, dict(text='a', label='yes'), dict(text='b', label='no'),
        dict(text='b', label='maybe'))
  write(tmp_path, dict(text='a', label='yes'), split='test')
  assert labels(open_split(tmp_path, bert_words)) == [2, 1, 0]
  opened = open_split(tmp_path, bert_words, 'test')
  assert opened.num_classes == 3 and labels(opened) == [2]


def test_classes_may_be_configured(tmp_path, bert_words):
  write(tmp_path, dict(text='a', label='no'), dict(text='b', label=1))
  opened = open_split(tmp_path, bert_words, classes=('no', 'yes', 'maybe'))
  assert opened.num_classes == 3 and labels(opened) == [0, 1]


@pytest.mark.parametrize('row, options', [
    (dict(text='a b c d', label=0), {}),
    (dict(q='a b', p='c d', label=0), dict(field='q', second='p')),
])
def test_pruning_keeps_tokens_beyond_the_truncation(tmp_path, bert_words, row,
                                                    options):
  write(tmp_path, row)
  opened = open_split(tmp_path, bert_words, length=5, prune=True, **options)
  assert opened.text.kept_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_pairs_are_one_row_with_types(tmp_path, bert_words):
  write(tmp_path, dict(q='a', p='b c', label=0))
  row = open_split(tmp_path, bert_words, field='q', second='p')[0]
  assert row['tokens'].tolist() == [2, 4, 3, 5, 6, 3, 0]
  assert row['types'].tolist() == [0, 0, 0, 1, 1, 1, 0]
  row = open_split(tmp_path, bert_words, field='q', second='p', types=False)[0]
  assert 'types' not in row


def test_tokenizer_without_types_has_no_such_column(tmp_path, words):
  write(tmp_path, dict(q='a', p='b c', label=0))
  path = tmp_path / 'words' / 'tokenizer.json'
  definition = json.loads(path.read_text())
  assert definition['post_processor'] is None
  definition['post_processor'] = dict(
      type='TemplateProcessing', special_tokens={},
      single=[dict(Sequence=dict(id='A', type_id=0))],
      pair=[dict(Sequence=dict(id=x, type_id=0)) for x in 'AB'])
  path.write_text(json.dumps(definition))
  row = open_split(tmp_path, words, field='q', second='p')[0]
  assert 'types' not in row and row['tokens'].tolist()[:4] == [3, 4, 5, 0]


@pytest.mark.parametrize('second', [None, 'other'])
@pytest.mark.parametrize('classes', [None, 2, ('no', 'yes')])
def test_description_matches_the_data(tmp_path, bert_words, second, classes):
  write(tmp_path, dict(text='a', other='b', label=1))
  config = config_lib.base()
  config.batch_size = 1
  config.data.name = 'labelled_sentences'
  config.data.source_dir = str(tmp_path / 'files')
  config.data.data_dir = str(tmp_path / 'data')
  config.data.options = dict(tokenizer=bert_words, length=7)
  if second is not None:
    config.data.options.second = second
  if classes is not None:
    config.data.options.classes = classes
  described, num_classes, _ = description.describe(config)
  data = pipeline.build_data(config)
  assert described == data.spec and num_classes == data.num_classes == 2


@pytest.mark.parametrize('label, classes, text', [
    (2, 2, "line 1 .* must have one of 2 classes in the field 'label'; got 2"),
    ('x', 2, "must have one of 2 classes in the field 'label'; got 'x'"),
    ('x', ('y', 'z'),
     r"one of 2 classes \(y, z\) in the field 'label'; got 'x'. Set config"),
    (0.5, 2, "must have one of 2 classes in the field 'label'; got 0.5"),
    (0.5, None, "must have a text in the field 'label'; got 0.5"),
])
def test_label_that_is_not_a_class_is_refused(tmp_path, bert_words, label,
                                              classes, text):
  write(tmp_path, dict(text='a', label=label))
  with pytest.raises(checks.DataError, match=text):
    open_split(tmp_path, bert_words, classes=classes)


def test_class_missing_from_the_split_train_is_refused(tmp_path, bert_words):
  write(tmp_path, dict(text='a', label='y'))
  write(tmp_path, dict(text='a', label='x'), split='test')
  with pytest.raises(checks.DataError, match=r"one of 1 classes \(y\)"):
    open_split(tmp_path, bert_words, 'test')


def test_names_and_numbers_are_not_mixed(tmp_path, bert_words):
  write(tmp_path, dict(text='a', label='y'), dict(text='a', label=1))
  with pytest.raises(checks.DataError, match=(
      "field 'label' of split 'train' must hold only names of classes, or only "
      'numbers; got both')):
    open_split(tmp_path, bert_words)


@pytest.mark.parametrize('classes', [0, (), 'ab', 1.5])
def test_invalid_classes_are_refused(tmp_path, bert_words, classes):
  write(tmp_path, dict(text='a', label=0))
  with pytest.raises(checks.ConfigError, match=(
      'config.data.options.classes must be the number of classes, or a tuple')):
    open_split(tmp_path, bert_words, classes=classes)
