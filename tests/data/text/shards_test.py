"""Names of prepared folders: fixed, so that earlier data is found again."""

import gc
import hashlib
import json
import pathlib
import threading

import pytest

from haikd.data import source
from haikd.data.text import shards
from haikd.data.text import text_records
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib

ROWS = [
    dict(text='a', q='a', p='b', label='no', sentence1='a', sentence2='b',
         score=0.5),
    dict(text='b', q='b', p='a', label='yes', sentence1='b', sentence2='a',
         score=1.5),
]


@pytest.fixture
def open_split(tmp_path, bert_words, monkeypatch):
  """A function that prepares a data set and returns its recipe and folder."""
  (tmp_path / 'files').mkdir()
  (tmp_path / 'files' / 'train.jsonl').write_text(
      ''.join(f'{json.dumps(row)}\n' for row in ROWS))
  written, write = [], shards.write

  def spy(folder, recipe, corpus, show):
    written.append((recipe, folder))
    write(folder, recipe, corpus, show)

  monkeypatch.setattr(shards, 'write', spy)

  def run(name, options):
    source.open_source(
        name, 'train', options=dict(tokenizer=bert_words, length=6, **options),
        source_dir=str(tmp_path / 'files'), data_dir=str(tmp_path / 'data'))
    return written[-1] if written else None

  return run


@pytest.mark.parametrize('name, options, expected', [
    ('text', dict(), dict(length=6, form='packed', field='text',
                          padding='right', eos=None, bos=None, pad=None,
                          add_special_tokens=None)),
    ('completions', dict(prompt='q', completion='p', eos='a'),
     dict(length=6, prompt='q', completion='p', padding='right', eos='a',
          bos=None, pad=None, add_special_tokens=None)),
    ('sentences', dict(), dict(length=6, padding='right', fields=('text',))),
    ('sentences', dict(field='other'),
     dict(length=6, padding='right',
          fields=('sentence1', 'sentence2', 'score'))),
    ('labelled_sentences', dict(padding='left'),
     dict(length=6, padding='left',
          fields=('text', None, 'label', ['no', 'yes'], False))),
    ('labelled_sentences', dict(field='q', second='p', classes=('no', 'yes')),
     dict(length=6, padding='right',
          fields=('q', 'p', 'label', ('no', 'yes'), True))),
])
def test_options_of_a_recipe_and_their_order_are_fixed(open_split, name,
                                                       options, expected):
  recipe, _ = open_split(name, options)
  assert recipe.name == name and recipe.options == expected


def test_folder_is_named_by_a_hash_of_all_that_rows_depend_on(
    open_split, tmp_path, bert_words):
  _, folder = open_split('sentences', {})
  content = hashlib.sha256(
      (tmp_path / 'files' / 'train.jsonl').read_bytes()).hexdigest()
  key = json.dumps(dict(
      options=dict(fields=['text'], length=6, padding='right'), shard=2**23,
      texts=hashlib.sha256(f'.jsonl  {content}\n'.encode()).hexdigest(),
      tokenizer=text_tokenizers.load(bert_words).digest, version=4))
  name = hashlib.sha256(key.encode()).hexdigest()[:16]
  assert folder == pathlib.Path(
      tmp_path, 'data', 'haikd_text', 'sentences', name)


@pytest.mark.parametrize('ahead', (False, True))
def test_nothing_is_collected_while_a_shard_is_written(
    ahead, open_split, monkeypatch):
  """Unless training goes on meanwhile."""
  encode, collects = tokenizer_lib.Tokenizer.encode_batch, []
  is_seen = threading.Event()

  def encode_batch(self, texts, *args, **options):
    if texts == [row['text'] for row in ROWS]:  # Others are probes.
      collects.append(gc.isenabled())
      is_seen.set()
    return encode(self, texts, *args, **options)

  monkeypatch.setattr(tokenizer_lib.Tokenizer, 'encode_batch', encode_batch)
  open_split('text', dict(prepare='ahead') if ahead else {})
  assert is_seen.wait(60)
  assert collects == [ahead] and gc.isenabled()


def test_batches_are_cut_by_the_characters_within_lists():
  record = text_records.Record(
      dict(messages=[dict(role='user', content='a' * shards.BATCH_CHARACTERS)]),
      'line 1', 0.5)
  batches = list(shards.batches(iter([record] * 3), lambda done: None, 2**62))
  assert [len(batch) for batch in batches] == [1, 1, 1]
