"""Preparation: once, shard by shard, whoever is interrupted or comes second."""

from collections import Counter
import json
import os
import pathlib
import threading
import time

import numpy as np
import pytest

from haikd.core import checks
from haikd.data.text import packing
from haikd.data.text import text_files
from haikd.data.text import text_prepared
from haikd.data.text import text_tokenizers
from haikd.storage import paths


class Counted:
  """Rows of the words of a text, one record a row, counted as they are made."""

  def __init__(self, tokenizer, fail_at=None, length=4):
    self.tokenizer = tokenizer
    self.length = length
    self.fail_at = fail_at
    self.made = 0

  def recipe(self):
    return text_prepared.Recipe('counted', dict(length=self.length),
                                packing.row_dtype(self.length), self._rows)

  def _rows(self, batches, counts):
    for batch in batches:
      for record in batch:
        if self.made == self.fail_at:
          raise KeyboardInterrupt
        self.made += 1
        ids = self.tokenizer.encode_batch([record.values['text']])[0].ids
        counts['tokens'] += len(ids)
        yield packing.row([ids], [np.ones_like(ids)], self.length, pad=0,
                          padding='right')

  def expand(self, rows):
    return dict(tokens=rows['tokens'])


@pytest.fixture
def where(tmp_path, monkeypatch):
  """Ten documents of two letters, 4 characters a batch, 8 a shard."""
  monkeypatch.setattr(text_prepared, 'BATCH_CHARACTERS', 4)
  monkeypatch.setattr(text_prepared, 'SHARD_CHARACTERS', 8)
  (tmp_path / 'files').mkdir()
  (tmp_path / 'files' / 'train.txt').write_text(
      '\n'.join(f'{x} {y}' for x, y in zip('abcdefghij', 'jihgfedcba')))
  return text_files.Where(str(tmp_path / 'files'), str(tmp_path / 'data'), None,
                          'line', 'text')


def open_rows(where, tokenizer, made=None, **options):
  made = made or Counted(text_tokenizers.load(tokenizer), **options)

  def make(loaded, corpus):
    del loaded, corpus
    return made

  opened = text_prepared.open_rows(make, tokenizer, where, 'train',
                                   classes=lambda loaded: loaded.size)
  return made, opened


def folder_of(where):
  folder, = pathlib.Path(where.data_dir, 'haikd_text', 'counted').iterdir()
  return folder


def first_tokens(opened):
  return [int(opened[i]['tokens'][0]) for i in range(len(opened))]


def test_rows_of_all_shards_are_read_by_index(where, words):
  made, opened = open_rows(where, words)
  assert made.made == len(opened) == 10 and opened.num_classes == 13
  assert first_tokens(opened) == list(range(3, 13))
  # 3 + 3 characters fill a batch, 12 a shard of 4 documents.
  shards = sorted(p.name for p in folder_of(where).glob('*.array_record'))
  assert shards == [f'{i:05d}.array_record' for i in range(3)]
  assert opened.info == dict(documents=10, tokens=20, rows=10, files=shards)


def test_several_rows_are_read_at_once(where, words):
  _, opened = open_rows(where, words)
  rows = opened.__getitems__([9, 0, 5])
  assert [int(row['tokens'][0]) for row in rows] == [12, 3, 8]


def test_what_is_prepared_is_not_prepared_again(where, words):
  open_rows(where, words)
  made, opened = open_rows(where, words)
  assert made.made == 0 and first_tokens(opened) == list(range(3, 13))


def test_interrupted_preparation_goes_on_with_its_shard(where, words):
  with pytest.raises(KeyboardInterrupt):
    open_rows(where, words, fail_at=6)  # In the second shard of four.
  assert len(list(folder_of(where).glob('*.array_record'))) == 1
  assert not list(folder_of(where).glob('.*'))
  made, opened = open_rows(where, words)
  assert made.made == 6  # Not the first four.
  assert first_tokens(opened) == list(range(3, 13))
  assert opened.info['documents'] == 10 and opened.info['tokens'] == 20


@pytest.mark.parametrize('change', [
    lambda folder, options: (folder / 'files' / 'train.txt').write_text('a\n'),
    lambda folder, options: options.update(length=5),
    lambda folder, options: (folder / 'words' / 'tokenizer_config.json'
                             ).write_text('{"eos_token": "a"}'),
])
def test_whatever_rows_depend_on_prepares_anew(where, words, tmp_path, change):
  open_rows(where, words)
  options = {}
  change(tmp_path, options)
  made, _ = open_rows(where, words, **options)
  assert made.made > 0


