"""Prompts and completions: columns worked out by hand."""

import json

import pytest

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
      options=dict(tokenizer=tokenizer, length=6, **options),
      source_dir=str(folder / 'files'), data_dir=str(folder / 'data'))


# In the tokenizer `words` a is 3, b is 4 and so on; 2 ends a text, 0 pads.
@pytest.mark.parametrize('prompt, completion, tokens, label', [
    ('a b', 'c', [3, 4, 5, 2, 0, 0], [-100, 5, 2, -100, -100, -100]),
    ('', 'c d', [5, 6, 2, 0, 0, 0], [6, 2, -100, -100, -100, -100]),
    ('a b c', 'd e', [3, 4, 5, 6, 7, 2], [-100, -100, 6, 7, 2, -100]),
    # Too long: the prompt loses its beginning, then the completion its end.
    ('a b c d', 'e f', [4, 5, 6, 7, 8, 2], [-100, -100, 7, 8, 2, -100]),
    ('a b', 'a b c d e f g', [3, 4, 5, 6, 7, 8], [4, 5, 6, 7, 8, -100]),
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
  row = open_rows(tmp_path, words, dict(q='a', a='b'), padding='left',
                  prompt='q', completion='a')[0]
  assert row['tokens'].tolist() == [0, 0, 0, 3, 4, 2]
  assert row['label'].tolist() == [-100, -100, -100, 4, 2, -100]


def test_truncated_rows_are_counted(tmp_path, words):
  opened = open_rows(tmp_path, words, dict(prompt='a', completion='b'),
                     dict(prompt='a b c d', completion='a b'))
  assert opened.info['cut'] == 1 and opened.info['rows'] == 2


def test_special_tokens_surround_prompt_and_completion(tmp_path, bert_words):
  # [CLS] is 2 and [SEP] is 3: none between prompt and completion.
  row = open_rows(tmp_path, bert_words, dict(prompt='a', completion='b'))[0]
  assert row['tokens'].tolist() == [2, 4, 5, 3, 0, 0]


def test_missing_field_is_named(tmp_path, words):
  with pytest.raises(checks.DataError, match="must have the field 'prompt'"):
    open_rows(tmp_path, words, dict(completion='b'))


def test_description_matches_the_data(tmp_path, words):
  open_rows(tmp_path, words, dict(prompt='a', completion='b'))
  config = config_lib.base()
  config.batch_size = 1
  config.data.name = 'completions'
  config.data.source_dir = str(tmp_path / 'files')
  config.data.data_dir = str(tmp_path / 'data')
  config.data.options = dict(tokenizer=words, length=6, vocabulary=16)
  described, num_classes = description.describe(config)
  data = pipeline.build_data(config)
  assert described == data.spec and num_classes == data.num_classes == 16
