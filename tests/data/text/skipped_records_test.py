"""Records of texts that cannot be used: left out one by one, and named."""

import json
import logging
import pathlib

import numpy as np
import pytest

from haikd.core import checks
from haikd.data import reading as reading_lib
from haikd.data import source
from haikd.data.text import shards
from haikd.data.text import text_files

SKIP = reading_lib.Reading(on_error='skip', max_skipped=4)

USER = dict(role='user', content='a b')
ANSWER = dict(role='assistant', content='c')
TEMPLATE = (
    '{% for m in messages %}{% if m.content == "j" %}{{ raise_exception("no j")'
    ' }}{% endif %}{{ m.role[0] | replace("u", "a") | replace("s", "b") }} '
    '{{ m.content }}{% if m.content != "i" %} </s> {% else %} {% endif %}'
    '{% endfor %}{% if add_generation_prompt %}a {% endif %}')

PAIR = dict(sentence1='a', sentence2='b', score=0.5)
TRIPLE = dict(query='a', positive='b', negatives=['c', 'd'], scores=[3, 2, 1])
# The data set, its options, a record that can be used, and some that cannot,
# each with what is said of it.
CASES = {
    'text': ('text', {}, dict(text='a b c'), (
        (dict(other='a'), "have the field 'text'"),
        (dict(text=3), "have a text in the field 'text'; got 3"),
        (dict(text='\ud800'), 'have whole characters'))),
    'masked_text': ('masked_text', {}, dict(text='a b'), (
        (dict(), "have the field 'text'"),)),
    'sentences': ('sentences', {}, dict(text='a b'), (
        (dict(text=None), "have a text in the field 'text'"),
        (dict(txt='a'), "must have the field 'text'"))),
    'pairs': ('sentences', {}, PAIR, (
        (dict(PAIR, score='x'), 'have a finite number'),
        (dict(PAIR, sentence2=2), "text in the field 'sentence2'"),
        (dict(sentence1='a'), "field 'sentence2'"))),
    'labelled': ('labelled_sentences', dict(classes=('x', 'y')),
                 dict(text='a', label='y'), (
                     (dict(text='a', label='z'), 'have one of 2 classes'),
                     (dict(text='a'), "have the field 'label'"),
                     (dict(label='x'), "have the field 'text'"))),
    'unnamed': ('labelled_sentences', {}, dict(text='a', label=1), (
        (dict(text='a', label=None), "text in the field 'label'"),
        (dict(text=7, label=0), "text in the field 'text'"))),
    'completions': ('completions', {}, dict(prompt='a', completion='b'), (
        (dict(prompt='a'), "have the field 'completion'"),
        (dict(prompt=[USER], completion='b'), 'got a list'))),
    'triples': ('triples', dict(num_negatives=2), TRIPLE, (
        (dict(TRIPLE, scores=[1]), 'a score for the positive'),
        (dict(query='a'), "have the field"),
        (dict(TRIPLE, positive=['a', 'b']), 'have one text'))),
    'chat': ('chat', dict(chat_template=TEMPLATE), dict(
        messages=[USER, ANSWER]), (
            (dict(messages=[USER]), 'have a message of the assistant'),
            (dict(messages=[dict(role='x'), ANSWER]), 'have a role of'),
            (dict(messages=[dict(USER, content='j'), ANSWER]),
             "suit the chat template; got the error 'no j'"),
            (dict(messages=[USER, dict(ANSWER, content='i')]),
             'have a token that ends each answer'))),
}


@pytest.fixture
def open_case(tmp_path, words, bert_words):
  """Opens records as a data set; returns all its columns."""

  def call(case, records, reading, name='train.jsonl'):
    folder = tmp_path / 'files'
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(''.join(
        f'{json.dumps(record)}\n' for record in records))
    dataset, options, _, _ = CASES[case]
    is_language = dataset in ('text', 'completions', 'chat')
    (pathlib.Path(bert_words) / 'tokenizer_config.json').write_text(
        '{"mask_token": "j"}')
    opened = source.open_source(
        dataset, 'train', options=dict(
            options, length=8, tokenizer=words if is_language else bert_words),
        source_dir=str(folder), data_dir=str(tmp_path / 'data'),
        reading=reading)
    return [opened[i] for i in range(len(opened))]

  return call