def test_two_that_prepare_at_once_do_no_harm(where, words):
  # Both are at the first shard before one of them goes on. Threads have one
  # process id, as processes of two hosts or containers may have.
  barrier, rows = threading.Barrier(2, timeout=20), {}

  class Meeting(Counted):

    def _rows(self, batches, counts):
      if not self.made:
        barrier.wait()
      yield from super()._rows(batches, counts)

  def prepare(name):
    made = Meeting(text_tokenizers.load(words))
    rows[name] = first_tokens(open_rows(where, words, made)[1])

  threads = [threading.Thread(target=prepare, args=(i,)) for i in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert rows == {0: list(range(3, 13)), 1: list(range(3, 13))}


def test_shard_that_another_published_first_is_used(where, words):
  seen = {}

  class Overtaken(Counted):

    def _rows(self, batches, counts):
      yield from super()._rows(batches, counts)
      if not seen:
        open_rows(where, words)  # Another, from beginning to end.
        seen.update((p.name, p.stat().st_ino)
                    for p in folder_of(where).glob('*.array_record'))

  made, opened = open_rows(where, words, Overtaken(text_tokenizers.load(words)))
  assert made.made == 4  # The first shard; the others were there by then.
  assert first_tokens(opened) == list(range(3, 13))
  assert seen == {p.name: p.stat().st_ino
                  for p in folder_of(where).glob('*.array_record')}
  assert not list(folder_of(where).glob('.*'))


def test_what_killed_processes_left_is_removed_after_a_day(where, words,
                                                           tmp_path):
  open_rows(where, words)
  old, new = (paths.temporary(folder_of(where) / name) for name in 'ab')
  others = folder_of(where) / '.nfs0001'
  for path in (old, new, others):
    path.touch()
  for path in (old, others):
    os.utime(path, (time.time() - 2 * 86400,) * 2)
  open_rows(where, words)
  assert old.exists()  # Nothing was prepared.
  open_rows(where, words, length=5)
  assert [p.exists() for p in (old, new, others)] == [False, True, True]


def test_shard_without_rows_is_left_out(where, words):

  class Few(Counted):

    def _rows(self, batches, counts):
      for batch in batches:
        kept = [r for r in batch if r.values['text'] in ('a j', 'j a')]
        yield from super()._rows(iter([kept]), counts)

  _, opened = open_rows(where, words, Few(text_tokenizers.load(words)))
  assert first_tokens(opened) == [3, 12]
  assert opened.info['files'] == ['00000.array_record', '00002.array_record']


def test_disk_that_cannot_be_written_is_explained(where, words, tmp_path):
  (tmp_path / 'data').write_text('a file')
  with pytest.raises(checks.DataError,
                     match='data_dir must be a folder that can be written'):
    open_rows(where, words)


def test_a_bar_is_shown_to_a_person_only(where, words, monkeypatch, capsys):
  open_rows(where, words)
  assert capsys.readouterr().err == ''

  class Terminal:

    def isatty(self):
      return True

  shown = []
  monkeypatch.setattr(text_prepared.sys, 'stderr', Terminal())
  import rich.progress
  monkeypatch.setattr(
      rich.progress.Progress, 'update',
      lambda self, task, completed: shown.append(completed))
  monkeypatch.setattr(rich.progress.Progress, 'start', lambda self: None)
  monkeypatch.setattr(rich.progress.Progress, 'stop', lambda self: None)
  open_rows(where, words, length=5)
  assert shown == sorted(shown) and shown[-1] == 1


def test_tokenizer_is_kept_beside_the_data(where, words):
  _, opened = open_rows(where, words)
  folder = pathlib.Path(opened.text.tokenizer)
  assert json.loads((folder / 'tokenizer_config.json').read_text())[
      'eos_token'] == '</s>'
  assert text_tokenizers.load(str(folder)).digest == text_tokenizers.load(
      words).digest


def test_chat_template_is_kept_beside_the_data(where, words):
  _, plain = open_rows(where, words)
  path = pathlib.Path(words, 'chat_template.jinja')
  for template in ('{{ é }}\n', '{{ b }}'):  # Another one is not overlooked.
    path.write_text(template)
    _, opened = open_rows(where, words)
    kept = pathlib.Path(opened.text.tokenizer, 'chat_template.jinja')
    assert kept.read_text() == template
  assert not pathlib.Path(plain.text.tokenizer, path.name).exists()


def test_data_lies_where_that_of_tfds_does_unless_told():
  assert text_tokenizers.root(None) == pathlib.Path(
      os.environ['TFDS_DATA_DIR'], 'haikd_text')


def test_counts_are_kept_shard_by_shard(where, words):
  open_rows(where, words)
  counts = Counter()
  for path in folder_of(where).glob('0*.json'):
    counts.update(json.loads(path.read_text()))
  assert counts == dict(documents=10, tokens=20, rows=10)
