"""Preparation of rows: once, shard by shard, by interrupted or rival runs."""

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
from haikd.data.text import shards
from haikd.data.text import text_files
from haikd.data.text import text_prepared
from haikd.data.text import text_tokenizers
from haikd.storage import paths


class CountedFormat:
  """Makes a row of each record, and counts them."""

  def __init__(self, tokenizer, fail_at=None, length=4):
    self.tokenizer = tokenizer
    self.length = length
    self.fail_at = fail_at
    self.made = 0

  def recipe(self):
    return shards.Recipe('counted', dict(length=self.length),
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
def location(tmp_path, monkeypatch):
  """Ten documents of two letters; 4 characters a batch, 8 a shard."""
  monkeypatch.setattr(shards, 'BATCH_CHARACTERS', 4)
  monkeypatch.setattr(shards, 'SHARD_CHARACTERS', 8)
  (tmp_path / 'files').mkdir()
  (tmp_path / 'files' / 'train.txt').write_text(
      '\n'.join(f'{x} {y}' for x, y in zip('abcdefghij', 'jihgfedcba')))
  return text_files.Location(str(tmp_path / 'files'), str(tmp_path / 'data'),
                             None, 'line', 'text')


def open_rows(location, tokenizer, row_format=None, **options):
  row_format = row_format or CountedFormat(text_tokenizers.load(tokenizer),
                                           **options)

  def make_format(loaded, corpus):
    del loaded, corpus
    return row_format

  opened = text_prepared.open_rows(make_format, tokenizer, location, 'train',
                                   num_classes=lambda loaded: loaded.size)
  return row_format, opened


def folder_of(location):
  folder, = pathlib.Path(location.data_dir, 'haikd_text', 'counted').iterdir()
  return folder


def first_tokens(opened):
  return [int(opened[i]['tokens'][0]) for i in range(len(opened))]


def test_rows_of_all_shards_are_read_by_index(location, words):
  row_format, opened = open_rows(location, words)
  assert row_format.made == len(opened) == 10 and opened.num_classes == 13
  assert first_tokens(opened) == list(range(3, 13))
  # 3 + 3 characters fill a batch, 12 a shard of 4 documents.
  names = sorted(p.name for p in folder_of(location).glob('*.array_record'))
  assert names == [f'{i:05d}.array_record' for i in range(3)]
  assert opened.info == dict(documents=10, tokens=20, rows=10, files=names)


def test_several_rows_may_be_read_at_once(location, words):
  _, opened = open_rows(location, words)
  rows = opened.__getitems__([9, 0, 5])
  assert [int(row['tokens'][0]) for row in rows] == [12, 3, 8]


def test_prepared_rows_are_not_prepared_again(location, words):
  open_rows(location, words)
  row_format, opened = open_rows(location, words)
  assert row_format.made == 0 and first_tokens(opened) == list(range(3, 13))


def test_interrupted_preparation_resumes_with_its_shard(location, words):
  with pytest.raises(KeyboardInterrupt):
    open_rows(location, words, fail_at=6)  # In the second shard of four.
  assert len(list(folder_of(location).glob('*.array_record'))) == 1
  assert not list(folder_of(location).glob('.*'))
  row_format, opened = open_rows(location, words)
  assert row_format.made == 6  # Not the first four.
  assert first_tokens(opened) == list(range(3, 13))
  assert opened.info['documents'] == 10 and opened.info['tokens'] == 20


@pytest.mark.parametrize('change', [
    lambda folder, options: (folder / 'files' / 'train.txt').write_text('a\n'),
    lambda folder, options: options.update(length=5),
    lambda folder, options: (folder / 'words' / 'tokenizer_config.json'
                             ).write_text('{"eos_token": "a"}'),
])
def test_changing_what_rows_depend_on_prepares_them_again(location, words,
                                                          tmp_path, change):
  open_rows(location, words)
  options = {}
  change(tmp_path, options)
  row_format, _ = open_rows(location, words, **options)
  assert row_format.made > 0


def test_two_processes_may_prepare_at_once(location, words):
  # Both are at the first shard before either of them continues. Threads share a
  # process id, as processes of two hosts or containers may.
  barrier, rows = threading.Barrier(2, timeout=20), {}

  class Meeting(CountedFormat):

    def _rows(self, batches, counts):
      if not self.made:
        barrier.wait()
      yield from super()._rows(batches, counts)

  def prepare(name):
    row_format = Meeting(text_tokenizers.load(words))
    rows[name] = first_tokens(open_rows(location, words, row_format)[1])

  threads = [threading.Thread(target=prepare, args=(i,)) for i in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert rows == {0: list(range(3, 13)), 1: list(range(3, 13))}


def test_shard_that_another_process_wrote_first_is_used(location, words):
  inodes = {}

  class Overtaken(CountedFormat):

    def _rows(self, batches, counts):
      yield from super()._rows(batches, counts)
      if not inodes:
        open_rows(location, words)  # Another process prepares all of it.
        inodes.update((p.name, p.stat().st_ino)
                      for p in folder_of(location).glob('*.array_record'))

  row_format, opened = open_rows(location, words,
                                 Overtaken(text_tokenizers.load(words)))
  assert row_format.made == 4  # The first shard; then the others exist.
  assert first_tokens(opened) == list(range(3, 13))
  assert inodes == {p.name: p.stat().st_ino
                    for p in folder_of(location).glob('*.array_record')}
  assert not list(folder_of(location).glob('.*'))


def test_leftovers_of_killed_processes_are_removed_after_a_day(location, words):
  open_rows(location, words)
  old, new = (paths.temporary(folder_of(location) / name) for name in 'ab')
  foreign = folder_of(location) / '.nfs0001'
  for path in (old, new, foreign):
    path.touch()
  for path in (old, foreign):
    os.utime(path, (time.time() - 2 * 86400,) * 2)
  open_rows(location, words)
  assert old.exists()  # Nothing was prepared.
  open_rows(location, words, length=5)
  assert [p.exists() for p in (old, new, foreign)] == [False, True, True]


def test_shard_without_rows_is_left_out(location, words):

  class Few(CountedFormat):

    def _rows(self, batches, counts):
      for batch in batches:
        kept = [r for r in batch if r.values['text'] in ('a j', 'j a')]
        yield from super()._rows(iter([kept]), counts)

  _, opened = open_rows(location, words, Few(text_tokenizers.load(words)))
  assert first_tokens(opened) == [3, 12]
  assert opened.info['files'] == ['00000.array_record', '00002.array_record']


def test_folder_that_cannot_be_written_is_refused(location, words, tmp_path):
  (tmp_path / 'data').write_text('a file')
  with pytest.raises(checks.DataError,
                     match='config.data.data_dir must be a folder that can be '
                     'written, with room; got .*data'):
    open_rows(location, words)


def test_progress_bar_is_shown_on_a_terminal_only(location, words, monkeypatch,
                                                  capsys):
  open_rows(location, words)
  assert capsys.readouterr().err == ''
  with monkeypatch.context() as patch:
    patch.setattr(text_prepared.sys, 'stderr', None)  # It is closed.
    open_rows(location, words, length=6)

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
  open_rows(location, words, length=5)
  assert shown == sorted(shown) and shown[-1] == 1


def test_tokenizer_is_saved_beside_the_data(location, words):
  _, opened = open_rows(location, words)
  folder = pathlib.Path(opened.text.tokenizer)
  assert json.loads((folder / 'tokenizer_config.json').read_text())[
      'eos_token'] == '</s>'
  assert text_tokenizers.load(str(folder)).digest == text_tokenizers.load(
      words).digest


def test_chat_template_is_saved_beside_the_data(location, words):
  _, plain = open_rows(location, words)
  path = pathlib.Path(words, 'chat_template.jinja')
  for template in ('{{ é }}\n', '{{ b }}'):  # A changed one is saved as well.
    path.write_text(template)
    _, opened = open_rows(location, words)
    kept = pathlib.Path(opened.text.tokenizer, 'chat_template.jinja')
    assert kept.read_text() == template
  assert not pathlib.Path(plain.text.tokenizer, path.name).exists()


def test_default_folder_is_that_of_tfds():
  assert text_tokenizers.root(None) == pathlib.Path(
      os.environ['TFDS_DATA_DIR'], 'haikd_text')


def test_statistics_are_written_shard_by_shard(location, words):
  open_rows(location, words)
  counts = Counter()
  for path in folder_of(location).glob('0*.json'):
    counts.update(json.loads(path.read_text()))
  assert counts == dict(documents=10, tokens=20, rows=10)


def test_recipe_without_full_ids_cannot_be_pruned(location, words):
  with pytest.raises(TypeError, match="'counted' must have full_ids"):
    text_prepared.open_rows(
        lambda loaded, corpus: CountedFormat(loaded), words, location, 'train',
        prune=True, num_classes=lambda loaded: None)