def assert_same(rows, expected):
  assert len(rows) == len(expected)
  for row, other in zip(rows, expected):
    assert row.keys() == other.keys()
    for key in row:
      np.testing.assert_array_equal(row[key], other[key], err_msg=key)


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('first', [True, False])
def test_what_one_record_causes_leaves_out_that_record(
    open_case, caplog, case, first):
  caplog.set_level(logging.INFO, 'haikd')
  _, _, good, faults = CASES[case]
  expected = open_case(case, [good, good], reading_lib.Reading())
  for bad, said in faults:
    records = [bad, good, good] if first else [good, bad, good]
    caplog.clear()
    assert_same(open_case(case, records, SKIP), expected)
    number = records.index(bad) + 1
    assert said in caplog.text, caplog.text
    assert "split 'train': 1 skipped so far of the records" in caplog.text
    assert f'line {number} of ' in caplog.text
    assert '1 records cannot be used and are left out' in caplog.text
    with pytest.raises(checks.DataError, match=f'line {number} of '):
      open_case(case, records, reading_lib.Reading())


@pytest.mark.parametrize('case', CASES)
def test_what_all_records_cause_is_refused_with_the_first(open_case, case):
  _, _, _, faults = CASES[case]
  bad, said = faults[0]
  for size in (3, 9):  # Below and above the limit.
    with pytest.raises(checks.DataError) as caught:
      open_case(case, [bad] * size, SKIP)
    assert said.removeprefix('must ') in str(caught.value)
    assert 'line 1 of ' in str(caught.value)


def test_more_than_the_limit_are_refused(open_case):
  good, bad = dict(text='a'), dict(text=1)
  match = ("split 'train' must have at most 4 broken records, "
           'config.data.max_skipped; got 5. The first one: line 2 of')
  with pytest.raises(checks.DataError, match=match):
    open_case('text', [good] + [bad] * 5, SKIP)
  assert open_case('text', [good] + [bad] * 4, SKIP)
  # Also if all rows are there already.
  with pytest.raises(checks.DataError, match='at most 3 broken records'):
    open_case('text', [good] + [bad] * 4, SKIP._replace(max_skipped=3))


def test_a_template_that_takes_for_ever_is_never_skipped(open_case):
  dataset, options, good, _ = CASES['chat']
  slow = dict(options, chat_template='{% for i in range(99999) %}{% for j in '
              'range(99999) %}{% endfor %}{% endfor %}')
  CASES['slow'] = dataset, slow, good, ()
  try:
    with pytest.raises(checks.DataError, match='must render a chat in 1 sec'):
      open_case('slow', [good] * 2, SKIP)
  finally:
    del CASES['slow']


def test_what_a_killed_preparation_skipped_is_counted(
    open_case, tmp_path, monkeypatch):
  """The first shard is kept, the others are written by a second start."""
  monkeypatch.setattr(shards, 'SHARD_CHARACTERS', 8)
  monkeypatch.setattr(shards, 'BATCH_CHARACTERS', 4)
  good, bad = dict(text='a b c d'), dict(text=1)
  records = [good, bad, good, bad, good, bad, good, good]
  whole = open_case('text', records, SKIP)
  info, = (tmp_path / 'data').rglob('info.json')
  expected = json.loads(info.read_text())
  assert expected['skipped'] == 3 and len(expected['files']) > 2
  info.unlink()
  for path in sorted(info.parent.glob('0*'))[2:]:
    path.unlink()
  assert_same(open_case('text', records, SKIP), whole)
  assert json.loads(info.read_text()) == expected
  info.unlink()
  for path in sorted(info.parent.glob('0*'))[2:]:
    path.unlink()
  with pytest.raises(checks.DataError, match='at most 2 broken records'):
    open_case('text', records, SKIP._replace(max_skipped=2))


def test_digests_differ_where_records_are_skipped(tmp_path):
  (tmp_path / 'train.txt').write_text('a')
  found = set()
  for on_error in reading_lib.ON_ERROR:
    location = text_files.Location(
        str(tmp_path), None, None, 'file', 'text',
        reading=reading_lib.Reading(on_error=on_error))
    found.add(text_files.open_corpus(location, 'train', tmp_path / 'c').digest)
  assert len(found) == 2
